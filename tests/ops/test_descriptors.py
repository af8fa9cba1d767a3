"""Descriptors as loops over features and keys, in float64, with masks, and in short floats."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from regard.ops.descriptors import distribute, gather
from tests.samples import heads_first


def weights_of(feature, kind):
    return feature.softmax(0) if kind == "softmax" else feature / len(feature)


def equations(q, k, v, mask, kind):
    out = q.new_zeros(*q.shape[:-1], v.shape[-1])
    for b, h in itertools.product(range(q.shape[0]), range(q.shape[1])):
        keys, values = k[b, h][mask[b]], v[b, h][mask[b]]
        for d in range(k.shape[-1]):
            descriptor = sum(
                (w * value for w, value in zip(weights_of(keys[:, d], kind), values, strict=True)), 0 * v[0, 0, 0]
            )
            for n in range(q.shape[2]):
                share = q[b, h, n].softmax(0)[d] if kind == "softmax" else q[b, h, n, d]
                out[b, h, n] += share * descriptor
    return out


@pytest.mark.parametrize("kind", ["softmax", "scaling"])
@pytest.mark.parametrize(("n", "m", "keep"), [(6, 6, 1.0), (3, 9, 0.5), (5, 1, 1.0)])
def test_matches_the_equations(kind, n, m, keep):
    q, k, v, mask = heads_first(n, m, keep=keep, value_dim=3)
    found = distribute(q, gather(k, v, kind, mask), kind)
    assert_close(found, equations(q, k, v, mask, kind), rtol=0, atol=1e-12)
    if keep == 1:
        assert_close(distribute(q, gather(k, v, kind), kind), found, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["softmax", "scaling"])
def test_without_keys_there_is_nothing(kind):
    q, k, v, mask = heads_first(4, 5)
    mask[0] = False
    for t in (k, v):
        t.requires_grad_()
    out = distribute(q, gather(k, v, kind, mask), kind)
    assert not out[0].any()
    for slope in torch.autograd.grad(out.sum(), (k, v)):
        assert slope.isfinite().all()
        assert not slope[0].any()


def test_weights_of_many_keys_survive_in_short_floats():
    """1e5 weights of 1e-5 each, which float16 would round by 2 %."""
    k, v = torch.zeros(1, 1, 100_000, 1, dtype=torch.float16), torch.ones(1, 1, 100_000, 1, dtype=torch.float16)
    assert_close(gather(k, v).item(), 1.0, rtol=1e-4, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(gather(k.float(), v.float() + 2**-10).item(), 1 + 2**-10, rtol=1e-4, atol=0)
    large = torch.full((1, 1, 1000, 1), 300.0, dtype=torch.float16)
    assert gather(large, large, "scaling").item() == 90_000, "more than float16 holds"
