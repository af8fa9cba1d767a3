import json

import pytest
from typer.testing import CliRunner

from regard.cli.app import app

MAKER = """
import torch
from regard.inspect.sentences import bytes_of_words
from regard.models import TransformerEncoder
def make():
    return TransformerEncoder(256, 16, 1, 2, 32), bytes_of_words
def deaf():
    return torch.nn.Embedding(256, 4), bytes_of_words
"""
TREES = "1\tDogs\t_\t_\t_\t_\t2\tnsubj\t_\t_\n2\tbark\t_\t_\t_\t_\t0\troot\t_\t_\n\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MAKER)
    (tmp_path / "trees.conllu").write_text(TREES * 3)
    (tmp_path / "text.txt").write_text("one two three\nfour\n" + "long " * 20 + "\n")
    return tmp_path


def invoke(*words):
    return CliRunner().invoke(app, ["heads", *words], catch_exceptions=False)


def test_a_page_a_file_and_a_table(here):
    told = invoke("model.py:make", "trees.conllu", "--sentences", "2", "--examples", "1")
    assert told.exit_code == 0, told.output
    assert "blocks.0.attention" in told.stdout
    assert "2 heads: " in told.stdout
    stored = json.loads((here / "regard-heads" / "heads.json").read_text("utf-8"))
    assert (stored["sentences"], len(stored["examples"]), len(stored["heads"])) == (2, 1, 2)
    page = (here / "regard-heads" / "heads.html").read_text("utf-8")
    assert "model.py:make" in page
    assert "trees.conllu" in page
    again = invoke("model.py:make", "trees.conllu")
    assert again.exit_code == 0
    assert (here / "regard-heads-2" / "heads.html").exists()


def test_options_reach_the_report(here):
    told = invoke(
        "model.py:make", "text.txt", "--out", "new", "--too-long", "skip", "--positional", "0.5", "--margin", "0.2",
        "--rare", "0.4", "--relations", "obj,iobj",
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    assert "1 of 3 sentences are longer than the model's 32 tokens and were left out." in told.stdout
    stored = json.loads((here / "new" / "heads.json").read_text("utf-8"))["thresholds"]
    assert (stored["positional share"], stored["syntactic margin"], stored["rare-word share"]) == (0.5, 0.2, 0.4)
    assert stored["relations"] == ["obj", "iobj"]


def test_rare_words_are_told_by_the_whole_file(here):
    """A word that stands nowhere else is rare although it is one of two in the only sentence that is looked at."""
    usual = [f"word{number}" for number in range(600)]
    (here / "long.txt").write_text("\n".join(["word0 seldom", *usual, *usual]))
    assert invoke("model.py:make", "long.txt", "--sentences", "1", "--out", "new").exit_code == 0
    stored = json.loads((here / "new" / "heads.json").read_text("utf-8"))
    assert all(head["rarest"] is not None for head in stored["heads"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model.py:make", "nothing.txt"], "nothing.txt does not exist"),
        (["nothing", "text.txt"], "nothing is no model"),
        (["model.py:deaf", "text.txt"], "Embedding has no attention that was found"),
        (["model.py:make", "text.txt"], "leave them out"),
        (["model.py:make", "text.txt", "--sentences", "0"], "--sentences 0 is not positive"),
        (["model.py:make", "text.txt", "--examples", "-1"], "--examples -1 is not positive"),
        (["model.py:make", "trees.conllu", "--positional", "2"], "positional_share=2.0 is no share"),
        (["model.py:make", "trees.conllu", "--out", "model.py"], "--out model.py is not a directory"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(here, words, told):
    before = sorted(here.rglob("*"))
    found = invoke(*words)
    assert found.exit_code == 2, found.output
    assert found.stdout == ""
    (line,) = found.stderr.splitlines()
    assert line.startswith("regard: ")
    assert told in line
    assert [path for path in sorted(here.rglob("*")) if "__pycache__" not in path.parts] == before


def test_a_report_is_not_overwritten(here):
    assert invoke("model.py:make", "trees.conllu", "--out", "new").exit_code == 0
    told = invoke("model.py:make", "trees.conllu", "--out", "new")
    assert told.exit_code == 2
    assert "already holds a report on heads" in told.stderr
