"""The floor of a call: what its matrix products and its traffic with the memory would take at this machine's rates.

A cost is counted from the mechanism's card: floating-point operations of the products that its formula needs, and bytes
that must be read or written at least once because they do not fit in a cache. The rates are measured in the process and
in the rounds in which the mechanism is: products of 1024 x 1024 matrices, and copies of 64 MB.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

SIDE, COPIED = 1024, 1 << 26
BACKWARD = 3
"""A pass with backward has three products for each of the forward's, and moves three times as much."""

Run = Callable[[], object]


@dataclass(frozen=True)
class Cost:
    """What a forward pass cannot do without.

    Attributes:
        products: floating-point operations of matrix products; a multiplication and an addition are two.
        moved: bytes read and written.
    """

    products: float
    moved: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.products + other.products, self.moved + other.moved)


@dataclass(frozen=True)
class Rates:
    """Of this machine, with the threads that torch has.

    Attributes:
        products: floating-point operations a second.
        moved: bytes a second, read and written ones together.
    """

    products: float
    moved: float

    def floor(self, cost: Cost, backward: bool) -> float:
        """Seconds."""
        return (BACKWARD if backward else 1) * (cost.products / self.products + cost.moved / self.moved)


def medians(runs: Mapping[str, Run], rounds: int) -> tuple[dict[str, float], Rates]:
    """Median CPU seconds of each run, and the rates; one round runs all of them and measures both."""
    square, source = torch.randn(SIDE, SIDE), torch.ones(COPIED // 4)
    target = torch.empty_like(source)
    yardsticks: dict[str, Run] = {"": lambda: square @ square, " ": lambda: target.copy_(source)}
    seconds: dict[str, list[float]] = {name: [] for name in (*runs, *yardsticks)}
    for number in range(rounds + 1):
        for name, run in (*runs.items(), *yardsticks.items()):
            start = time.process_time()
            run()
            if number:  # the first round warms up
                seconds[name].append(time.process_time() - start)
    found = {name: statistics.median(times) for name, times in seconds.items()}
    rates = Rates(2 * SIDE**3 / found.pop(""), 2 * COPIED / found.pop(" "))
    return found, rates
