"""The best of scored label sequences, where equals come in the order of their labels.

Two scores are equal if they differ by rounding only: the same sum, formed in two places of a tensor, may differ in its
last digit, and which of two symmetric sequences a search keeps must not hang on that.
"""

import math
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

ROUNDING = 1e-12
"""Relative to the size of scores: what two equal ones in float64 may differ by; in float32 more is needed."""


class Scored(Protocol):
    """Labels with a score."""

    @property
    def score(self) -> float:
        """The greater, the better."""
        ...

    @property
    def labels(self) -> tuple[int, ...]:
        """What decides between equals."""
        ...


_Some = TypeVar("_Some", bound=Scored)


def in_order(some: list[_Some], rounding: float = ROUNDING) -> list[_Some]:
    """The best first; equals in the order of their labels.

    Args:
        some: what is to be sorted.
        rounding: scores that differ by less, relative to 1 + their size, are equal.
    """
    found = sorted(some, key=lambda one: -one.score)
    start = 0
    for number in range(1, len(found) + 1):
        before = found[number - 1].score
        if number == len(found) or found[number].score < before - rounding * (1 + abs(before)):
            found[start:number] = sorted(found[start:number], key=lambda one: one.labels)
            start = number
    return found


def best_places(
    score: Float[Tensor, "B N"], width: int, labels: Callable[[int, int], tuple[int, ...]]
) -> tuple[Float[Tensor, "B W"], Int[Tensor, "B W"]]:
    """The W best of N candidates of each row, and where they stand, in no order; -inf where there are fewer.

    Args:
        score: of each candidate; -inf is none.
        width: W.
        labels: (row, place) -> the labels of a candidate; asked for where equals compete for the last places.

    Example:
        >>> best_places(torch.tensor([[1.0, 2.0, 1.0, 0.0]]), 2, lambda row, place: (9 - place,))[1]
        tensor([[1, 2]])
    """
    count = score.shape[1]
    score = F.pad(score, (0, max(0, width + 1 - count)), value=-math.inf)
    values, places = score.topk(width + 1, 1)
    rounding = max(ROUNDING, 4 * torch.finfo(score.dtype).eps)
    worst = values[:, width - 1]
    margin = rounding * (1 + worst.abs())
    tied = (values[:, width] >= worst - margin) & (values[:, width] > -math.inf)
    values, places = values[:, :width], places[:, :width]
    for row in tied.nonzero().flatten().tolist():
        sure = (score[row] > worst[row] + margin[row]).nonzero().flatten().tolist()
        equal = (score[row] >= worst[row] - margin[row]).nonzero().flatten().tolist()
        said = {place: labels(row, place) for place in {*equal} - {*sure}}
        equal = sorted(said, key=said.__getitem__)
        places[row] = torch.tensor((sure + equal)[:width], device=places.device)
        values[row] = score[row][places[row]]
    return values, places.clamp(max=max(0, count - 1))
