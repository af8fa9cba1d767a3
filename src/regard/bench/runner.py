"""Goes through the lengths: every entrant is first probed in a process of its own, then all take turns in this one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from regard.bench.probe import probe
from regard.bench.settings import Settings, format_length
from regard.bench.turns import Seconds, take_turns, workload
from regard.race.entrants import Entrant

HOPELESS = ("too slow", "out of memory")
"""Who ends like this at one length is not asked at greater ones."""


@dataclass
class Point:
    """One mechanism at one length.

    Attributes:
        length: tokens.
        status: "measured", "too slow", "out of memory", "crashed", "not tried" or "interrupted".
        error: why, where it was not measured.
        memory_bytes: the peak above the base, of one call in a fresh process.
        cpu_seconds, wall_seconds: medians of the turns.
        turns: how many there were.
    """

    length: int
    status: str = "interrupted"
    error: str = ""
    memory_bytes: int | None = None
    cpu_seconds: float | None = None
    wall_seconds: float | None = None
    turns: int = 0


class Runner:
    """The measurement of some entrants.

    Args:
        settings: of the benchmark.
        entrants: the first is dense attention.
        say: told what is going on, in one line.
        save: given this runner when something new was measured.

    Attributes:
        points: by the labels of the entrants.
    """

    def __init__(
        self,
        settings: Settings,
        entrants: Sequence[Entrant],
        say: Callable[[str], None],
        save: Callable[["Runner"], None],
    ) -> None:
        self.settings, self.entrants, self.say, self.save = settings, entrants, say, save
        self.points: dict[str, list[Point]] = {entrant.label: [] for entrant in entrants}
        self.interrupted = False

    def run(self) -> None:
        """Measure; Ctrl-C ends it, and what was measured until then stands."""
        torch.set_num_threads(self.settings.threads)
        try:
            for length in self.settings.lengths:
                self._probe(length)
                self._time(length)
                self.save(self)
        except KeyboardInterrupt:
            self.interrupted = True
            self.save(self)

    def _probe(self, length: int) -> None:
        """A point for each entrant: can it run, and in how much memory?"""
        for number, entrant in enumerate(self.entrants, 1):
            before = self.points[entrant.label]
            end = next((point for point in before if point.status in HOPELESS), None)
            if end is not None:
                reason = f"{end.status} at {format_length(end.length)} already"
                before.append(Point(length, "not tried", reason))
                continue
            self.say(f"{format_length(length)}: memory of {entrant.label}, {number} of {len(self.entrants)}")
            told = probe(entrant, length, self.settings)
            ran = told["status"] == "measured"
            before.append(Point(length, "interrupted" if ran else told["status"], told["error"]))
            before[-1].memory_bytes = told.get("memory_bytes")

    def _time(self, length: int) -> None:
        """Let those who can run take turns."""
        points = {label: points[-1] for label, points in self.points.items() if points[-1].status == "interrupted"}
        self.say(f"{format_length(length)}: time of {len(points)}, in {self.settings.rounds} rounds")
        seconds = dict[str, Seconds]()
        builders = {
            entrant.label: partial(workload, entrant, length, self.settings)
            for entrant in self.entrants
            if entrant.label in points
        }
        try:
            take_turns(builders, self.settings.rounds, seconds)
        finally:
            for label, found in seconds.items():
                _note(points[label], found)


def _note(point: Point, seconds: Seconds) -> None:
    """Write into a point what its turns gave."""
    if seconds.error:
        point.status, point.error = "crashed", seconds.error
    elif seconds.cpu:
        point.status, point.turns = "measured", len(seconds.cpu)
        point.cpu_seconds, point.wall_seconds = seconds.medians
