"""Offsets as features against a look-up for each pair; windows that leave the image, and their zeros."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from regard.ops.grid_offsets import AxisWindows, by_remainder, outside_lse, with_offsets

SIDES, SPANS = (5, 4), (3, 4)


@pytest.fixture
def windows():
    """Of every row and column, the query at any place."""
    return tuple(AxisWindows(torch.arange(side) - 1, span, side) for side, span in zip(SIDES, SPANS, strict=True))


def test_every_remainder_has_one_place_of_the_window(windows):
    for axis in windows:
        for start, places in zip(axis.start.tolist(), axis.places.tolist(), strict=True):
            assert sorted(places) == list(range(start, start + axis.span))
            assert [place % axis.span for place in places] == list(range(axis.span))


def test_products_know_offsets(windows):
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 3, *SIDES, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    rows, columns = (torch.randn(2, 3, *SIDES, span, generator=generator, dtype=torch.float64) for span in SPANS)
    found = (by_remainder(t, w.steps, axis) for axis, (t, w) in enumerate(zip((rows, columns), windows, strict=True)))
    wide_q, wide_k = with_offsets(q, k, *found)
    for y, x, i, j in itertools.product(*map(range, (*SIDES, *SIDES))):
        a, c = i - y + 1, j - x + 1
        if 0 <= a < SPANS[0] and 0 <= c < SPANS[1]:
            expected = (q[:, :, y, x] * k[:, :, i, j]).sum(-1) + rows[:, :, y, x, a] + columns[:, :, y, x, c]
            assert_close((wide_q[:, :, y, x] * wide_k[:, :, i, j]).sum(-1), expected)


def test_sums_over_what_is_outside(windows):
    generator = torch.Generator().manual_seed(1)
    rows, columns = (torch.randn(1, 2, *SIDES, span, generator=generator, dtype=torch.float64) for span in SPANS)
    rows.requires_grad_()
    found = outside_lse(rows, columns, windows)
    row_places, column_places = (axis.places for axis in windows)
    for y, x in itertools.product(*map(range, SIDES)):
        beyond = [
            rows[0, :, y, x, r] + columns[0, :, y, x, c]
            for r, c in itertools.product(*map(range, SPANS))
            if not (0 <= row_places[y, r] < SIDES[0] and 0 <= column_places[x, c] < SIDES[1])
        ]
        if beyond:
            assert_close(found[0, :, y, x], torch.stack(beyond).logsumexp(0))
        else:
            assert torch.sigmoid(-found[0, :, y, x]).eq(1).all()
    (gradient,) = torch.autograd.grad(torch.sigmoid(-found).sum(), rows)
    assert gradient.isfinite().all()
    assert not gradient[:, :, 2, 1].any(), "a window inside has nothing outside"
