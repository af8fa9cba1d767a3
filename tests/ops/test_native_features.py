"""The native kernels of attention by features compute what the torch operations do, whatever the layout."""

import random

import pytest
import torch
from torch.testing import assert_close

from regard.ops import feature_gradients, feature_sums, native_features
from regard.ops.feature_attention import feature_attention
from regard.ops.feature_sums import FeatureSums
from tests.engines.native_library import ISAS, needs_native

pytestmark = needs_native
NAN = float("nan")
KINDS = list(native_features.KINDS)


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv("REGARD_ISA", request.param)
    return request.param


def anyhow(rng, *shape, dtype):
    """Random numbers of shape (B, H, T, D) that lie in memory in one of many ways."""
    batch, heads, length, width = shape
    way = rng.choice(["plain", "tokens first", "every other", "columns first", "one head"])
    if way == "tokens first":
        return torch.randn(batch, length, heads, width).to(dtype).transpose(1, 2)
    if way == "every other":
        return torch.randn(batch, heads, 2 * length, width + 3).to(dtype)[:, :, ::2, 1:-2]
    if way == "columns first":
        return torch.randn(batch, heads, width, length).to(dtype).mT
    if way == "one head":
        return torch.randn(batch, 1, length, width).to(dtype).expand(shape)
    return torch.randn(shape).to(dtype)


