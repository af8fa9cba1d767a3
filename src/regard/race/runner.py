"""Runs the entrants one after another, each in its own process, and takes what happens to them as it comes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from regard.race.entrants import Entrant
from regard.race.job import check_owner
from regard.race.outcome import Outcome
from regard.race.settings import Settings
from regard.tasks.documents import InputError
from regard.tasks.writing import write_file
from regard.train.checkpoint import CheckpointError, read_checkpoint

STATUSES = ("finished", "interrupted", "diverged", "crashed", "out of memory", "killed", "not started")
FINAL = ("finished", "diverged")
"""Outcomes that a resumed race keeps; every other entrant goes on from its checkpoint or starts again."""

PATIENCE = 60.0
"""Seconds that a worker has to end after its last word."""


class Watcher(Protocol):
    """Whoever shows the race while it runs."""

    def started(self, entrant: Entrant) -> None:
        """An entrant's process begins."""
        ...

    def event(self, entrant: Entrant, event: dict[str, Any]) -> None:
        """A step, a point of the curve, a checkpoint."""
        ...

    def ended(self, entrant: Entrant, outcome: Outcome) -> None:
        """An entrant is done, one way or another."""
        ...


class Runner:
    """The entrants of one race and their folders below ``folder``.

    Args:
        settings: of the race.
        entrants: in the order in which they run.
        folder: of the race; it exists.
        fingerprint: of the data.
        watcher: told what happens.
    """

    def __init__(
        self, settings: Settings, entrants: tuple[Entrant, ...], folder: Path, fingerprint: str, watcher: Watcher
    ) -> None:
        self.settings, self.entrants, self.folder = settings, entrants, folder
        self.fingerprint, self.watcher = fingerprint, watcher

    def run(self) -> tuple[list[Outcome], bool]:
        """Run every entrant that has no final outcome yet.

        Returns:
            One outcome per entrant, and whether the race was interrupted by Ctrl-C.

        Raises:
            InputError: the disk is full.
        """
        outcomes = [self._known(entrant) for entrant in self.entrants]
        with contextlib.suppress(KeyboardInterrupt):
            for number, entrant in enumerate(self.entrants):
                stopped = False
                if outcomes[number].status not in FINAL:
                    self.watcher.started(entrant)
                    outcomes[number], stopped = self._race(entrant)
                self.watcher.ended(entrant, outcomes[number])
                if stopped:
                    return outcomes, True
            return outcomes, False
        return outcomes, True

    def inspect(self) -> None:
        """Read every checkpoint before anything runs.

        Raises:
            InputError: one is damaged or foreign; the message names the file.
        """
        for entrant in self.entrants:
            self._inspect(entrant)

    def _inspect(self, entrant: Entrant) -> None:
        place = self._place(entrant)
        try:
            found = read_checkpoint(place)
            if found is not None:
                check_owner(place, found[1], self.settings, entrant)
        except CheckpointError as error:
            raise InputError(f"{error}; delete {place} to start {entrant.label} again") from error

    def _race(self, entrant: Entrant) -> tuple[Outcome, bool]:
        """One entrant in its own process, which is its own session: Ctrl-C reaches it only through us."""
        place = self._place(entrant)
        place.mkdir(parents=True, exist_ok=True)
        job = {"name": entrant.name, "options": entrant.options, "fingerprint": self.fingerprint}
        (place / "result.json").unlink(missing_ok=True)
        write_file(place / "job.json", json.dumps({**job, "settings": asdict(self.settings)}).encode())
        command = [sys.executable, "-m", "regard.race.worker", str(place)]
        # On a busy machine threads that spin long at a barrier keep the ones they wait for from running; threads that
        # do not spin at all make every small operation slow on an idle one.
        environment = {"GOMP_SPINCOUNT": "10000", **os.environ}
        with (
            (place / "log.txt").open("ab") as log,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, env=environment, start_new_session=True
            ) as worker,
        ):
            told, stopped = dict[str, Any](), False
            try:
                self._listen(entrant, worker, told)
            except KeyboardInterrupt:
                stopped = True
                worker.terminate()
                with contextlib.suppress(KeyboardInterrupt):  # the second Ctrl-C does not wait for the checkpoint
                    self._listen(entrant, worker, told)
            finally:
                if worker.poll() is None:
                    worker.kill()
        return self._outcome(entrant, told, worker.returncode, stopped), stopped

    def _listen(self, entrant: Entrant, worker: "subprocess.Popen[bytes]", told: dict[str, Any]) -> None:
        """Pass events on until the worker ends; the one that tells the outcome is added to ``told``."""
        for event in _lines(worker):
            if event["kind"] == "outcome":
                told |= event
            else:
                self.watcher.event(entrant, event)
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(PATIENCE)

    def _outcome(self, entrant: Entrant, told: dict[str, Any], code: int, stopped: bool) -> Outcome:
        """What became of an entrant, from its last words and the way it ended."""
        if told.get("status") == "full disk":
            raise InputError(f"the disk is full: {told['error']}")
        outcome = self._known(entrant)
        if told.get("status") in ("finished", "interrupted"):
            return outcome
        if told:
            outcome.status, outcome.error = told["status"], told["error"]
        elif stopped:
            outcome.status, outcome.error = "interrupted", ""
        elif code < 0:
            name = signal.Signals(-code).name
            hint = "; the system does that when memory runs out" if -code == signal.SIGKILL else ""
            outcome.status, outcome.error = "killed", f"by signal {name}{hint}"
        else:
            log = self._place(entrant) / "log.txt"
            outcome.status, outcome.error = "crashed", f"its process ended with code {code}: see {log}"
        if outcome.status == "diverged":  # final: a resumed race need not find that out again
            write_file(self._place(entrant) / "result.json", json.dumps(asdict(outcome)).encode())
        return outcome

    def _known(self, entrant: Entrant) -> Outcome:
        """What the files in an entrant's folder tell: a result, or else the last checkpoint."""
        place = self._place(entrant)
        with contextlib.suppress(OSError, ValueError, TypeError):
            return Outcome(**json.loads((place / "result.json").read_bytes()))
        with contextlib.suppress(CheckpointError):
            if found := read_checkpoint(place):
                facts = found[1]
                names = ("curve", "evaluation_seconds", "resumed", "parameters", "memory")
                return Outcome(
                    entrant.label, "interrupted", **{name: facts[name] for name in names}, **facts["progress"]
                )
        return Outcome(entrant.label, "not started")

    def _place(self, entrant: Entrant) -> Path:
        return self.folder / "entrants" / entrant.slug


def _lines(worker: "subprocess.Popen[bytes]") -> Iterator[dict[str, Any]]:
    """The worker's events; a line that is cut off by its death is left out."""
    assert worker.stdout is not None
    for line in worker.stdout:
        with contextlib.suppress(ValueError):
            yield json.loads(line)
