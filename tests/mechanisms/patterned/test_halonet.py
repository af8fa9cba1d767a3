"""HaloNet as loops over queries and the keys of their windows, in float64; edges, strides, cut blocks, refusals."""

import itertools

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.patterned.halonet import HaloNet, halo_attention
from regard.registry import UnsupportedError


def equations(q, k, v, rows, columns, block, halo, stride, scale, scale_rel, edge, coarse=False, mask=None):
    """One query and one place of its window at a time."""
    height, width = k.shape[2:4]
    step, last = (stride if coarse else 1), rows.shape[0] - block - 2 * halo
    out = q.new_zeros(*q.shape[:4], v.shape[-1])
    for b, h, y, x in itertools.product(*map(range, q.shape[:4])):
        first = [place * stride // block * block - halo for place in (y, x)]
        inside = [place * stride % block // step for place in (y, x)]
        logits, values = [], []
        for r, c in itertools.product(range(block + 2 * halo), repeat=2):
            i, j = first[0] + r, first[1] + c
            there = 0 <= i < height and 0 <= j < width and (mask is None or bool(mask[b, i, j]))
            if not there and edge == "mask":
                continue
            relative = rows[r - inside[0] + last] + columns[c - inside[1] + last]
            key = k[b, h, i, j] if there else torch.zeros_like(q[b, h, y, x])
            logits.append((q[b, h, y, x] * (scale * key + scale_rel * relative)).sum())
            values.append(v[b, h, i, j] if there else torch.zeros_like(v[b, h, y, x]))
        if logits:
            out[b, h, y, x] = torch.softmax(torch.stack(logits), 0) @ torch.stack(values)
    return out


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def pieces(sides, stride, length, batch=1):
    q = drawn(batch, 2, *(-(-side // stride) for side in sides), 3)
    return q, drawn(batch, 2, *sides, 3), drawn(batch, 2, *sides, 2), drawn(length, 3), drawn(length, 3).flip(0)


@pytest.mark.parametrize("edge", ["mask", "zeros"])
@pytest.mark.parametrize(
    ("sides", "block", "halo", "stride"),
    [((4, 8), 4, 1, 1), ((5, 3), 2, 2, 1), ((7, 5), 4, 1, 2), ((2, 3), 3, 1, 3), ((3, 4), 1, 1, 1), ((1, 1), 4, 2, 1)],
)
def test_matches_the_equations(sides, block, halo, stride, edge):
    """Blocks that do not divide, windows larger than the map, strides, block 1, one pixel."""
    q, k, v, rows, columns = pieces(sides, stride, 2 * (block + halo) - 1)
    options = {"block": block, "halo": halo, "stride": stride, "edge": edge}
    found = halo_attention(q, k, v, rows, columns, scale=0.7, scale_rel=0.4, **options)
    expected = equations(q, k, v, rows, columns, block, halo, stride, 0.7, 0.4, edge)
    assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_halo_of_nothing_gives_windows():
    q, k, v, rows, columns = pieces((4, 5), 1, 5)
    found = halo_attention(q, k, v, rows, columns, block=3, halo=0)
    expected = equations(q, k, v, rows, columns, 3, 0, 1, 3**-0.5, 3**-0.5, "mask")
    assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [4 + 2 + 2 - 1, 11])
def test_coarse_offsets_and_idle_rows_of_long_tables(length):
    q, k, v, rows, columns = pieces((8, 4), 2, length)
    options = {"block": 4, "halo": 1, "stride": 2, "edge": "zeros"}
    found = halo_attention(q, k, v, rows, columns, coarse_offsets=True, scale_rel=1.0, **options)
    expected = equations(q, k, v, rows, columns, 4, 1, 2, 3**-0.5, 1.0, "zeros", coarse=True)
    assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("edge", ["mask", "zeros"])
def test_masked_pixels_are_like_what_is_outside(edge):
    q, k, v, rows, columns = pieces((4, 5), 1, 5, batch=2)
    mask = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[1, :, 1:] = False
    found = halo_attention(q, k, v, rows, columns, block=2, halo=1, edge=edge, key_mask=mask)
    expected = equations(q, k, v, rows, columns, 2, 1, 1, 3**-0.5, 3**-0.5, edge, mask=mask)
    assert_close(found, expected, rtol=0, atol=1e-12)
    assert not found[1, :, :, 4].any(), "this window holds nothing"


@pytest.mark.parametrize("project", [False, True])
def test_heads_of_the_layer(project):
    layer = HaloNet(4, 2, 2, 1, stride=2, dim_out=6, head_dim=5, project=project, scale_rel=False, qkv_bias=True)
    layer = layer.double()
    x = drawn(2, 4, 5, 3)

    def heads(linear, pixels):
        return linear(pixels.movedim(1, -1)).unflatten(-1, (2, -1)).movedim(3, 1)

    q, k, v = heads(layer.q_proj, x[:, :, ::2, ::2]), heads(layer.k_proj, x), heads(layer.v_proj, x)
    assert (q.shape[-1], v.shape[-1]) == (5, 5 if project else 3)
    y = equations(q, k, v, layer.rows, layer.columns, 2, 1, 2, 5**-0.5, 1.0, "mask").movedim(1, 3).flatten(3)
    y = layer.out_proj(y) if project else y
    assert_close(layer(x), y.movedim(-1, 1), rtol=0, atol=1e-12)


def test_masked_pixels_with_biases_are_still_zeros():
    """A bias makes keys and values of masked pixels that must not count."""
    layer = HaloNet(4, 2, 2, 1, edge="zeros", qkv_bias=True).double()
    x = drawn(1, 4, 3, 4)
    mask = torch.ones(1, 3, 4, dtype=torch.bool)
    mask[..., 3:] = False
    assert_close(layer(x, key_mask=mask)[..., :3], layer(x[..., :3]), rtol=0, atol=1e-12)


def test_weights_are_those_of_the_layer():
    layer = HaloNet(4, 2, 2, 1, stride=2, edge="zeros").double()
    x = drawn(2, 4, 5, 4)
    mask = torch.ones(2, 5, 4, dtype=torch.bool)
    mask[1, 3:] = False
    own = layer.v_proj(x.movedim(1, -1).flatten(1, 2)).unflatten(-1, (2, -1)).transpose(1, 2)
    found = layer.weigh(x, own, key_mask=mask)
    assert found.shape == (2, 2, 6, 2)
    assert_close(found.mT.flatten(1, 2), layer(x, key_mask=mask).flatten(2), rtol=0, atol=1e-12)


def test_refusals():
    for options, message in (
        ({"dim_out": 10}, "dim_out=10 is no multiple of num_heads=3"),
        ({"block": 3, "stride": 2}, "block=3, halo=1, stride=2"),
        ({"halo": -1}, "halo=-1"),
        ({"edge": "reflect"}, "edge='reflect'"),
        ({"dim": 13}, "dim=13 is no multiple"),
    ):
        with pytest.raises(ValueError, match=message):
            regard.create("halonet", **({"dim": 12, "num_heads": 3, "block": 4, "halo": 1} | options))
    with pytest.raises(UnsupportedError, match="a block sees its halo on all sides"):
        regard.create("halonet", dim=12, num_heads=3, causal=True)
