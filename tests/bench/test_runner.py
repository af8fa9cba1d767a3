import signal
import subprocess

import pytest

from regard.bench import probe as probing
from regard.bench import runner as running
from regard.bench.entrants import choose
from regard.bench.probe import probe
from regard.bench.results import gather
from regard.bench.runner import Runner
from regard.bench.settings import Settings
from regard.race.entrants import Entrant

SETTINGS = Settings(lengths=(64, 128, 256), dim=16, num_heads=2, rounds=2, mechanisms=("local", "linear_transformer"))


def run(settings=SETTINGS):
    field, saved = choose(settings), []
    runner = Runner(settings, field.entrants, lambda line: None, lambda runner: saved.append(runner.points))
    runner.run()
    return gather(runner, field, []), saved


def statuses(results, label):
    entry = next(entry for entry in results["entrants"] if entry["label"] == label)
    return [point["status"] for point in entry["points"]]


@pytest.fixture
def answers(monkeypatch):
    """What probes say, by label and length; otherwise that all is well."""
    told = {}

    def answer(entrant, length, settings):
        found = told.get((entrant.label, length), {"status": "measured", "error": "", "memory_bytes": 1000 * length})
        if isinstance(found, BaseException):
            raise found
        return found

    monkeypatch.setattr(running, "probe", answer)
    monkeypatch.setattr("regard.bench.turns.SHORTEST", 1e-3)
    return told


def test_what_is_hopeless_is_not_tried_again_and_what_crashed_is(answers):
    answers["local", 64] = {"status": "crashed", "error": "RuntimeError: too short"}
    answers["linear_transformer", 128] = {"status": "out of memory", "error": "killed by the system"}
    answers["linear_transformer", 256] = AssertionError("nobody asks")
    results, saved = run()
    assert statuses(results, "full") == ["measured"] * 3
    assert statuses(results, "local") == ["crashed", "measured", "measured"]
    assert statuses(results, "linear_transformer") == ["measured", "out of memory", "not tried"]
    entry = results["entrants"][-1]
    assert entry["points"][2]["error"] == "out of memory at 128 already"
    assert entry["points"][0]["turns"] == 2
    assert entry["points"][0]["memory_bytes"] == 64000
    assert entry["exponent"] is None
    assert len(saved) == 3


def test_a_failure_among_the_turns_is_told(answers, monkeypatch):
    def fail(entrant, length, settings):
        if entrant.name == "local" and length == 128:
            raise MemoryError("no room")
        return lambda: None

    monkeypatch.setattr(running, "workload", fail)
    results, _ = run()
    assert statuses(results, "local") == ["measured", "crashed", "measured"]
    assert results["entrants"][1]["points"][1]["error"] == "MemoryError: no room"


def test_ctrl_c_keeps_what_is_there(answers):
    answers["local", 128] = KeyboardInterrupt()
    results, saved = run()
    assert results["interrupted"]
    assert statuses(results, "full") == ["measured", "interrupted"]
    assert statuses(results, "local") == ["measured"]
    assert len(saved) == 2


def test_a_probe_measures_memory_in_a_process_of_its_own():
    settings = Settings(dim=256, num_heads=2)
    told = probe(Entrant("full"), 4096, settings)
    assert told["status"] == "measured"
    weights, tensors = 4 * 256 * 256 * 4, 4096 * 256 * 4
    assert weights + 5 * tensors < told["memory_bytes"] < 2 * (weights + 8 * tensors)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no such timer")
def test_a_probe_that_takes_too_long_is_ended():
    told = probe(Entrant("full"), 2**16, Settings(dim=64, num_heads=1, limit=0.5))
    assert told == {"status": "too slow", "error": "not built and called once within 0.5 s"}


def test_a_probe_tells_errors():
    told = probing.main({"name": "linformer", "options": {"rank": -1}, "length": 8, "settings": {"dim": 16}})
    assert told["status"] == "crashed"
    assert told["error"]


@pytest.mark.parametrize(
    ("code", "stderr", "status", "words"),
    [
        (-signal.SIGKILL, "", "out of memory", "killed by the system"),
        (-signal.SIGSEGV, "", "crashed", "ended with code -11: without a word"),
        (1, "Traceback\nModuleNotFoundError: torch\n", "crashed", "code 1: ModuleNotFoundError: torch"),
    ],
)
def test_a_probe_that_dies_is_told(monkeypatch, code, stderr, status, words):
    done = subprocess.CompletedProcess([], code, "", stderr)
    monkeypatch.setattr(probing.subprocess, "run", lambda *arguments, **options: done)
    told = probe(Entrant("full"), 64, SETTINGS)
    assert told["status"] == status
    assert words in told["error"]