def problem(seed, dtype, kind, causal):
    """The arguments of ``attend``, and gradients of its out and state."""
    rng, wide = random.Random(seed), torch.promote_types(dtype, torch.float32)
    torch.manual_seed(seed)
    batch, heads = rng.choice([(1, 1), (2, 3), (1, 4)])
    n, m = rng.choice([1, 5, 64, 67, 130]), rng.choice([1, 3, 64, 129, 200])
    m = n + rng.choice([0, 0, 3, 70]) if causal else m
    width, value_width, rows = (
        rng.choice([1, 4, 16, 20, 65]),
        rng.choice([1, 7, 16, 64, 70]),
        rng.choice([1, 5, 33, 64]),
    )
    q, k = anyhow(rng, batch, heads, n, width, dtype=dtype), anyhow(rng, batch, heads, m, width, dtype=dtype)
    v = anyhow(rng, batch, heads, m, value_width, dtype=dtype)
    projection = torch.randn(rng.choice([1, heads]), 0 if kind == "elu" else rows, width).to(dtype)
    mask = rng.choice([None, torch.rand(batch, m) < 0.7, torch.arange(m).repeat(batch, 1) > m // 2])
    sums = FeatureSums.start(
        batch, heads, {"elu": width, "symmetric": 2 * rows}.get(kind, rows), value_width, dtype=wide
    )
    if rng.random() < 0.5:
        exponent = sums.exponent if kind in ("elu", "relu") else torch.randn_like(sums.exponent)
        sums = FeatureSums(torch.rand_like(sums.state), exponent)
    slopes = anyhow(rng, batch, heads, n, value_width, dtype=dtype), torch.randn_like(sums.state)
    return (q, k, v, projection, mask, kind, causal, rng.choice([0.0, 1e-6]), *sums), slopes


def room(arguments):
    q, v = arguments[0], arguments[2]
    return v.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)


def results(arguments, slopes, attend, gradients):
    """What came out, and all gradients, in float64."""
    forward = attend(*arguments)
    found = [*forward, *gradients(*arguments, *forward, *slopes, True)]
    return [tensor.double() for tensor in found]


def native_attend(*arguments):
    return native_features.attend(*arguments, out=room(arguments))


def in_double(tensors):
    return [t.double() if torch.is_tensor(t) and t.is_floating_point() else t for t in tensors]


def errors(found, exact):
    """The largest error of each, relative to the largest number that should be there, or to 1."""
    return [
        (t - e).abs().max().item() / max(e.abs().max().item(), 1.0) if e.numel() else 0.0
        for t, e in zip(found, exact, strict=True)
    ]


# Few features and values make some of these problems ill-conditioned, so that torch has no more digits right.
@pytest.mark.parametrize(
    ("dtype", "limit"),
    [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)],
)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_torch(isa, kind, causal, dtype, limit):
    for seed in range(8):
        arguments, slopes = problem(seed, dtype, kind, causal)
        exact = results(in_double(arguments), in_double(slopes), feature_sums.attend, feature_gradients.gradients)
        ours = errors(results(arguments, slopes, native_attend, native_features.gradients), exact)
        theirs = errors(results(arguments, slopes, feature_sums.attend, feature_gradients.gradients), exact)
        for number, (own, other) in enumerate(zip(ours, theirs, strict=True)):
            assert own <= max(limit, 8 * other), f"seed {seed}, result {number}: {own}, torch {other}"


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_keys_may_hold_anything(kind, causal):
    q, k, v = torch.randn(3, 2, 2, 100, 8)
    mask = torch.rand(2, 100) < 0.6
    hidden = ~mask[:, None, :, None]
    projection = torch.randn(1, 0 if kind == "elu" else 6, 8)
    before = FeatureSums.start(2, 2, {"elu": 8, "symmetric": 12}.get(kind, 6), 8)

    def run(fill):
        leaves = [t.masked_fill(hidden, fill).requires_grad_() for t in (k, v)]
        out, sums = feature_attention(q, *leaves, projection, before, kind=kind, causal=causal, key_mask=mask)
        return out, *sums, *torch.autograd.grad(out.square().sum() + sums.state.sum(), leaves)

    found = run(NAN)
    assert_close(found, run(0.0), rtol=0, atol=0)
    assert (found[-1] * hidden == 0).all()
    assert (found[-2] * hidden == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_later_key_changes_nothing_earlier_bit_for_bit(isa, kind):
    q, k, v = torch.randn(3, 1, 2, 150, 16)
    projection = torch.randn(1, 0 if kind == "elu" else 24, 16)
    before = FeatureSums.start(1, 2, {"elu": 16, "symmetric": 48}.get(kind, 24), 16)

    def run():
        return feature_attention(q, k, v, projection, before, kind=kind, causal=True)[0]

    first = run()
    for place in (149, 128, 70, 20):
        k[:, :, place] *= 5
        v[:, :, place] *= 100
        after = run()
        assert_close(after[:, :, :place], first[:, :, :place], rtol=0, atol=0)
        assert (after[:, :, place:] != first[:, :, place:]).any()


@pytest.mark.parametrize(("n", "m", "causal"), [(0, 0, True), (0, 5, True), (0, 5, False), (5, 0, False)])
@pytest.mark.parametrize("kind", ["elu", "softmax"])
def test_no_query_or_no_key(monkeypatch, kind, n, m, causal):
    q, k, v = (torch.randn(2, 3, length, width) for length, width in ((n, 4), (m, 4), (m, 6)))
    projection = torch.randn(1, 0 if kind == "elu" else 7, 4)
    before = FeatureSums.start(2, 3, 4 if kind == "elu" else 7, 6)

    def run():
        leaves = [t.detach().requires_grad_() for t in (q, k, v)]
        out, sums = feature_attention(*leaves, projection, before, kind=kind, causal=causal, eps=1e-6)
        return out, *sums, *torch.autograd.grad(out.sum() + sums.state.sum(), leaves)

    found = run()
    monkeypatch.setenv("REGARD_NATIVE", "0")
    assert_close(found, run())
    assert m or (found[0] == 0).all()


def test_threads_change_nothing():
    q, k, v, slope = torch.randn(4, 2, 3, 130, 16)
    sums = FeatureSums.start(2, 3, 24, 16)
    arguments = (q, k, v, torch.randn(1, 24, 16), None, "softmax", True, 0.0, *sums)
    slopes = slope, torch.randn_like(sums.state)
    one = results(arguments, slopes, native_attend, native_features.gradients)
    torch.set_num_threads(3)
    assert_close(results(arguments, slopes, native_attend, native_features.gradients), one, rtol=0, atol=0)


def test_the_operator_calls_it_where_it_can(monkeypatch):
    q, k, v = torch.randn(3, 1, 2, 9, 4)
    before, rows = FeatureSums.start(1, 2, 4, 4), torch.empty(1, 0, 4)

    def refuse(*_, **__):
        raise RuntimeError("called")

    expected = feature_attention(q, k, v, rows, before, kind="elu")[0]
    monkeypatch.setattr(native_features, "run", refuse)
    with pytest.raises(RuntimeError, match="called"):
        feature_attention(q, k, v, rows, before, kind="elu")
    assert not native_features.serves(q, k.double(), v, before.state)
    assert not native_features.serves(q, k, v, before.state.double())
    monkeypatch.setenv("REGARD_NATIVE", "0")
    assert_close(feature_attention(q, k, v, rows, before, kind="elu")[0], expected)
