"""Dropout of the native kernels: which weights go depends on the seed and the pair, and is the same in every pass."""

import pytest
import torch
from torch.func import jvp
from torch.testing import assert_close

import regard
from regard.patterns import Causal, Global, PerHead, Strided, Window
from tests.engines.native_library import needs_native

pytestmark = [needs_native, pytest.mark.filterwarnings("ignore:.*torch.jit.script")]  # torch's own jvp rules use it
DOUBLE = {"dtype": torch.float64}


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def dropped_weights(q, k, pattern=None, p=0.3, seed=0, **options):
    """The weights after dropout, (B, H, N, M): attention to the identity."""
    identity = torch.eye(k.shape[-2], dtype=q.dtype).expand(*k.shape[:2], -1, -1)
    return regard.attend(q, k, identity, pattern, dropout_p=p, engine="native", generator=seeded(seed), **options)


PATTERNS = [None, Causal(), Window(9) | Global(2), Strided(9) | Window(3), PerHead(Window(5), Strided(7))]


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_gradients_are_those_of_the_weights_that_stayed(isa, pattern):
    leaves = [torch.randn(2, 2, n, 6, **DOUBLE, requires_grad=True) for n in (70, 140, 140)]
    weights = dropped_weights(*leaves[:2], pattern).detach()
    plain = regard.attend(*leaves[:2], torch.eye(140, **DOUBLE).expand(2, 2, -1, -1), pattern, engine="dense").detach()
    kept = weights != 0
    assert_close(weights, torch.where(kept, plain / 0.7, 0.0), rtol=1e-9, atol=1e-12)
    found = regard.attend(*leaves, pattern, dropout_p=0.3, engine="native", generator=seeded())
    scores = leaves[0] @ leaves[1].mT / 6**0.5
    allowed = torch.ones(70, 140, dtype=torch.bool) if pattern is None else pattern.dense(70, 140, heads=2)
    scores = scores.masked_fill(~allowed, -torch.inf)
    expected = scores.softmax(-1).nan_to_num(0.0) * kept / 0.7 @ leaves[2]
    assert_close(found, expected, rtol=1e-9, atol=1e-9)
    slope = torch.randn_like(found)
    assert_close(*(torch.autograd.grad(out, leaves, slope) for out in (found, expected)), rtol=1e-9, atol=1e-9)


def test_a_pair_is_dropped_whatever_stands_around_it(isa):
    """Not the pattern, nor its parts, nor the number of threads decide, only seed, sequence, head, query and key."""
    q, k = torch.randn(2, 2, 2, 150, 6, **DOUBLE).unbind(0)
    whole = dropped_weights(q, k) != 0
    torch.set_num_threads(3)
    for pattern in PATTERNS[1:]:
        allowed = pattern.dense(150, heads=2).expand(2, 2, -1, -1)
        assert_close(dropped_weights(q, k, pattern) != 0, whole & allowed)
    mask = torch.rand(2, 150) < 0.5
    assert_close(dropped_weights(q, k, key_mask=mask) != 0, whole & mask[:, None, None])


@pytest.mark.parametrize("p", [0.01, 0.25, 0.5, 0.9])
def test_the_share_that_is_dropped(p):
    """Over sequences, heads, queries and keys; five standard deviations of independent draws."""
    q = torch.zeros(2, 4, 256, 1, **DOUBLE)
    gone = (dropped_weights(q, q, p=p) == 0).double()
    spread = (p * (1 - p)) ** 0.5
    assert abs(gone.mean() - p) < 5 * spread / gone.numel() ** 0.5
    for dims in ((0, 1, 2), (0, 1, 3), (2, 3)):
        means = gone.mean(dims)
        assert (means - p).abs().max() < 5 * spread / (gone.numel() / means.numel()) ** 0.5


def test_draws_are_independent():
    """Sequences, heads, neighbouring rows and columns, seeds: no two agree more often than chance."""
    q = torch.zeros(2, 2, 256, 1, **DOUBLE)
    draws = [2.0 * (dropped_weights(q, q, p=0.5, seed=seed) == 0) - 1 for seed in (0, 1)]
    one = draws[0]
    pairs = [
        (one, draws[1]),
        (one[0], one[1]),
        (one[:, 0], one[:, 1]),
        (one[..., 1:, :], one[..., :-1, :]),
        (one[..., 1:], one[..., :-1]),
        (one, one.mT),
        (one[..., 1:, 1:], one[..., :-1, :-1]),
    ]
    for number, (first, second) in enumerate(pairs):
        agreement = (first * second).mean()
        if number == 5:  # the diagonal meets itself
            agreement = agreement - 1 / 256
        assert abs(agreement) < 6 / first.numel() ** 0.5 * (2**0.5 if number == 5 else 1)


def test_the_same_seed_draws_the_same():
    q = torch.randn(1, 2, 70, 4)
    one, again, other = (dropped_weights(q, q, seed=seed) for seed in (3, 3, 4))
    assert_close(one, again, rtol=0, atol=0)
    assert ((one == 0) != (other == 0)).any()


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_the_composite_drops_what_the_kernels_drop(pattern):
    """Tangents and gradients of gradients come from torch operations, under the same draw."""
    q, k, v = torch.randn(3, 2, 2, 140, 6, **DOUBLE).unbind(0)

    def function(q, k, v):
        return regard.attend(q, k, v, pattern, dropout_p=0.4, engine="native", generator=seeded(5))

    tangents = tuple(torch.randn_like(t) for t in (q, k, v))
    primal, tangent = jvp(function, (q, k, v), tangents)
    assert_close(primal, function(q, k, v), rtol=1e-9, atol=1e-9)
    leaves = [t.requires_grad_() for t in (q, k, v)]
    slope = torch.randn_like(primal)
    grads = torch.autograd.grad(function(*leaves), leaves, slope)
    assert_close((tangent * slope).sum(), sum((a * b).sum() for a, b in zip(grads, tangents, strict=True)))
