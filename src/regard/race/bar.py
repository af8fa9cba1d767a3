"""What must be beaten before anything counts as learned: some tasks are half solved by looking at one token."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from regard.race.discipline import Prepared
from regard.race.outcome import Outcome

STANDARD_ERRORS = 3.0
"""How far above the bar an accuracy must be. With 2, one in 44 entrants that learned nothing would pass by luck, which
with nine of them is one race in five; with 3 it is one entrant in 740."""


@dataclass(frozen=True)
class Bar:
    """A baseline, its quality on the test part, and the margin that chance allows beyond it.

    ``margin`` is three binomial standard errors, sqrt(p (1 - p) / n), of an accuracy p on n independent items; where
    less is better, as of bits per byte, it is 0: how far such numbers vary by chance the baseline alone does not tell.
    """

    baseline: str
    value: float
    margin: float
    items: int
    lower_is_better: bool = False

    def cleared(self, quality: float) -> bool:
        """Is this more than the baseline and chance together explain?

        Example:
            >>> [Bar("majority", 0.5, 0.03, 2500).cleared(accuracy) for accuracy in (0.52, 0.54)]
            [False, True]
            >>> Bar("no source", 1.4, 0.0, 1000, lower_is_better=True).cleared(1.5)
            False
        """
        return (self.value - quality if self.lower_is_better else quality - self.value) > self.margin

    def warning(self, outcomes: Iterable[Outcome]) -> str:
        """What has to be said behind the pick if nobody has learned anything; else nothing."""
        if any(outcome.quality is not None and self.cleared(outcome.quality) for outcome in outcomes):
            return ""
        chance = f", and within {self.margin:.3f} of it is chance" if self.margin else ""
        return (
            f"; but nobody has learned anything yet: the baseline {self.baseline!r} reaches {self.value:.3f}{chance}; "
            "give a larger --budget to choose by quality"
        )


def bar_of(prepared: Prepared, baselines: Mapping[str, float | None]) -> Bar | None:
    """The bar of a task, or None if it has none or it was not measured."""
    value = baselines.get(prepared.bar)
    if value is None:
        return None
    items, lower = prepared.sizes["test"][0], prepared.task.metric.lower_is_better
    margin = 0.0 if lower else STANDARD_ERRORS * math.sqrt(value * (1 - value) / items)
    return Bar(prepared.bar, value, margin, items, lower)
