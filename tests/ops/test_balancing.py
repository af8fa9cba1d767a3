"""Balancing by the definition, in ordinary numbers, and what a causal row may know."""

import pytest
import torch
from torch.testing import assert_close

from regard.ops.balancing import balance


def by_hand(logits, iterations, allowed, causal):
    s = logits.exp() * allowed
    for _ in range(iterations):
        for i in range(len(s)):
            if s[i].sum() > 0:
                s[i] = s[i] / s[i].sum()
        old = s.clone()
        for i in range(len(s)):
            for j in range(s.shape[1]):
                total = old[: i + 1, j].sum() if causal else old[:, j].sum()
                s[i, j] = old[i, j] / total if old[i, j] > 0 else 0.0
    return s


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("iterations", [1, 5])
def test_matches_the_definition(causal, iterations):
    logits = torch.randn(6, 6, dtype=torch.float64)
    allowed = torch.ones(6, 6, dtype=torch.bool)
    allowed = allowed.tril(-1) if causal else allowed
    if not causal:
        allowed[4:], allowed[:, 4:] = False, False
    found = balance(logits, iterations, allowed, causal=causal)
    assert_close(found, by_hand(logits, iterations, allowed, causal), rtol=0, atol=1e-12)
    assert not found[~allowed].any()


def test_what_is_hidden_changes_nothing_and_has_no_gradient():
    logits = torch.randn(2, 5, 5, dtype=torch.float64, requires_grad=True)
    allowed = torch.zeros(5, 5, dtype=torch.bool)
    allowed[:3, :3] = True
    found = balance(logits, 5, allowed)
    assert_close(found[:, :3, :3], balance(logits[:, :3, :3], 5), rtol=0, atol=1e-12)
    (slope,) = torch.autograd.grad((found * torch.randn_like(found)).sum(), logits)
    assert slope.isfinite().all()
    assert not slope[:, ~allowed].any()


def test_a_causal_row_depends_on_no_later_row():
    logits = torch.randn(6, 6)
    below = torch.ones(6, 6, dtype=torch.bool).tril(-1)
    changed = logits.clone()
    changed[4:] = torch.randn(2, 6)
    first, second = (balance(t, 5, below, causal=True) for t in (logits, changed))
    assert_close(first[:4], second[:4], rtol=0, atol=0)
    assert not torch.allclose(first[4:], second[4:])


def test_half_precision_is_balanced_in_float32():
    logits = torch.randn(8, 8).half()
    assert_close(balance(logits, 5), balance(logits.float(), 5), rtol=0, atol=0)


def test_large_logits_are_a_permutation():
    order = torch.tensor([2, 0, 1])
    found = balance(200.0 * torch.eye(3)[order], 5)
    assert_close(found, torch.eye(3)[order])
