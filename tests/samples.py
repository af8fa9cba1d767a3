"""Small tensors that many tests use."""

import pytest
import torch


def heads_first(
    n, m=None, *, keep=1.0, batch=2, heads=3, kv_heads=None, dim=4, value_dim=None, dtype=torch.float64, seed=0
):
    """q (B, H, N, D), k (B, G, M, D), v (B, G, M, Dv) and key_mask (B, M), of which about a share ``keep`` is real.

    Every sequence keeps at least one real key; which ones they are is random, so that no test relies on their place.
    """
    m, kv_heads, value_dim = m or n, kv_heads or heads, value_dim or dim
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(batch, *shape, generator=generator, dtype=dtype)
        for shape in ((heads, n, dim), (kv_heads, m, dim), (kv_heads, m, value_dim))
    )
    key_mask = torch.rand(batch, m, generator=generator) < keep
    key_mask[torch.arange(batch), torch.randint(m, (batch,), generator=generator)] = True
    return q, k, v, key_mask


def some_daily(values, count):
    """Parameters, of which those after the first ``count`` are slow tests, run before a release."""
    for number, value in enumerate(values):
        yield pytest.param(value, marks=() if number < count else pytest.mark.slow)
