"""Rows in runs against all rows at once."""

import pytest
import torch
from torch.testing import assert_close

from regard.ops import row_runs
from regard.ops.row_runs import by_rows


def weigh(q, allowed, k, v):
    scores = q @ k.mT
    return (scores if allowed is None else scores.masked_fill(~allowed, -torch.inf)).softmax(-1) @ v


@pytest.fixture
def made(monkeypatch):
    """Seven queries, two a run, in training four; how many runs were formed."""
    monkeypatch.setattr(row_runs, "NUMBERS_AT_ONCE", 2 * 2 * 5)
    formed = []

    def form(q, *others):
        formed.append(q.shape[-2])
        return weigh(q, *others)

    q, k, v = (torch.randn(1, 2, n, 4, dtype=torch.float64, requires_grad=True) for n in (7, 5, 5))
    return form, formed, q, k, v


@pytest.mark.parametrize("allowed", [None, torch.ones(1, 1, 7, 5).tril(1).bool(), torch.ones(1, 1, 1, 5).bool()])
@pytest.mark.parametrize("again", [False, True])
def test_runs_are_the_whole(made, allowed, again):
    form, formed, *leaves = made
    q, k, v = leaves
    found, expected = by_rows(form, (q, allowed), (k, v), 2 * 5, again=again), weigh(q, allowed, k, v)
    assert formed == [4, 3]
    assert_close(found, expected, rtol=0, atol=1e-12)
    slopes = [torch.autograd.grad(out.square().sum(), leaves) for out in (found, expected)]
    assert_close(*slopes, rtol=0, atol=1e-12)
    assert sorted(formed) == sorted([4, 3] * (1 + again))


def test_without_gradients_nothing_is_formed_again(made):
    form, formed, q, k, v = made
    with torch.no_grad():
        by_rows(form, (q, None), (k, v), 2 * 5, again=True)
    assert formed == [2, 2, 2, 1]
