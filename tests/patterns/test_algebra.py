"""Patterns as values: texts, equality, combination, and what flex attention is told."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask, flex_attention

from regard.patterns import BigBird, Causal, Full, Global, PerHead, Segments, Strided, Window, from_mask_mod, from_spec
from regard.patterns.block_mask import MOST_ENTRIES
from tests.patterns.expressions import random_pattern


@pytest.mark.parametrize("seed", range(40))
def test_text_rebuilds_the_pattern(seed):
    pattern = random_pattern(seed, 24, heads=2)
    again = from_spec(pattern.spec, pattern.tensors)
    assert again.spec == pattern.spec
    assert torch.equal(again.dense(24, heads=2), pattern.dense(24, heads=2))


def test_patterns_of_numbers_are_equal_by_text_and_others_by_identity():
    assert Causal() & Window(3) == Causal() & Window(3, 3)
    assert len({Causal() & Window(3), Causal() & Window(3), Window(3)}) == 2
    assert eval(repr(Causal() & ~(Window(3) | Strided(4)))) == Causal() & ~(Window(3) | Strided(4))
    ids = torch.zeros(4, dtype=torch.long)
    assert Segments(ids) != Segments(ids)
    assert repr(Causal() & Segments(ids)) == "Causal() & Segments(<int64[4]>)"
    always = from_mask_mod(lambda b, h, q, k: q >= 0)
    assert always != from_mask_mod(always.mask_mod_function)


@pytest.mark.parametrize("seed", range(30))
def test_and_or_not_are_elementwise(seed):
    left, right = (random_pattern(2 * seed + k, 16, heads=2, depth=1) for k in range(2))

    def full(pattern):
        return torch.zeros(2, 2, 16, 16, dtype=torch.bool) | pattern.dense(16, heads=2)

    a, b = full(left), full(right)
    assert torch.equal(full(left & right), a & b)
    assert torch.equal(full(left | right), a | b)
    assert torch.equal(full(~left), ~a)


def test_text_is_read_without_running_it():
    for text in ("__import__('os')", "Causal().dense(3)", "Causal() + Full()", "3", "Causal(", "t0"):
        with pytest.raises(ValueError, match="not a pattern"):
            from_spec(text)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # the reference form is meant here
@pytest.mark.parametrize(
    ("pattern", "heads"),
    [
        (Causal() & (Window(20) | Global(3)), None),
        (BigBird(16, 3, 2, 2), 4),
        (PerHead(Causal(), Window(9), Causal(), Strided(3)), 4),
        (Segments(torch.tensor([[0] * 100 + [1] * 200, [0] * 300])), None),
    ],
    ids=repr,
)
def test_flex_attention_sees_the_same_pairs(pattern, heads):
    n = 300
    dense = torch.zeros(2, 4, n, n, dtype=torch.bool) | pattern.dense(n, heads=heads)
    assert torch.equal(create_mask(pattern.mask_mod(n, heads=heads), 2, 4, n, n, device="cpu"), dense)
    q, k, v = torch.randn(3, 2, 4, n, 8, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=dense)
    found = flex_attention(q, k, v, block_mask=pattern.block_mask(n, heads=heads))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_block_mask_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match=f"more than {MOST_ENTRIES:,}"):
        (Causal() & Window(512)).block_mask(1 << 20)


def test_a_mask_function_lives_as_long_as_its_pattern():
    pattern = from_mask_mod(lambda b, h, q, k: q == k)
    spec = pattern.spec
    assert from_spec(spec) is pattern
    del pattern
    with pytest.raises(ValueError, match="no longer alive"):
        from_spec(spec)


def test_pictures():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    axes = PerHead(Causal(), Full()).plot(12)
    assert axes.get_images()[0].get_array().shape == (12, 25)
    large = (Causal() & (Window(3000) | Strided(4096))).plot(50_000)
    assert max(large.get_images()[0].get_array().shape) <= 1024
    pyplot.close("all")
