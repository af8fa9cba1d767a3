"""Position and channel attention as loops, in float64; signs, masks, centres, starts and refusals."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import regard
from regard.mechanisms.gates.dual_attention import ChannelAttention, DualAttention, PositionAttention, channel_attention
from regard.registry import UnsupportedError


def rows(x):
    return x.flatten(2).mT


def position(layer, x, mask):
    """The pixels as rows of what is added to them, before gamma."""
    pixels, keep = rows(x), mask.flatten(1)
    out = torch.zeros_like(pixels)
    for b, n in itertools.product(range(len(x)), range(pixels.shape[1])):
        seen = pixels[b][keep[b]]
        if len(seen):
            weights = torch.softmax(torch.stack([layer.q_proj(pixels[b, n]) @ layer.k_proj(m) for m in seen]), 0)
            out[b, n] = sum(w * layer.v_proj(m) for w, m in zip(weights, seen, strict=True))
    return out


def channel(x, source, mask, affinity):
    out = torch.zeros_like(x)
    for b, i in itertools.product(range(len(x)), range(x.shape[1])):
        if mask[b].any():
            energy = torch.stack([(x[b, i] * other * mask[b]).sum() for other in source[b]])
            weights = torch.softmax(energy.max() - energy if affinity == "code" else energy, 0)
            out[b, i] = sum(w * other for w, other in zip(weights, source[b], strict=True))
    return out


@pytest.mark.parametrize("sides", [(5,), (3, 4), (2, 1, 3)])
@pytest.mark.parametrize("affinity", ["code", "paper"])
@pytest.mark.parametrize("masked", [False, True])
def test_matches_the_equations(sides, affinity, masked):
    layer = DualAttention(6, inner=2, affinity=affinity, gamma=0.5).double()
    x = torch.randn(3, 6, *sides, dtype=torch.float64)
    mask = torch.rand(3, *sides) < 0.6 if masked else torch.ones(3, *sides, dtype=torch.bool)
    if masked:
        mask[0] = False
    real = x * mask[:, None]
    expected = 2 * real + 0.5 * (position(layer.position, real, mask).mT.unflatten(-1, sides))
    expected += 0.5 * channel(real, real, mask, affinity)
    y = layer(x.masked_fill(~mask[:, None], torch.nan), key_mask=mask if masked else None)
    assert_close(y, expected * mask[:, None], rtol=0, atol=1e-12)


def test_pixels_that_only_ask_enter_no_sum():
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    keys, queries = torch.rand(2, 3, 5) < 0.5, torch.rand(2, 3, 5) < 0.7
    layer = ChannelAttention(4, gamma=1.0).double()
    both = x * (keys | queries)[:, None]
    expected = (both + channel(both, both, keys, "code")) * queries[:, None]
    assert_close(layer(x, key_mask=keys, query_mask=queries), expected, rtol=0, atol=1e-12)
    assert not channel_attention(x, key_mask=torch.zeros(2, 3, 5, dtype=torch.bool)).any()


def test_positions_may_ask_another_map():
    layer = PositionAttention(4, 3, gamma=1.0).double()
    x, context = (torch.randn(2, 4, *sides, dtype=torch.float64) for sides in ((2, 3), (4, 5)))
    keep = torch.rand(2, 4, 5) < 0.5
    asked = layer.weigh(x, layer.v_proj(rows(context))[:, None], context, key_mask=keep)[:, 0]
    assert_close(layer(x, context, key_mask=keep), x + asked.mT.unflatten(-1, (2, 3)), rtol=0, atol=1e-12)
    for b in range(2):
        seen = rows(context)[b][keep[b].flatten()]
        weights = (layer.q_proj(rows(x)[b]) @ layer.k_proj(seen).mT).softmax(-1)
        assert_close(asked[b], weights @ layer.v_proj(seen), rtol=0, atol=1e-12)


def test_the_compact_form():
    layer = DualAttention(16, compact=True, gamma=0.5).double().eval()
    centres, mixtures = layer.position.centres, layer.channel.mixtures
    x = torch.randn(2, 16, 7, 9, dtype=torch.float64)
    found = []
    for grid, parts in zip(centres.grids, (1, 2, 3, 6), strict=True):
        for row, column in itertools.product(range(parts), repeat=2):
            top, bottom = row * 7 // parts, -(-(row + 1) * 7 // parts)
            left, right = column * 9 // parts, -(-(column + 1) * 9 // parts)
            mean = x[:, :, top:bottom, left:right].mean((2, 3))
            found.append(torch.relu(grid.linear(mean) / (1 + 1e-5) ** 0.5))
    keys = torch.stack(found, 1)
    assert_close(centres(x), keys, rtol=0, atol=1e-12)
    assert layer.position.q_proj.weight.shape == (4, 16)
    weights = (layer.position.q_proj(rows(x)) @ layer.position.k_proj(keys).mT).softmax(-1)
    seen = (weights @ layer.position.v_proj(keys)).mT.unflatten(-1, (7, 9))
    mixed = torch.relu(F.linear(rows(x), mixtures.linear.weight) / (1 + 1e-5) ** 0.5).mT.unflatten(-1, (7, 9))
    assert mixed.shape[1] == 1
    across = channel(x, mixed, torch.ones(2, 7, 9), "code")
    assert_close(layer(x), 2 * x + 0.5 * seen + 0.5 * across, rtol=0, atol=1e-12)


def test_padding_enters_no_statistic_of_the_mixtures():
    layer = DualAttention(32, "channel", compact=True, gamma=0.5).train()
    x = torch.randn(2, 32, 3, 5) * 0.2
    mask = (torch.arange(5) < 3).expand(2, 3, 5)
    padded = layer(x.masked_fill(~mask[:, None], 1e4), key_mask=mask)
    assert_close(padded[..., :3], layer(x[..., :3]), rtol=1e-5, atol=1e-5)


def test_starts_as_the_identity_of_each():
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(DualAttention(3, "position")(x), x)
    assert torch.equal(DualAttention(3, "channel")(x), x)
    assert DualAttention(3).position.q_proj.weight.shape == (1, 3), "three channels have one of queries, not none"


def test_the_code_prefers_what_differs():
    """Two equal channels and a third: each of the two takes from the third, in the paper from both."""
    x = torch.tensor([[[5.0, 0.0], [5.0, 0.0], [0.0, 5.0]]])
    assert_close(channel_attention(x)[0, 0], x[0, 2])
    assert_close(channel_attention(x, affinity="paper")[0, 0], x[0, 0])


def test_products_of_channels_are_exact_in_float32():
    """In bfloat16 the sums 16000, 16 and 32 less than 16016, would be equal; a softmax tells them apart."""
    x = torch.full((1, 3, 1001), 4.0, dtype=torch.bfloat16)
    x[0, 1, 0], x[0, 2, :2] = 0.0, 0.0
    expected = channel_attention(x.float())
    assert_close(channel_attention(x), expected.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(channel_attention(x.float()).float(), expected, rtol=1e-2, atol=1e-2)


def test_channels_may_stand_in_any_order():
    layer, x = ChannelAttention(5, gamma=1.0), torch.randn(1, 5, 3, 3)
    order = torch.randperm(5)
    assert_close(layer(x[:, order]), layer(x)[:, order])


def test_only_positions_have_weights():
    x, identity = torch.randn(1, 8, 2, 3), torch.eye(6)[None, None]
    assert DualAttention(8).weigh(x, identity).shape == (1, 1, 6, 6)
    for layer in (DualAttention(8, "channel"), DualAttention(8, compact=True)):
        with pytest.raises(UnsupportedError, match="no weights of pixels"):
            layer.weigh(x, identity)


def test_refusals():
    with pytest.raises(ValueError, match="which='rows'"):
        DualAttention(8, "rows")
    with pytest.raises(ValueError, match="affinity='cosine'"):
        DualAttention(8, affinity="cosine")
    with pytest.raises(ValueError, match="inner=2 is the width of positions"):
        DualAttention(8, "channel", 2)
    with pytest.raises(ValueError, match='which="position" has none'):
        DualAttention(8, "position", affinity="paper")
    with pytest.raises(ValueError, match="inner=0"):
        DualAttention(8, inner=0)
    x, mask = torch.randn(1, 8, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool)
    with pytest.raises(UnsupportedError, match="no masks: the parts of an image are shares"):
        DualAttention(8, compact=True)(x, key_mask=mask)
    with pytest.raises(UnsupportedError, match="no context"):
        DualAttention(8)(x, x)
    with pytest.raises(UnsupportedError, match="cannot be causal"):
        regard.create("dual_attention", dim=8, causal=True)
