"""Who wins, and whether that can be told at all: a paired bootstrap over held-out documents."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regard.race.outcome import Outcome
from regard.tasks.task import Metric

RESAMPLES, LEAST_DOCUMENTS = 10_000, 5


@dataclass(frozen=True)
class Difference:
    """How much worse an entrant is than the best, with a 95 % interval; positive means worse.

    ``separated`` says that the interval lies above zero, ``over`` what was resampled.
    """

    label: str
    value: float
    low: float
    high: float
    over: str

    @property
    def separated(self) -> bool:
        """Is the difference larger than chance explains?"""
        return self.low > 0


@dataclass(frozen=True)
class Verdict:
    """The choice.

    Attributes:
        pick: the label of the entrant to take; empty if nobody finished.
        measured: True where the pick is better than everybody else, False where cost decided among equals.
        reason: a sentence.
        differences: of all others to the best, in the order of quality.
    """

    pick: str
    measured: bool
    reason: str
    differences: tuple[Difference, ...] = ()


def judge(outcomes: Sequence[Outcome], metric: Metric, seed: int = 0, control: str = "") -> Verdict:
    """Choose among those that finished: the best if it is measurably better, else the cheapest of its equals.

    ``control`` is the label of the model without attention: it is not chosen, but what it reaches is told.
    """
    finished = ranked(outcomes, metric)
    contenders = [outcome for outcome in finished if outcome.label != control]
    verdict = _choose(contenders, metric, seed)
    without = next((outcome for outcome in finished if outcome.label == control), None)
    if without is None or not contenders:
        return verdict
    gap = difference(contenders[0], without, metric, seed)
    reached = f"without attention the same model reaches {without.quality:.{metric.digits}f}"
    if not gap.separated:
        reached = f"but attention has gained nothing yet: {reached}; give a larger --budget to choose by quality"
    return replace(verdict, reason=f"{verdict.reason}; {reached}", differences=(*verdict.differences, gap))


def _choose(finished: Sequence[Outcome], metric: Metric, seed: int) -> Verdict:
    if not finished:
        return Verdict("", False, "nobody finished")
    best, *others = finished
    if not others:
        return Verdict(best.label, False, "it is the only one that finished")
    differences = tuple(difference(best, other, metric, seed) for other in others)
    equal = [other for other, gap in zip(others, differences, strict=True) if not gap.separated]
    if not equal or differences[0].separated:
        gap = differences[0]
        reason = (
            f"the best held-out {metric.name}, {best.quality:.{metric.digits}f}: {gap.value:.{metric.digits}f} ahead "
            f"of {gap.label} (95 % interval {gap.low:.{metric.digits}f} to {gap.high:.{metric.digits}f} {gap.over})"
        )
        return Verdict(best.label, True, reason, differences)
    group = [best, *equal]
    cheapest = min(group, key=cost)
    names = ", ".join(outcome.label for outcome in group)
    reason = (
        f"no measurable difference in this budget between {names} (95 %, paired bootstrap {differences[0].over}); "
        f"of these it is the cheapest: {speed(cheapest):,.0f} training positions/s, {cheapest_memory(cheapest)}"
    )
    return Verdict(cheapest.label, False, reason, differences)


def ranked(outcomes: Sequence[Outcome], metric: Metric) -> list[Outcome]:
    """Those that finished, best first; equal quality by cost."""
    finished = [outcome for outcome in outcomes if outcome.status == "finished" and outcome.quality is not None]
    sign = 1 if metric.lower_is_better else -1
    return sorted(finished, key=lambda outcome: (sign * (outcome.quality or 0.0), *cost(outcome)))


def difference(best: Outcome, other: Outcome, metric: Metric, seed: int = 0) -> Difference:
    """Resample documents with both entrants' scores on them (examples, where there are fewer than five documents)."""
    names = [name for name, _, _ in best.units]
    if names != [name for name, _, _ in other.units]:
        raise ValueError(f"{best.label} and {other.label} were judged on different examples")
    sign = 1.0 if metric.lower_is_better else -1.0
    groups = {name: number for number, name in enumerate(dict.fromkeys(names))}
    documents = len(groups) >= LEAST_DOCUMENTS
    index = torch.tensor([groups[name] for name in names]) if documents else torch.arange(len(names))
    size = int(index.max()) + 1
    gap = [sign * (theirs[1] - ours[1]) for ours, theirs in zip(best.units, other.units, strict=True)]
    gaps, amounts = (
        torch.zeros(size, dtype=torch.double).index_add_(0, index, torch.tensor(values, dtype=torch.double))
        for values in (gap, [amount for _, _, amount in best.units])
    )
    low, high = _interval(gaps, amounts, seed)
    items = metric.items if len(groups) > 1 else metric.items.removesuffix("s")
    over = f"over {size:,} {items}" if documents else f"over {size:,} pieces of {len(groups)} {items}"
    return Difference(other.label, float(gaps.sum() / amounts.sum()), low, high, over)


def _interval(gaps: Tensor, amounts: Tensor, seed: int) -> tuple[float, float]:
    """The middle 95 % of the mean gap over resampled documents."""
    generator = torch.Generator().manual_seed(seed)
    means: list[Tensor] = []
    rows = max(1, 4_000_000 // len(gaps))
    for first in range(0, RESAMPLES, rows):
        drawn = torch.randint(len(gaps), (min(rows, RESAMPLES - first), len(gaps)), generator=generator)
        means.append(gaps[drawn].sum(1) / amounts[drawn].sum(1))
    low, high = torch.quantile(torch.cat(means), torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return low, high


def speed(outcome: Outcome) -> float:
    """Training tokens per second."""
    return outcome.tokens / outcome.seconds if outcome.seconds else 0.0


def memory(outcome: Outcome) -> int:
    """Bytes that training took: on the accelerator if there was one, else the process's peak above its base."""
    return outcome.memory.get("device") or max(0, outcome.memory.get("peak", 0) - outcome.memory.get("base", 0))


def cost(outcome: Outcome) -> tuple[float, int]:
    """What decides among equals: time per token (to two digits, finer is noise), then memory."""
    return float(f"{1 / max(speed(outcome), 1e-9):.2g}"), memory(outcome)


def cheapest_memory(outcome: Outcome) -> str:
    """Memory in words."""
    return f"{memory(outcome) / 1e6:,.0f} MB above the base"
