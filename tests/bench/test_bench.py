"""The command from end to end; timings are never asserted."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from regard.bench import runner as running
from regard.bench.chart import draw
from regard.cli.app import app

SMALL = ["--lengths", "64,128", "--dim", "16", "--num-heads", "2", "--rounds", "2"]


def invoke(*words):
    return CliRunner().invoke(app, ["bench", *map(str, words)], catch_exceptions=False)


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def quick(monkeypatch):
    """Without a process for each probe."""
    told = {"status": "measured", "error": "", "memory_bytes": 10**6}
    monkeypatch.setattr(running, "probe", lambda entrant, length, settings: told)
    monkeypatch.setattr("regard.bench.turns.SHORTEST", 1e-3)


def test_from_end_to_end(quick):
    told = invoke("linear_transformer:eps=0.001", "linformer", *SMALL, "--causal", "--backward", "--out", "here")
    assert told.exit_code == 0, told.output
    for words in (
        "linear_transformer:eps=0.001",
        "forward and backward, causal",
        "128",
        "torch 2",
        "threads 1",
        "load ",
        "here/bench.json",
    ):
        assert words in told.stdout
    assert "not measured: linformer: not causal: every mixture has seen the future" in told.stdout
    assert sorted(os.listdir("here")) == ["bench.json", "bench.png"]
    with open("here/bench.png", "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    with open("here/bench.json") as file:
        found = json.load(file)
    assert found["schema"] == "regard.bench/1"
    assert found["clock"] == "cpu"
    assert found["machine"]["threads"] == found["settings"]["threads"] == 1
    assert [entry["label"] for entry in found["entrants"]] == ["full", "linear_transformer:eps=0.001"]
    for entry in found["entrants"]:
        assert [point["length"] for point in entry["points"]] == [64, 128]
        assert all(point["status"] == "measured" and point["turns"] == 2 for point in entry["points"])
        assert all(point["cpu_seconds"] > 0 and point["wall_seconds"] > 0 for point in entry["points"])
        assert all(point["memory_bytes"] == 10**6 for point in entry["points"])
        assert math.isfinite(entry["exponent"]["value"])
        assert entry["exponent"]["lengths"] == [64, 128]
    assert found["entrants"][0]["crossover"] is None
    assert found["entrants"][1]["crossover"]["words"]


def test_folders_are_numbered_and_never_overwritten(quick):
    assert invoke("local", *SMALL).exit_code == 0
    assert invoke("local", *SMALL).exit_code == 0
    assert sorted(os.listdir()) == ["regard-bench", "regard-bench-2"]
    told = invoke("local", *SMALL, "--out", "regard-bench")
    assert told.exit_code == 2
    assert told.stderr == "regard: regard-bench already holds a benchmark: give another --out\n"
    assert "is not a directory" in invoke("local", *SMALL, "--out", "regard-bench/bench.json").stderr


def test_all_mechanisms_on_sequences(quick):
    told = invoke(*SMALL, "--lengths", "64")
    assert told.exit_code == 0, told.output
    assert "crashed" not in told.stdout
    assert "N^" in told.stdout


def test_nobody_measured_is_still_told_and_drawn(monkeypatch):
    answer = {"status": "too slow", "error": "not built and called once within 1 s"}
    monkeypatch.setattr(running, "probe", lambda entrant, length, settings: answer)
    told = invoke("local", *SMALL, "--out", "here")
    assert told.exit_code == 0, told.output
    assert "local at 64: too slow: not built and called once within 1 s" in told.stdout
    assert "not tried" in told.stdout
    assert sorted(os.listdir("here")) == ["bench.json", "bench.png"]


def test_many_mechanisms_fit_into_the_picture():
    points = [{"length": n, "status": "measured", "cpu_seconds": n * 1e-3, "memory_bytes": n * 1000} for n in (64, 128)]
    labels = ["full", *(f"mechanism_{number}" for number in range(60))]
    results = {
        "settings": {"lengths": [64, 128], "backward": False, "causal": True},
        "clock": "cpu",
        "entrants": [{"label": label, "points": points} for label in labels],
    }
    assert draw(results).startswith(b"\x89PNG")


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
def test_ctrl_c_is_one_line_and_leaves_the_files():
    command = [sys.executable, "-m", "regard.cli", "bench", "local", "--lengths", "64,128", "--rounds", "100000"]
    with subprocess.Popen(
        [*command, "--out", "here"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as bench:
        while not os.path.exists("here"):
            time.sleep(0.1)
        time.sleep(1)
        bench.send_signal(signal.SIGINT)
        out, err = bench.communicate(timeout=60)
    assert bench.returncode == 130, err
    assert "Traceback" not in err
    assert sorted(os.listdir("here")) == ["bench.json", "bench.png"]
    assert "stopped before the end" in out
    with open("here/bench.json") as file:
        assert json.load(file)["interrupted"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["lokal"], "no mechanism is called 'lokal': did you mean local"),
        (["local:window"], "'local:window' is not NAME:option=value"),
        (["--lengths", "3x"], "--lengths: '3x' is no length"),
        (["--dim", "10"], "--dim 10 cannot be shared equally"),
        (["--device", "abacus"], "--device abacus cannot be used"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(words, told):
    result = invoke(*words)
    assert result.exit_code == 2
    assert told in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert os.listdir() == []
