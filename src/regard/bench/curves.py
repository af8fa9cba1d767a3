"""What a few measured lengths say about growth: an exponent, and where a mechanism overtakes dense attention."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from regard.bench.settings import format_length

LARGEST = 3
"""How many of the largest lengths an exponent is fitted to: at short ones the projections still hide the growth."""


@dataclass(frozen=True)
class Exponent:
    """seconds ~ length ** value, fitted to ``lengths``."""

    value: float
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Crossover:
    """From which length on a mechanism is faster than dense attention.

    Attributes:
        length: interpolated; None where it lies outside the measured lengths, or nothing can be compared.
        words: for people, such as "1480", "below 1k" or "not up to 16k"; empty where nothing can be compared.
    """

    length: float | None
    words: str


def exponent(seconds: Mapping[int, float]) -> Exponent | None:
    """The slope of the least-squares line through log seconds over log length, at the three largest lengths.

    Args:
        seconds: by length.

    Returns:
        The exponent, or None where there are fewer than two lengths.

    Example:
        >>> exponent({1: 5.0, 10: 5.0, 100: 500.0, 1000: 50000.0})
        Exponent(value=2.0, lengths=(10, 100, 1000))
    """
    lengths = tuple(sorted(seconds)[-LARGEST:])
    if len(lengths) < 2:
        return None
    x, y = [math.log(length) for length in lengths], [math.log(seconds[length]) for length in lengths]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
    return Exponent(round(slope, 6), lengths)


def crossover(seconds: Mapping[int, float], dense: Mapping[int, float]) -> Crossover:
    """Where the curve of a mechanism falls below that of dense attention for the last time.

    Both curves are straight lines between measured lengths, on logarithmic axes.

    Args:
        seconds, dense: by length; lengths that only one of them has are left out.

    Example:
        >>> crossover({1024: 4.0, 4096: 16.0}, {1024: 1.0, 4096: 16.0 * 4}).words
        '2k'
        >>> crossover({1024: 1.0}, {1024: 4.0}).words
        'below 1k'
    """
    lengths = sorted(seconds.keys() & dense.keys())
    if not lengths:
        return Crossover(None, "")
    gaps = [math.log(seconds[length] / dense[length]) for length in lengths]
    if gaps[-1] >= 0:
        return Crossover(None, f"not up to {format_length(lengths[-1])}")
    slower = [place for place, gap in enumerate(gaps) if gap >= 0]
    if not slower:
        return Crossover(None, f"below {format_length(lengths[0])}")
    last = slower[-1]
    share = gaps[last] / (gaps[last] - gaps[last + 1])
    length = math.exp((1 - share) * math.log(lengths[last]) + share * math.log(lengths[last + 1]))
    return Crossover(length, format_length(length))
