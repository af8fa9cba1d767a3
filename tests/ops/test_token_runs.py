"""Tokens in runs against all tokens at once."""

import pytest
import torch
from torch.testing import assert_close

from regard.mechanisms.linear.delta_rule import fast_weights
from regard.mechanisms.linear.random_feature import random_feature_attention
from regard.ops import token_runs


@pytest.fixture
def tensors():
    q, k, v = torch.randn(3, 2, 2, 11, 4, dtype=torch.float64, requires_grad=True)
    return q, k, v, torch.rand(2, 2, 11, dtype=torch.float64), torch.rand(2, 11) < 0.7


def same_in_runs(monkeypatch, call, leaves):
    """Output, state and gradients."""
    found = []
    for size in (4, 100):
        monkeypatch.setattr(token_runs, "TOKENS_AT_ONCE", size)
        out, state = call()
        ends = [out, *(part for part in state if part.requires_grad)]
        slopes = torch.autograd.grad(sum(end.square().sum() for end in ends), leaves)
        found.append((*ends, *slopes))
    assert_close(*found, rtol=0, atol=1e-11)


@pytest.mark.parametrize("normalise", [False, True])
def test_fast_weights(monkeypatch, tensors, normalise):
    q, k, v, beta, mask = tensors
    same_in_runs(monkeypatch, lambda: fast_weights(q, k, v, beta, normalise=normalise, key_mask=mask), (q, k, v))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("queries", [11, 3])
def test_random_features(monkeypatch, tensors, gated, queries):
    q, k, v, gate, mask = tensors
    rows = torch.randn(2, 5, 4, dtype=torch.float64)

    def call():
        given = gate if gated else None
        return random_feature_attention(q[:, :, -queries:], k, v, rows, given, causal=True, key_mask=mask)

    same_in_runs(monkeypatch, call, (q, k, v))
