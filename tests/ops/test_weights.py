"""Weights over what may be seen: rows without anything, short floats, and queries before the first key."""

import torch
from torch.testing import assert_close

from regard.ops.weights import softmax_where, visible

CPU = torch.device("cpu")


def test_what_is_visible():
    assert visible(2, 3, device=CPU) is None
    mask = torch.tensor([[True, False, True]])
    assert_close(visible(2, 3, mask, device=CPU)[:, 0], mask[:, None])
    both = visible(4, 3, mask, causal=True, device=CPU)
    assert both[0, 0].int().tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 1]]


def test_a_row_without_keys_is_zero_and_gets_no_gradient():
    scores = torch.randn(1, 2, 3, 4, requires_grad=True)
    allowed = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()[None, None]
    weights = softmax_where(scores, allowed)
    assert not weights[:, :, 1].any()
    assert not weights.masked_select(~allowed).any()
    assert_close(weights[:, :, 0, [0, 2]], scores[:, :, 0, [0, 2]].softmax(-1))
    (slope,) = torch.autograd.grad((weights * torch.randn_like(weights)).sum(), scores)
    assert slope.isfinite().all()
    assert not slope[:, :, 1].any()


def test_short_floats_are_weighed_in_float32():
    scores = torch.randn(1, 1, 2, 300).half()
    assert_close(softmax_where(scores, None), scores.float().softmax(-1), rtol=0, atol=0)
