"""Stand-alone self-attention and its stem as loops over pixels and windows, in float64; edges, means, refusals."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import regard
from regard.mechanisms.patterned.sasa import SASA, SASAStem, stand_alone_attention
from regard.registry import UnsupportedError


def heads(weight, x, count, grouped=False):
    """A 1 x 1 convolution of every pixel: (B, H, Y, X, D)."""
    y = F.conv2d(x, weight[:, :, None, None], groups=count if grouped else 1)
    return y.unflatten(1, (count, -1)).movedim(2, -1)


def equations(q, k, v, kernel, edge, rows=None, columns=None, mask=None, shares=None):
    """One query and one place of its window at a time; ``v`` (..., M, W) if there are ``shares`` (k, k, M)."""
    batch, count, height, width = q.shape[:4]
    out = q.new_zeros(*q.shape[:4], v.shape[-1])
    for b, h, y, x in itertools.product(*map(range, (batch, count, height, width))):
        logits, values = [], []
        for a, c in itertools.product(range(kernel), repeat=2):
            i, j = y + a - kernel // 2, x + c - kernel // 2
            there = 0 <= i < height and 0 <= j < width and (mask is None or bool(mask[b, i, j]))
            if not there and edge == "mask":
                continue
            key = k[b, h, i, j] if there else torch.zeros_like(q[b, h, y, x])
            value = v[b, h, i, j] if there else torch.zeros_like(v[b, h, y, x])
            relative = 0.0 if rows is None else torch.cat((rows[h, a], columns[h, c]))
            logits.append((q[b, h, y, x] * (key + relative)).sum())
            values.append(value if shares is None else shares[a, c] @ value)
        if logits:
            out[b, h, y, x] = torch.softmax(torch.stack(logits), 0) @ torch.stack(values)
    return out


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("edge", ["mask", "zeros"])
@pytest.mark.parametrize(("kernel", "sides"), [(3, (4, 5)), (4, (5, 4)), (1, (2, 3)), (7, (3, 8)), (5, (1, 1))])
def test_matches_the_equations(kernel, sides, edge):
    """Odd and even windows, also those that are larger than the map."""
    q, k, v = drawn(1, 2, *sides, 4), drawn(1, 2, *sides, 5)[..., :4], drawn(1, 2, *sides, 3)
    rows, columns = drawn(2, kernel, 2), drawn(3, kernel, 2)[:2]
    found = stand_alone_attention(q, k, v, rows, columns, kernel=kernel, edge=edge)
    assert_close(found, equations(q, k, v, kernel, edge, rows, columns), rtol=0, atol=1e-12)


@pytest.mark.parametrize("edge", ["mask", "zeros"])
@pytest.mark.parametrize("relative", [True, False])
def test_masked_pixels_are_like_what_is_outside(edge, relative):
    q, k, v = drawn(2, 2, 4, 5, 4), drawn(2, 2, 4, 5, 4).flip(0), drawn(2, 2, 4, 5, 3)
    mask = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[1, :, 2:] = False
    tables = (drawn(2, 3, 2), drawn(2, 3, 2).flip(1)) if relative else ()
    found = stand_alone_attention(q, k, v, *tables, kernel=3, edge=edge, key_mask=mask)
    assert_close(found, equations(q, k, v, 3, edge, *tables, mask=mask), rtol=0, atol=1e-12)
    assert not found[1, :, :, 4].any(), "these windows hold nothing"


@pytest.mark.parametrize("grouped", [False, True])
def test_heads_of_the_layer(grouped):
    layer = SASA(4, 2, 3, dim_out=8, grouped=grouped).double()
    x = drawn(2, 4, 3, 5)
    assert layer.q_proj.weight.shape == (8, 2 if grouped else 4)
    q, k, v = (heads(p.weight, x, 2, grouped) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    expected = equations(q, k, v, 3, "mask", layer.rows, layer.columns).movedim(-1, 2).flatten(1, 2)
    assert_close(layer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("sides", "masked"), [((4, 6), False), ((5, 3), False), ((5, 4), True)])
def test_strides_take_means_of_real_pixels(sides, masked):
    layer = SASA(4, 2, 3, stride=2).double()
    x = drawn(2, 4, *sides)
    mask = torch.ones(2, *sides, dtype=torch.bool)
    if masked:
        mask[0, 3:] = False
        mask[1, :, 1] = False
    layer.stride = 1
    whole = layer(x, key_mask=mask)
    layer.stride = 2
    y = layer(x, key_mask=mask)
    assert y.shape[2:] == tuple((side + 1) // 2 for side in sides)
    for b, i, j in itertools.product(*map(range, (2, *y.shape[2:]))):
        rows, columns = slice(2 * i, 2 * i + 2), slice(2 * j, 2 * j + 2)
        real = mask[b, rows, columns]
        pixels = whole[b, :, rows, columns][:, real]
        assert_close(y[b, :, i, j], pixels.mean(-1) if real.any() else torch.zeros(4).double(), rtol=0, atol=1e-12)


def test_masked_queries_enter_no_mean():
    layer = SASA(4, 2, 3, stride=2).double()
    x, asks = drawn(1, 4, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool)
    asks[0, 0, 1:] = False
    everywhere = torch.ones_like(asks)
    layer.stride = 1
    whole = layer(x, key_mask=everywhere)
    layer.stride = 2
    y = layer(x, key_mask=everywhere, query_mask=asks)
    corner = torch.stack((whole[0, :, 0, 0], whole[0, :, 1, 0], whole[0, :, 1, 1])).mean(0)
    assert_close(y[0, :, 0, 0], corner, rtol=0, atol=1e-12)


def test_weights_of_means():
    """A v, with v as the layer's own values, is the layer's output."""
    for layer in (SASA(4, 2, 3, stride=2, edge="zeros").double(), SASA(4, 2, 4).double()):
        x = drawn(2, 4, 5, 4)
        mask = torch.ones(2, 5, 4, dtype=torch.bool)
        mask[1, 3:] = False
        own = heads(layer.v_proj.weight, x, 2).flatten(2, 3)
        found = layer.weigh(x, own, key_mask=mask)
        assert_close(found.mT.flatten(1, 2), layer(x, key_mask=mask).flatten(2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("edge", ["mask", "zeros"])
@pytest.mark.parametrize("relative", [True, False])
def test_values_of_the_stem_know_their_place(edge, relative):
    stem = SASAStem(3, 8, 2, 4, mixtures=3, embed_dim=5, edge=edge, relative=relative).double()
    x = drawn(1, 3, 5, 6)
    q, k = (heads(p.weight, x, 2) for p in (stem.q_proj, stem.k_proj))
    v = torch.stack([heads(weight, x, 2) for weight in stem.v_proj.weight.chunk(3)], -2)
    shares = q.new_empty(4, 4, 3)
    for a, c in itertools.product(range(4), repeat=2):
        shares[a, c] = torch.softmax(stem.mixing @ (stem.row_embedding[a] + stem.column_embedding[c]), 0)
    expected = equations(q, k, v, 4, edge, stem.rows, stem.columns, shares=shares)
    assert_close(stem(x), expected.movedim(-1, 2).flatten(1, 2), rtol=0, atol=1e-12)


def test_blocks_of_the_stem():
    """Each block alone is one window around all of its pixels, cut at its border."""
    stem = SASAStem(3, 8, 2, 3, mixtures=2, blocked=True).double()
    x = drawn(1, 3, 5, 7)
    q, k = (heads(p.weight, x, 2) for p in (stem.q_proj, stem.k_proj))
    v = torch.stack([heads(weight, x, 2) for weight in stem.v_proj.weight.chunk(2)], -2)
    for y, z in itertools.product(range(5), range(7)):
        share = torch.softmax(stem.mixing @ (stem.row_embedding[y % 3] + stem.column_embedding[z % 3]), 0)
        v[:, :, y, z, 0] = share @ v[0, :, y, z]
    out = stem(x)
    for y, z in itertools.product((0, 3), (0, 3, 6)):
        block = (slice(None), slice(None), slice(y, y + 3), slice(z, z + 3))
        inside = equations(q[block], k[block], v[block][..., 0, :], 5, "mask")
        assert_close(out[block], inside.movedim(-1, 2).flatten(1, 2), rtol=0, atol=1e-12)


def test_parameters_do_not_grow_with_the_kernel():
    def count(layer):
        return sum(p.numel() for p in layer.parameters())

    for kernel in (3, 11):
        assert count(SASA(16, 4, kernel)) == 3 * 16 * 16 + 16 * kernel
    assert count(SASAStem(3, 64)) == 6 * 3 * 64 + (4 + 4 + 4) * 16


def test_refusals():
    for options, message in (
        ({"dim_out": 9}, "dim_out / num_heads = 3 must be even"),
        ({"dim": 10, "dim_out": 12, "grouped": True}, "dim=10 is no multiple of num_heads=3"),
        ({"dim": 13}, "dim=13 is no multiple"),
        ({"kernel": 0}, "kernel=0"),
        ({"edge": "reflect"}, "edge='reflect'"),
    ):
        with pytest.raises(ValueError, match=message):
            regard.create("sasa", **({"dim": 12, "num_heads": 3} | options))
    with pytest.raises(UnsupportedError, match="a window reaches to all sides"):
        regard.create("sasa", dim=12, num_heads=3, causal=True)
    with pytest.raises(ValueError, match="blocks have no windows"):
        SASAStem(3, 8, blocked=True, edge="zeros")
    with pytest.raises(ValueError, match="mixtures=0"):
        SASAStem(3, 8, mixtures=0)
    with pytest.raises(UnsupportedError, match="another value for every query"):
        SASAStem(3, 8).weigh(torch.randn(1, 3, 4, 4), torch.ones(1, 1, 16, 1))
