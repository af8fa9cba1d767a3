"""How long to train: a number of steps, or seconds of training time; and the learning rate as a share of either."""

import math
import re
from dataclasses import dataclass

from regard.tasks.documents import InputError

WARM_UP, FLOOR = 0.1, 0.05
"""Share of the budget in which the rate rises, and the share of its peak at which it ends."""


@dataclass(frozen=True)
class Budget:
    """Either ``steps`` or ``seconds``; evaluation, checkpoints and start-up do not count.

    Example:
        >>> Budget(steps=4).spent(steps=1, seconds=9.0)
        0.25
    """

    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise InputError("give either --steps or --budget, not both")
        if (self.steps is not None and self.steps < 1) or (
            self.seconds is not None and not 0 < self.seconds < math.inf
        ):
            raise InputError(f"a budget of {self} is nothing to train in: --steps and --budget must be positive")

    def __str__(self) -> str:
        return f"{self.seconds:g} s" if self.steps is None else f"{self.steps:,} steps"

    def spent(self, *, steps: int, seconds: float) -> float:
        """The share that is used up; 1 or more means done."""
        if self.steps is not None:
            return steps / self.steps
        assert self.seconds is not None
        return seconds / self.seconds


def rate_factor(spent: float) -> float:
    """Linear warm-up, then half a cosine down to ``FLOOR``; depends on the share of the budget only.

    Example:
        >>> [round(rate_factor(share), 2) for share in (0.05, 0.1, 1.0)]
        [0.5, 1.0, 0.05]
    """
    if spent < WARM_UP:
        return spent / WARM_UP
    rest = min(1.0, (spent - WARM_UP) / (1 - WARM_UP))
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * rest))


def parse_seconds(text: str) -> float:
    """Seconds in "90", "60s", "1.5m" or "2h".

    Raises:
        InputError: anything else.

    Example:
        >>> parse_seconds("1.5m")
        90.0
    """
    match = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*(s|sec|m|min|h)?\s*", text)
    if match is None:
        raise InputError(f"--budget {text!r} is not a time: write 90, 60s, 2m or 1h")
    return float(match[1]) * {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}[match[2] or "s"]
