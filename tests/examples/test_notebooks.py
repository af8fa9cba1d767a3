"""Every notebook runs from top to bottom; its last cell checks what its text claims."""

import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PLACES = ("/home/", "/root/", "/tmp/", "/work/", "/Users/", "C:\\")


def test_they_are_found():
    assert [path.stem for path in NOTEBOOKS] == ["long_documents", "segmentation_head_swap", "streaming_generation"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_as_it_is_stored(path):
    nbformat = pytest.importorskip("nbformat")
    found = nbformat.read(path, as_version=4)
    nbformat.validate(found)  # a cell without an id is refused here
    assert (found.nbformat, found.nbformat_minor) == (4, 5)
    code = [cell for cell in found.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"stream", "display_data"}
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}
    assert any("image/png" in output.get("data", {}) for output in outputs)
    text = json.dumps([cell.source for cell in found.cells] + [output.get("text", "") for output in outputs])
    assert [place for place in PLACES if place in text] == []
    assert path.stat().st_size < 300_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "error::FutureWarning,error::DeprecationWarning:regard")
    found = nbformat.read(path, as_version=4)
    found.cells.append(nbformat.v4.new_code_cell("import sys; print(sys.executable)"))
    client = nbclient.NotebookClient(
        found, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    assert found.cells[-1].outputs[0].text.strip() == sys.executable
    assert list(tmp_path.iterdir()) == []
