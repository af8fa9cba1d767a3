import pytest
import torch

from regard.inspect.loading import check_path, load_class, make_inputs, parse_option

SOURCE = """
from torch import nn
from neighbour import WIDTH

class Twice(nn.Module):
    def __init__(self, factor=2, *, bias=0.0):
        super().__init__()
        self.factor, self.bias = factor, bias

    def forward(self, x):
        return self.factor * x + self.bias

class Wide(nn.Linear):
    def __init__(self, width):
        super().__init__(width, width)

class Plain:
    pass

class Broken(nn.Module):
    def __init__(self):
        raise RuntimeError("no GPU here")

def build(kind="twice"):
    return Twice() if kind == "twice" else kind
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "neighbour.py").write_text("WIDTH = 3\n")
    (tmp_path / "model.py").write_text(SOURCE)
    return tmp_path / "model.py"


def test_a_class_in_a_file_is_checked(path):
    report = check_path(f"{path}:Twice", ["factor=3", "bias=0.5"], "2x9x4", causal="strict")
    assert report.ok, str(report)
    assert report.subject == "Twice on x float32 (2, 9, 4)"
    assert check_path(f"{path}:build", inputs="2x9x4").ok
    assert check_path(f"{path}:Wide", {"width": 4}, "2x9x4").ok


@pytest.mark.parametrize(
    ("spec", "options", "inputs", "words"),
    [
        ("model.py", [], None, r"does not read PATH.py:Class"),
        ("model:Twice", [], None, r"does not read PATH.py:Class"),
        ("none.py:Twice", [], None, r"there is no file .*none.py"),
        ("model.py:Thrice", [], None, r"has no Thrice; it defines Twice, Wide"),
        ("model.py:WIDTH", [], None, r"neither an nn.Module class nor a function"),
        ("model.py:Plain", [], None, r"neither an nn.Module class nor a function"),
        ("model.py:Wide", [], None, r"Wide\(width\): missing a required argument: 'width'.*name=value"),
        ("model.py:Twice", ["heads=3"], None, r"got an unexpected keyword argument 'heads'"),
        ("model.py:Twice", ["factor"], None, r"'factor' does not read name=value"),
        ("model.py:Broken", [], None, r"building Broken raises RuntimeError: no GPU here"),
        ("model.py:build", ["kind=other"], None, r"build returns str, no nn.Module"),
        ("model.py:Twice", [], None, r"pass inputs"),
        ("model.py:Twice", [], "2x9xfour", r"'2x9xfour' is no shape"),
        ("model.py:Wide", ["width=4"], "2x9x5", r"cannot be called"),
        ("faulty.py:Twice", [], None, r"running .*faulty.py raises ModuleNotFoundError"),
    ],
)
def test_what_stands_in_the_way_is_said_in_one_line(path, spec, options, inputs, words):
    (path.parent / "faulty.py").write_text("import no_such_package_anywhere\n")
    with pytest.raises(ValueError, match=words) as caught:
        check_path(f"{path.parent}/{spec}", options, inputs)
    assert "\n" not in str(caught.value)


def test_the_class_itself_is_returned(path):
    assert load_class(f"{path}:Twice").__name__ == "Twice"


def test_options_are_literals_or_texts():
    assert dict(map(parse_option, ["n=4", "p=0.5", "form=blocks", "flags=(1, 2)", "on=True", "name='a'"])) == {
        "n": 4, "p": 0.5, "form": "blocks", "flags": (1, 2), "on": True, "name": "a",
    }  # fmt: skip


def test_inputs_from_text():
    x, ids = make_inputs("2x3x4, 2x3:5")
    assert (x.shape, x.dtype) == ((2, 3, 4), torch.float32)
    assert (ids.shape, ids.dtype) == ((2, 3), torch.int64)
    assert int(ids.max()) < 5
    assert list(make_inputs("src=2x3,memory=2x5")) == ["src", "memory"]
    for wrong in ("", "2x0", "2x-3", "x", "2x3:", "a=2x3,2x3"):
        with pytest.raises(ValueError, match=r"is no shape|names some inputs"):
            make_inputs(wrong)
