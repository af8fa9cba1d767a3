"""In which order and how often: shorter lengths first, without those who cannot win, and all in a budget of time."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from regard.advice.question import Question, facts
from regard.advice.workshop import Workshop
from regard.bench.curves import exponent
from regard.bench.settings import format_length
from regard.race.entrants import YARDSTICK, Entrant

ROUNDS, SHORT_ROUNDS = (3, 7), 2
"""The fewest and the most turns of each at the asked length, and those at the shorter ones."""

WARM = 2
"""Calls of each before its turns: one builds what is built once, one is timed."""

SHORT_SHARE = 0.25
"""Of the budget, for each of the shorter lengths."""

GROWTH = 1.5
"""The exponent of time in length that is assumed of somebody who was measured at one length only."""

SLACK = 1.5
"""An estimate may be wrong by so much before somebody is left out by it."""


@dataclass
class Point:
    """One mechanism at one length.

    Attributes:
        status: "measured", "too slow", "out of memory", "crashed", "left out" (too far behind), "no room" (in the
            budget) or "interrupted".
        error: why, where it was not measured.
        memory_bytes: the peak of one call above the base, alone in a process; at the asked length only.
        turns: seconds a call, round by round; entrants of one length are compared within a round.
    """

    status: str = "interrupted"
    error: str = ""
    memory_bytes: int | None = None
    turns: list[float] = field(default_factory=list[float])

    @property
    def seconds(self) -> float | None:
        """The median of the turns."""
        return median(self.turns) if self.turns else None


class Measuring:
    """The measuring of one question.

    Args:
        question: what is asked.
        entrants: plain softmax first.
        say: told in one line what is going on.
        workshop: does it.

    Attributes:
        points: by label and length.
        interrupted: Ctrl-C ended it; what was measured until then stands.
    """

    def __init__(
        self, question: Question, entrants: Sequence[Entrant], say: Callable[[str], None], workshop: Workshop
    ) -> None:
        self.question, self.entrants, self.say, self.workshop = question, list(entrants), say, workshop
        self.points: dict[str, dict[int, Point]] = {entrant.label: {} for entrant in entrants}
        self.interrupted = False
        self._end = math.inf

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self._end - time.monotonic()

    def run(self) -> None:
        """Measure at each length, the asked one last."""
        try:
            self.say("starting")
            self.workshop.open()
            self._end = time.monotonic() + self.question.budget
            *shorter, asked = self.question.sizes()
            for size in shorter:
                self._short(size)
            self._asked(asked)
        except KeyboardInterrupt:
            self.interrupted = True

    def _short(self, size: Question) -> None:
        """Turns of those who could still win, as many as a share of the budget has room for."""
        room = min(self.left, SHORT_SHARE * self.question.budget)
        chosen, sum_ = list[Entrant](), 0.0
        for entrant in self._contenders(size):
            sum_ += self._estimate(entrant.label, size.length) or 0.0
            if (WARM + SHORT_ROUNDS) * sum_ > room and entrant.label != YARDSTICK:
                self._no_room(entrant, size)
            else:
                chosen.append(entrant)
        self._turns(chosen, size, SHORT_ROUNDS, room * SLACK)

    def _asked(self, size: Question) -> None:
        """Everybody once alone, for memory, as long as there is room for turns as well; then the turns."""
        able, sum_ = list[Entrant](), 0.0
        entrants = self._contenders(size)
        for number, entrant in enumerate(entrants, 1):
            point = self.points[entrant.label][size.length]
            expected = self._estimate(entrant.label, size.length) or 0.0
            if expected + (WARM + ROUNDS[0]) * (sum_ + expected) > self.left * SLACK:
                self._no_room(entrant, size)
                continue
            self.say(f"{size.where}: memory of {entrant.label}, {number} of {len(entrants)}")
            told = self._do("probe", [entrant], size, limit=max(1.0, self.left))
            point.memory_bytes = told.get("memory_bytes")
            if told["status"] != "measured":
                point.status, point.error = told["status"], told["error"]
            elif (WARM + ROUNDS[0]) * (sum_ + told["seconds"]) > self.left * SLACK:
                self._no_room(entrant, size)
            else:
                able.append(entrant)
                sum_ += told["seconds"]
        rounds = int(self.left / sum_ - WARM) if sum_ else 0
        rounds = min(ROUNDS[1], max(ROUNDS[0], rounds))
        self._turns(able, size, rounds, max(self.left, (WARM + rounds) * sum_) * SLACK)

    def _contenders(self, size: Question) -> list[Entrant]:
        """Open a point for everybody; returns those who can still win, plain softmax first, then by expected time."""
        found: list[Entrant] = []
        for entrant in self.entrants:
            reason = self._hopeless(entrant.label)
            self.points[entrant.label][size.length] = Point("left out", reason) if reason else Point()
            if not reason:
                found.append(entrant)
        expected = {entrant.label: self._estimate(entrant.label, size.length) for entrant in found}
        return sorted(found, key=lambda entrant: (entrant.label != YARDSTICK, expected[entrant.label] or math.inf))

    def _turns(self, entrants: list[Entrant], size: Question, rounds: int, limit: float) -> None:
        if limit <= 0:
            for entrant in entrants:
                self._no_room(entrant, size)
            return
        if not entrants:
            return
        self.say(f"{size.where}: time of {len(entrants)}, in {rounds} rounds")
        told = self._do("turns", entrants, size, limit=limit, rounds=rounds)
        for entrant in entrants:
            point, found = self.points[entrant.label][size.length], told.get("seconds", {}).get(entrant.label, {})
            point.turns = found.get(self.question.clock, [])
            if "status" in told or found.get("error"):
                point.status, point.error = "crashed", found.get("error") or told["error"]
            elif point.turns:
                point.status = "measured"
            else:
                self._no_room(entrant, size)

    def _do(self, kind: str, entrants: list[Entrant], size: Question, **given: Any) -> dict[str, Any]:
        who = [[entrant.name, entrant.options] for entrant in entrants]
        return self.workshop.do({"kind": kind, "entrants": who, "question": facts(size), **given})

    def _no_room(self, entrant: Entrant, size: Question) -> None:
        point = self.points[entrant.label][size.length]
        point.status, point.error = "no room", f"no room at {size.where} in the budget of {self.question.budget:g} s"

    def _hopeless(self, label: str) -> str:
        """Why this one cannot be faster than plain softmax at the asked length, even if it grew no faster than length.

        Whoever was named is measured in any case.
        """
        mine, plain = self._measured(label), self._measured(YARDSTICK)
        common = sorted(mine.keys() & plain.keys())
        if label == YARDSTICK or self.question.mechanisms or not common:
            return ""
        last = common[-1]
        best, worst = exponent({n: mine[n] for n in common}), exponent({n: plain[n] for n in common})
        gain = (worst.value if worst else 2.0) - (min(1.0, best.value) if best else 1.0)
        if mine[last] / plain[last] <= SLACK * (self.question.length / last) ** gain:
            return ""
        return f"too far behind plain softmax at {format_length(last)}"

    def _estimate(self, label: str, length: int) -> float | None:
        """Seconds at a length from those at shorter ones."""
        mine = self._measured(label)
        if not mine:
            return None
        last, fitted = max(mine), exponent(mine)
        return mine[last] * (length / last) ** (max(0.0, fitted.value) if fitted else GROWTH)

    def _measured(self, label: str) -> dict[int, float]:
        found = self.points[label].items()
        return {length: point.seconds for length, point in found if point.status == "measured" and point.seconds}
