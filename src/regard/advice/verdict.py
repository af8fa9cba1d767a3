"""What follows from measurements: who is fast, by how much, and whether that is more than noise."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from regard.advice.measuring import Point
from regard.bench.curves import crossover
from regard.race.entrants import YARDSTICK

WORTH = 0.1
"""A smaller lead over plain softmax is not worth another function."""

PLAIN = f"plain softmax ({YARDSTICK})"


@dataclass(frozen=True)
class Row:
    """One candidate at the asked length.

    Attributes:
        label: NAME or NAME:option=value,...; "full" is plain softmax.
        status: "measured", "over memory" or "over time" (measured, but beyond the limits given), those of
            :class:`regard.advice.measuring.Point`, or "cannot".
        seconds: of one call, the median of the rounds.
        relative: the median over the rounds of its time in plain softmax's.
        spread: the range of that share over the rounds.
        memory_bytes: the peak of one call above the base, weights and input included.
        crossover: in words, from which length on it is faster than plain softmax.
        reason: where it was not measured, why.
    """

    label: str
    status: str
    seconds: float | None = None
    relative: float | None = None
    spread: float | None = None
    memory_bytes: int | None = None
    crossover: str = ""
    reason: str = ""

    @property
    def clear(self) -> bool:
        """Whether it is faster than plain softmax by more than the spread of the rounds, and by enough to matter."""
        if self.relative is None or self.spread is None:
            return False
        return 1 - self.relative > max(self.spread, WORTH)


def rows_of(
    points: Mapping[str, Mapping[int, Point]],
    absent: Iterable[tuple[str, str]],
    length: int,
    *,
    max_memory: int | None,
    max_seconds: float | None,
) -> tuple[Row, ...]:
    """A row for everybody: who was measured within the limits, fastest first; then the others.

    Args:
        points: by label and length; plain softmax is among them.
        absent: (label, reason) of those who did not come into question.
        length: the asked one.
        max_memory, max_seconds: of one call; None: no limit.
    """
    plain = points[YARDSTICK]
    found = [_row(label, mine, plain, length, max_memory, max_seconds) for label, mine in points.items()]
    found.sort(key=lambda row: (row.status != "measured", row.seconds is None, row.seconds or 0.0))
    return (*found, *(Row(label, "cannot", reason=reason) for label, reason in absent))


def decide(rows: tuple[Row, ...], where: str) -> tuple[str, str]:
    """The label to take, empty where nothing can be named, and the reason in one or two sentences.

    Args:
        rows: of :func:`rows_of`.
        where: the asked length in words.
    """
    plain = next(row for row in rows if row.label == YARDSTICK)
    fitting = [row for row in rows if row.status == "measured"]
    others = [row for row in fitting if row.label != YARDSTICK]
    waiting = sum(row.status == "no room" for row in rows)
    more = f" {waiting} found no room in the budget of measuring: a larger one may tell more." if waiting else ""
    if not fitting:
        if plain.status == "interrupted":
            return "", f"Nothing was measured at {where}."
        return "", f"Nothing that was measured at {where} stays within the limits; {PLAIN}: {_why(plain)}." + more
    if plain.status != "measured":
        best = others[0]
        return best.label, f"{best.label} is the fastest within the limits at {where}; {PLAIN}: {_why(plain)}." + more
    clear = [row for row in others if row.clear]
    if clear:
        return clear[0].label, _lead(clear[0], where) + more
    if not others:
        return YARDSTICK, f"{PLAIN}: nothing else was measured within the limits at {where}." + more
    words = f"{PLAIN}: nothing else is clearly faster at {where}."
    if others[0].relative is not None and others[0].spread is not None:
        nearest = others[0]
        words += f" {nearest.label} comes nearest, with {nearest.relative:.2f} of its time"
        words += f" (the rounds spread by {nearest.spread:.2f}; under {WORTH:.0%} would not be worth it)."
    return YARDSTICK, words + more


def _row(
    label: str,
    mine: Mapping[int, Point],
    plain: Mapping[int, Point],
    length: int,
    max_memory: int | None,
    max_seconds: float | None,
) -> Row:
    point = mine.get(length, Point())
    crossed = "" if label == YARDSTICK else crossover(_seconds(mine), _seconds(plain)).words
    reason = point.error
    if point.status == "interrupted" and mine:
        last = mine[max(mine)]
        reason = last.error if last.status != "measured" else ""
    if point.status != "measured" or point.seconds is None:
        return Row(label, point.status, memory_bytes=point.memory_bytes, crossover=crossed, reason=reason)
    shares = [a / b for a, b in zip(point.turns, plain[length].turns, strict=False)] if length in plain else []
    status = "measured"
    if max_memory is not None and (point.memory_bytes or 0) > max_memory:
        status, reason = "over memory", f"{size(point.memory_bytes or 0)} of {size(max_memory)}"
    elif max_seconds is not None and point.seconds > max_seconds:
        status, reason = "over time", f"{point.seconds:.3g} s of {max_seconds:g} s"
    return Row(
        label,
        status,
        seconds=point.seconds,
        relative=median(shares) if shares else None,
        spread=max(shares) - min(shares) if shares else None,
        memory_bytes=point.memory_bytes,
        crossover=crossed,
        reason=reason,
    )


def _lead(row: Row, where: str) -> str:
    assert row.relative is not None
    words = f"{row.label} takes {row.relative:.2f} of the time of {PLAIN} at {where}"
    words += f"; its lead is larger than the spread of the rounds, {row.spread:.2f}."
    return words + (f" It is faster from {row.crossover} on." if row.crossover[:1].isdigit() else "")


def _why(plain: Row) -> str:
    return f"{plain.status} ({plain.reason})" if plain.reason else plain.status


def _seconds(found: Mapping[int, Point]) -> dict[int, float]:
    return {length: point.seconds for length, point in found.items() if point.status == "measured" and point.seconds}


def size(count: int) -> str:
    """An amount of memory in short.

    Example:
        >>> size(4_000_000_000), size(1_234_000)
        ('4 GB', '1.23 MB')
    """
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
