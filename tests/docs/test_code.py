import sys
from pathlib import Path

import pytest

import regard
from tests.docs.blocks import python_blocks, run

ROOT = Path(__file__).parents[2]
GENERATED = ("mechanisms", "examples", "api", "_ext", "build")
PAGES = {
    str(path.relative_to(ROOT)): blocks
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if path.relative_to(ROOT).parts[1:2] not in [(name,) for name in GENERATED]
    if (blocks := list(python_blocks(path)))
}
sys.path.insert(0, str(ROOT / "docs" / "_ext"))
from mechanism_examples import example  # noqa: E402

sys.path.pop(0)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\):FutureWarning")  # torch.onnx at itself
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run(PAGES[page])


@pytest.mark.parametrize("name", regard.names())
def test_the_example_of_a_mechanism_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = example(name)
    assert f'regard.create("{name}"' in code
    exec(compile(code, name, "exec"), {"__name__": "page"})


def test_pages_with_code_are_found():
    assert {"README.md", "docs/index.md", "docs/start.md", "docs/attend.md"} <= PAGES.keys()


def test_a_block_that_fails_is_told_with_its_place(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("words\n\n```python\nx = 1\n```\n\n```text\nnot code\n```\n\n```python\nassert x == 2\n```\n")
    blocks = list(python_blocks(page))
    assert [block.line for block in blocks] == [4, 12]
    with pytest.raises(AssertionError) as told:
        run(blocks)
    assert (told.traceback[-1].path, told.traceback[-1].lineno) == (page, 11)
