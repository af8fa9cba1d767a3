"""Processes: each test starts some, so there are few of them."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
import torch

from regard.race.entrants import Entrant
from regard.race.folder import only_one
from regard.race.job import CURVE, Job, profile
from regard.race.outcome import Outcome
from regard.race.runner import Runner
from regard.race.settings import Settings
from regard.race.worker import is_out_of_memory
from regard.tasks.documents import InputError
from regard.train.checkpoint import CheckpointError
from regard.train.trainer import DivergedError

TINY = {"smoke": True, "steps": 16, "length": 32, "dim": 16, "depth": 1, "num_heads": 2, "batch": 1, "device": "cpu"}


def tiny(**changes):
    return Settings(**{**TINY, **changes})


class Log:
    """A watcher that remembers, and may act on an event."""

    def __init__(self, act=lambda entrant, event: None):
        self.events, self.act = [], act

    def started(self, entrant):
        self.events.append((entrant.label, "started"))

    def event(self, entrant, event):
        self.events.append((entrant.label, event["kind"]))
        self.act(entrant, event)

    def ended(self, entrant, outcome):
        self.events.append((entrant.label, outcome.status))


def result(outcome):
    """What must not depend on time."""
    return (
        outcome.steps,
        outcome.tokens,
        outcome.quality,
        outcome.units,
        [(p["steps"], p["quality"]) for p in outcome.curve],
    )


@pytest.mark.parametrize("name", ["full", "longformer"])
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one(tmp_path, name):
    folders = [tmp_path / "whole", tmp_path / "parts"]
    for folder in folders:
        folder.mkdir()
    whole = Job(tiny(), Entrant(name), folders[0]).run()
    calls = iter([False] * 5 + [True] + [False] * 4 + [True] + [False] * 99)
    for number in range(3):
        part = Job(tiny(), Entrant(name), folders[1], stopped=lambda: next(calls)).run()
        assert part.status == ("finished" if number == 2 else "interrupted")
    assert result(part) == result(whole)
    assert part.resumed == 2
    assert len(whole.curve) == len(CURVE)
    assert whole.parameters > 0
    assert whole.memory["peak"] >= whole.memory["base"] > 0
    assert whole.milliseconds.keys() == {"attention", "rest"}


def test_a_budget_in_seconds_counts_training_only(tmp_path):
    job = Job(tiny(steps=None, seconds=0.3), Entrant("full"), tmp_path)
    outcome = job.run()
    assert 0.3 <= outcome.seconds < 0.6
    assert outcome.curve[-1]["steps"] == outcome.steps
    assert outcome.evaluation_seconds > 0


def test_refuses_the_checkpoints_of_others(tmp_path):
    stop = iter([False] * 3 + [True] * 9)
    Job(tiny(), Entrant("full"), tmp_path, stopped=lambda: next(stop)).run()
    with pytest.raises(CheckpointError, match=r"belongs to 'full', not to 'local'"):
        Job(tiny(), Entrant("local"), tmp_path)
    with pytest.raises(CheckpointError, match="a race with other settings"):
        Job(tiny(seed=5), Entrant("full"), tmp_path)
    with pytest.raises(InputError, match="the text has changed"):
        Job(tiny(), Entrant("full"), tmp_path, fingerprint="another")


def test_divergence_is_found(tmp_path):
    with pytest.raises(DivergedError, match=r"the loss is (nan|inf)|held-out bits per byte is (nan|inf)"):
        Job(tiny(learning_rate=1e38), Entrant("full"), tmp_path).run()


def test_profiling_divides_a_step(tmp_path):
    parts = profile(Job(tiny(), Entrant("full"), tmp_path).trainer)
    assert parts["attention"] > 0
    assert parts["rest"] > 0


def test_one_that_crashes_or_is_killed_does_not_stop_the_rest(tmp_path):
    def kill(entrant, event):
        if entrant.name == "full" and event["kind"] == "ready":
            os.kill(event["pid"], signal.SIGKILL)

    settings = tiny(steps=4)
    field = (Entrant("local", {"nonsense": 3}), Entrant("full"), Entrant("linear_transformer"))
    log = Log(kill)
    runner = Runner(settings, field, tmp_path, settings.discipline.prepare(settings).fingerprint, log)
    (crashed, killed, fine), interrupted = runner.run()
    assert not interrupted
    assert (crashed.status, killed.status, fine.status) == ("crashed", "killed", "finished")
    assert "TypeError: local has no option 'nonsense'" in crashed.error
    assert "SIGKILL" in killed.error
    assert "Traceback" in (tmp_path / "entrants" / "local_nonsense=3" / "log.txt").read_text()
    assert ("linear_transformer", "point") in log.events
    again = Log()
    outcomes, _ = Runner(settings, field[1:], tmp_path, settings.discipline.prepare(settings).fingerprint, again).run()
    assert [outcome.status for outcome in outcomes] == ["finished", "finished"]
    assert again.events[-1:] == [("linear_transformer", "finished")], "what is finished is not run again"


@pytest.mark.parametrize(
    ("last", "code", "stopped", "status", "words"),
    [
        ({"status": "out of memory", "error": "RuntimeError: can't allocate"}, 0, False, "out of memory", "allocate"),
        ({"status": "diverged", "error": "the loss is nan"}, 0, False, "diverged", "nan"),
        ({}, -9, False, "killed", "SIGKILL; the system does that when memory runs out"),
        ({}, 3, False, "crashed", "code 3"),
        ({}, -15, True, "interrupted", ""),
    ],
)
def test_every_end_has_its_name(tmp_path, last, code, stopped, status, words):
    (tmp_path / "entrants" / "full").mkdir(parents=True)
    runner = Runner(tiny(), (Entrant("full"),), tmp_path, "", Log())
    outcome = runner._outcome(Entrant("full"), last, code, stopped)
    assert outcome.status == status
    assert words in outcome.error
    assert runner._known(Entrant("full")).status == ("diverged" if status == "diverged" else "not started")


def test_a_full_disk_ends_the_race(tmp_path):
    runner = Runner(tiny(), (Entrant("full"),), tmp_path, "", Log())
    with pytest.raises(InputError, match="the disk is full: No space left on device: checkpoint"):
        runner._outcome(
            Entrant("full"), {"status": "full disk", "error": "No space left on device: checkpoint"}, 0, False
        )


def test_memory_errors_are_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_a_race_holds_its_folder(tmp_path):
    with only_one(tmp_path), pytest.raises(InputError, match="another race is running"), only_one(tmp_path):
        pass
    with only_one(tmp_path):
        pass


def test_damaged_checkpoints_are_named_before_anything_runs(tmp_path):
    place = tmp_path / "entrants" / "full"
    place.mkdir(parents=True)
    stop = iter([False] * 3 + [True] * 9)
    Job(tiny(), Entrant("full"), place, stopped=lambda: next(stop)).run()
    runner = Runner(tiny(), (Entrant("full"),), tmp_path, "", Log())
    runner.inspect()
    file = next(place.glob("*.safetensors"))
    os.truncate(file, 99)
    with pytest.raises(InputError, match=rf"{file.name} is truncated: .*; delete .* to start full again"):
        runner.inspect()


SIZES = ["--smoke", "--length", "32", "--dim", "16", "--batch", "1", "--device", "cpu"]


def wait_for(condition, seconds=120):
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "waited in vain"
        time.sleep(0.02)


def run(*words):
    """Start the command line in a process of its own."""
    command = [sys.executable, "-m", "regard.cli", "race", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def outcomes(folder):
    told = json.loads((folder / "results.json").read_bytes())
    names = set(asdict(Outcome("")))
    return told, [
        Outcome(**{name: value for name, value in entry.items() if name in names}) for entry in told["entrants"]
    ]


def test_resumes_after_kill_minus_nine_and_ends_the_same(tmp_path):
    (tmp_path / "whole").mkdir()
    settings = tiny(steps=100, mechanisms=("full",))
    whole = Job(settings, Entrant("full"), tmp_path / "whole").run()
    parts = tmp_path / "parts"
    race = run(*SIZES, "--mechanisms", "full", "--steps", "100", "--out", str(parts))
    wait_for((parts / "entrants" / "full" / "checkpoint.json").exists)
    race.kill()
    race.communicate()
    assert not (parts / "results.json").exists()
    assert not list(parts.rglob("result.json"))
    resumed = run("--resume", "--out", str(parts))
    stdout, stderr = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, stderr
    assert "full: going on from step" in stdout
    told, (found,) = outcomes(parts)
    assert json.loads(json.dumps(result(whole))) == json.loads(json.dumps(result(found)))
    assert found.resumed == 1
    assert told["settings"]["steps"] == 100


def test_control_c_writes_what_is_there(tmp_path):
    words = [*SIZES, "--mechanisms", "linear_transformer", "--steps", "1000000", "--out", str(tmp_path)]
    race = run(*words)
    wait_for((tmp_path / "entrants" / "full" / "job.json").exists)
    time.sleep(4)
    race.send_signal(signal.SIGINT)
    stdout, stderr = race.communicate(timeout=120)
    assert race.returncode == 130, stderr
    assert "Traceback" not in stderr
    told, found = outcomes(tmp_path)
    assert told["interrupted"]
    assert [outcome.status for outcome in found] == ["interrupted", "not started"]
    assert (tmp_path / "report.html").read_text().count("interrupted") >= 2
    assert f"--resume --out {tmp_path}" in stdout
    assert "no pick: nobody finished" in stdout
