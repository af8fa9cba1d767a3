import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from regard.cli.app import app
from regard.tasks.documents import InputError
from regard.verify import verify
from regard.verify.cases import numbers, read

CASE = "sparse_transformer/openai_strided"


def invoke(*words):
    return CliRunner().invoke(app, ["verify", *map(str, words)], catch_exceptions=False)


@pytest.fixture
def folder(tmp_path):
    """A good case, one with other numbers, and files that are bad in every way that we know."""
    tensors, meta = read(numbers() / f"{CASE}.safetensors")
    deep = tmp_path / "some" / "where"
    deep.mkdir(parents=True)
    shutil.copy(numbers() / f"{CASE}.safetensors", deep / "good.safetensors")
    save_file({**tensors, "grad/query": tensors["grad/query"] + 0.01}, tmp_path / "wrong.safetensors", meta)
    save_file(tensors, deep / "bare.safetensors")
    save_file(tensors, tmp_path / "stranger.safetensors", {**meta, "mechanism": "telepathy"})
    save_file(tensors, tmp_path / "elsewhere.safetensors", {**meta, "source": "nobody/nothing:x.py:Y"})
    save_file(tensors, tmp_path / "odd.safetensors", {**meta, "config": "{"})
    save_file({"in/query": tensors["in/query"]}, tmp_path / "empty.safetensors", meta)
    (tmp_path / "text.safetensors").write_text("It is a truth universally acknowledged")
    whole = (deep / "good.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "README.md").write_text("no case")
    return tmp_path


def test_what_came_with_regard_is_met():
    told = invoke(CASE, "linear-transformer")
    assert told.exit_code == 0, told.output
    lines = told.stdout.splitlines()
    assert "errors relative to max(1, largest), allowed are outputs 1e-05, gradients 5e-05" in lines[0]
    assert all(line.startswith("ok ") and "outputs" in line for line in lines[1:-1])
    assert lines[-1].startswith(f"2 mechanisms, {len(lines) - 2} cases: all within the limits, largest errors outputs ")
    worst = max(float(line.partition("outputs ")[2].split(",")[0]) for line in lines[1:-1])
    assert f"outputs {worst:.1e}, gradients " in lines[-1]
    assert lines[-1].endswith(f"torch {torch.__version__}, cpu, as recorded)")
    assert "linear_transformer/causal" in lines[1]
    assert "(openai/sparse_attention attention_impl)" in lines[-2]


def test_bad_files_are_told_on_their_line_and_stop_nothing(folder):
    told = invoke("--folder", folder)
    assert told.exit_code == 1
    *table, summary, missed = told.stdout.splitlines()[1:]
    lines = {line.split()[1]: line for line in table}
    assert len(lines) == 9
    assert lines["sparse_transformer/good"].startswith("ok ")
    assert lines["sparse_transformer/wrong"].startswith("FAIL ")
    assert "grad/query is off by" in lines["sparse_transformer/wrong"]
    reasons = {
        "where/bare": "its header has no mechanism and no source",
        "telepathy/stranger": "no authors' weights can be loaded for 'telepathy'",
        "sparse_transformer/elsewhere": "cannot load 'nobody/nothing:x.py:Y'",
        "sparse_transformer/odd": "config or call in its header is not JSON",
        "sparse_transformer/empty": "it records no outputs",
        f"{folder.name}/text": "not a safetensors file",
        f"{folder.name}/cut": "not a safetensors file",
    }
    for name, reason in reasons.items():
        assert lines[name].startswith("cannot ")
        assert reason in lines[name]
    assert summary.startswith("4 mechanisms, 9 cases: 1 ok, 1 FAIL, 7 cannot (regard ")
    assert missed.startswith("not met: ")
    assert set(missed.removeprefix("not met: ").split(", ")) == set(lines) - {"sparse_transformer/good"}


def test_a_defect_of_one_case_is_its_own_affair(monkeypatch):
    def broken(tensors, meta):
        if meta["mechanism"] == "multi_head":
            raise RuntimeError("lost\nthe thread")
        return {}

    monkeypatch.setattr("regard.verify.comparison.replay", broken)
    results = {result.name: result for result in verify(["multi_head/self_causal", CASE])}
    assert results["multi_head/self_causal"].status == "cannot"
    assert results["multi_head/self_causal"].reason == "RuntimeError: lost the thread"
    assert results[CASE].status == "FAIL"
    assert "is missing" in results[CASE].reason


def test_for_programs(folder):
    told = invoke("--folder", folder, "--json", "sparse_transformer/good", "sparse_transformer/wrong")
    assert told.exit_code == 1
    found = json.loads(told.stdout)
    assert found["schema"] == "regard.verify/1"
    assert found["limits"] == {"outputs": 1e-5, "gradients": 5e-5}
    assert found["machine"]["torch"] == torch.__version__
    good, wrong = found["cases"]
    assert (good["status"], wrong["status"]) == ("ok", "FAIL")
    assert good["outputs"] < 1e-5 < 5e-5 < wrong["gradients"]
    assert good["path"].endswith("some/where/good.safetensors")


def test_json_has_no_word_for_nan(folder):
    tensors, meta = read(folder / "some" / "where" / "good.safetensors")
    save_file({**tensors, "grad/query": tensors["grad/query"] * torch.nan}, folder / "nan.safetensors", meta)
    told = invoke("--folder", folder, "--json", "sparse_transformer/nan")
    assert "NaN" not in told.stdout
    assert json.loads(told.stdout)["cases"][0]["gradients"] is None


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_every_dtype_has_its_limits(dtype):
    told = invoke("--dtype", dtype, CASE)
    assert told.exit_code == 0, told.output
    assert f"on cpu, {dtype}" in told.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sparse-transformer/openai_strode"], "did you mean sparse_transformer/openai_strided"),
        (["zzz"], "there are some of "),
        (["--folder", "nowhere"], "--folder nowhere is not a directory"),
        (["--device", "abacus"], "--device abacus cannot be used"),
    ],
)
def test_what_cannot_be_done_is_one_line(words, told):
    result = invoke(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert told in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_empty_folder_is_no_success(tmp_path):
    with pytest.raises(InputError, match=r"no \*\.safetensors file"):
        list(verify(folder=tmp_path))
    with pytest.raises(InputError, match=r"no limits are known for torch\.int8"):
        list(verify(dtype=torch.int8))
