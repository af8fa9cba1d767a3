"""``regard check`` on models of Hugging Face's transformers: out of a folder, or of a class."""

import json

import pytest
import torch

from regard.cli.checking import print_check
from regard.inspect import causality
from regard.inspect.check import RULES
from regard.inspect.loading import check_path
from regard.inspect.loading_networks import from_folder
from regard.tasks.documents import InputError

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 24, "vocab_size": 30}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(causality, "PLACES", 3)
    for name in set(RULES) - {"finite", "causality", "padding left"}:
        monkeypatch.delitem(RULES, name)


@pytest.fixture
def folder(tmp_path):
    transformers.BertConfig(**SIZES, architectures=["BertForMaskedLM"]).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_a_folder_with_a_configuration_has_random_weights(folder):
    report = check_path(str(folder))
    assert report.ok, str(report)
    assert report.subject == "BertForMaskedLM on input_ids int64 (2, 33)"
    assert report.about[0] == "random weights"
    assert check_path(str(folder)).rows == report.rows  # the same ones every time


def test_a_folder_with_weights_has_its_own(folder):
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SIZES))
    model.save_pretrained(folder)
    loaded, source = from_folder(folder, {})
    assert source == f"the weights in {folder}"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    eager, _ = from_folder(folder, {"attn_implementation": "eager"})
    assert eager.config._attn_implementation == "eager"
    plain = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**plain, "architectures": None}))
    assert type(from_folder(folder, {})[0]).__name__ == "BertModel"


def test_a_class_is_built_small():
    report = check_path("transformers:LlamaForCausalLM", ["num_hidden_layers=1"])
    assert report.ok
    assert "random weights, hidden_size=64" in report.about[0]
    assert "num_hidden_layers=1" in report.about[0]
    assert report["causality"].verdict == "pass"


def test_any_class_in_a_package():
    report = check_path("torch.nn:Linear", ["in_features=4", "out_features=4"], "2x9x4")
    assert report.about[0] == "torch.nn:Linear, in_features=4, out_features=4, weights as it makes them"
    assert report.ok


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ("EMPTY", [], r"there is no config.json in .*: write a folder"),
        ("FOLDER", ["depth=3"], r"BertConfig has no depth"),
        ("transformers:BertModel", ["depth=3"], r"BertConfig has no depth"),
        ("transformers:BertModel", ["num_attention_heads=5"], r"building a small BertModel raises .*name=value"),
        ("transformers:PreTrainedModel", [], r"has no configuration of its own"),
        ("transformers:BertMotel", [], r"transformers has no BertMotel"),
        ("transformerz:BertModel", [], r"there is no module transformerz; of a file write PATH.py:Class"),
        ("torch.nn:functional", [], r"neither an nn.Module class nor a function"),
    ],
)
def test_what_stands_in_the_way_is_said_in_one_line(folder, tmp_path, spec, options, words):
    spec = {"EMPTY": str(tmp_path), "FOLDER": str(folder)}.get(spec, spec)
    with pytest.raises(ValueError, match=words) as caught:
        check_path(spec, options)
    assert "\n" not in str(caught.value)


def test_on_the_command_line(folder, tmp_path, capsys):
    out = tmp_path / "report.md"
    assert print_check(str(folder), [], None, out=out, as_json=False)
    told = capsys.readouterr().out
    assert told.startswith("BertForMaskedLM on input_ids int64 (2, 33): 0 failed")
    assert told.rstrip().endswith(str(out))
    assert out.read_text().startswith("# regard check: BertForMaskedLM\n")
    assert not print_check(str(folder), [], None, out=None, as_json=True, causal="strict")
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert [row["verdict"] for row in found["rows"]] == ["pass", "FAIL", "pass"]
    for wrong, words in ((tmp_path, "is a folder: name a file"), (tmp_path / "no" / "report.md", "there is no folder")):
        with pytest.raises(InputError, match=words):
            print_check(str(folder), [], None, out=wrong, as_json=False)
