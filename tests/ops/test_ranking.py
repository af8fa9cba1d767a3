"""Equals go by their labels, up to rounding."""

import math
from typing import NamedTuple

import torch

from regard.ops.ranking import best_places, in_order


class One(NamedTuple):
    score: float
    labels: tuple[int, ...]


def test_order():
    given = [One(-2.0, (1,)), One(-1.0, (2, 1)), One(-1.0 - 1e-15, (2,)), One(-1.0 + 1e-9, (9,)), One(-math.inf, ())]
    assert [one.labels for one in in_order(given)] == [(9,), (2,), (2, 1), (1,), ()]


def test_places():
    score = torch.tensor([[1.0, 3.0, 1.0 + 1e-14, 1.0, 0.0], [-math.inf, 1.0, 2.0, -math.inf, -math.inf]]).double()
    values, places = best_places(score, 3, lambda row, place: (-place,))
    assert sorted(places[0].tolist()) == [1, 2, 3]
    assert sorted(places[1, :2].tolist()) == [1, 2]
    assert values[1].tolist() == [2.0, 1.0, -math.inf]
    values, places = best_places(score[:1, :2], 4, lambda row, place: ())
    assert values.tolist() == [[3.0, 1.0, -math.inf, -math.inf]]
    assert places.max() == 1
