"""Kronecker attention as loops over pixels, in float64; masks, volumes and sequences, refusals."""

import itertools

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.lowrank.kronecker import Kronecker, kronecker_attention
from regard.ops.line_means import line_means
from regard.registry import UnsupportedError


def lines(x, mask):
    """The mean of each row, then of each column, and so on; None for one without a pixel that counts."""
    tokens = []
    for axis in range(x.ndim - 1):
        for place in range(x.shape[axis + 1]):
            inside = mask.select(axis, place).flatten()
            pixels = x.select(axis + 1, place).reshape(len(x), -1)
            tokens.append(pixels[:, inside].mean(1) if inside.any() else None)
    return tokens


def look(q, tokens, scale, value=lambda t: t, key=lambda t: t):
    seen = [t for t in tokens if t is not None]
    if not seen:
        return torch.zeros_like(value(q))
    weights = torch.softmax(torch.stack([scale * q @ key(t) for t in seen]), 0)
    return sum(w * value(t) for w, t in zip(weights, seen, strict=True))


def equations(x, context, mask, kind, scale=1.0):
    out = torch.zeros_like(x)
    for b in range(len(x)):
        tokens, sides = lines(context[b], mask[b]), x.shape[2:]
        starts = [sum(sides[:axis]) for axis in range(len(sides))]
        for pixel in itertools.product(*map(range, sides)):
            if kind == "pixels":
                out[(b, slice(None), *pixel)] = look(x[(b, slice(None), *pixel)], tokens, scale)
            else:
                own = [tokens[start + place] for start, place in zip(starts, pixel, strict=True)]
                zero = torch.zeros(x.shape[1], dtype=x.dtype)
                out[(b, slice(None), *pixel)] = sum(look(zero if t is None else t, tokens, scale) for t in own)
    return out


@pytest.mark.parametrize("sides", [(3, 5), (4, 1), (6,), (2, 3, 4)])
@pytest.mark.parametrize("kind", ["pixels", "lines"])
@pytest.mark.parametrize("masked", [False, True])
def test_matches_the_equations(sides, kind, masked):
    x = torch.randn(2, 4, *sides, dtype=torch.float64)
    mask = torch.rand(2, *sides) < 0.5 if masked else torch.ones(2, *sides, dtype=torch.bool)
    if masked:
        mask[0] = mask[0] & (torch.arange(sides[-1]) != 1)  # an empty column
        mask[1] = False
    out = kronecker_attention(x, queries=kind, scale=0.7, key_mask=mask if masked else None)
    assert_close(out, equations(x, x, mask, kind, 0.7), rtol=0, atol=1e-12)
    layer = Kronecker(4, queries=kind, project=False, num_axes=len(sides))
    y = layer(x, key_mask=mask if masked else None)
    assert_close(y, equations(x, x, mask, kind) * mask[:, None], rtol=0, atol=1e-12)


def test_another_map_may_be_asked():
    x, context = torch.randn(2, 4, 3, 2, dtype=torch.float64), torch.randn(2, 4, 5, 7, dtype=torch.float64)
    keys, queries = torch.rand(2, 5, 7) < 0.6, torch.rand(2, 3, 2) < 0.7
    y = Kronecker(4, project=False)(x, context, key_mask=keys, query_mask=queries)
    assert_close(y, equations(x, context, keys, "pixels") * queries[:, None], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["pixels", "lines"])
@pytest.mark.parametrize("scale", [None, "sqrt"])
def test_projections_of_all_pixels_give_the_same(kind, scale):
    """Heads, projections and scale, with every pixel projected instead of its means."""
    layer = Kronecker(6, 2, kind, head_dim=5, scale=scale).double()
    x = torch.randn(2, 6, 4, 3, dtype=torch.float64)
    q, k, v = (linear(x.movedim(1, -1)).movedim(-1, 1) for linear in (layer.q_proj, layer.k_proj, layer.v_proj))
    heads = []
    for head in (slice(0, 5), slice(5, 10)):
        keys, values = line_means(k[:, head])[0], line_means(v[:, head])[0]
        asking = q[:, head].flatten(2) if kind == "pixels" else line_means(q[:, head])[0]
        weights = (asking.mT @ keys * (5**-0.5 if scale else 1)).softmax(-1)
        heads.append(weights @ values.mT)
    y = layer.out_proj(torch.cat(heads, -1)).mT
    expected = y.unflatten(-1, (4, 3)) if kind == "pixels" else y[:, :, :4, None] + y[:, :, None, 4:]
    assert_close(layer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["pixels", "lines"])
def test_gradcheck_with_anything_in_hidden_pixels(kind):
    layer = Kronecker(4, 2, kind).double()
    mask = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1)) < 0.6
    x = torch.randn(2, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer(x, key_mask=mask), x, fast_mode=True)
    odd = x.detach().masked_fill(~mask[:, None], torch.nan).requires_grad_()
    assert_close(layer(odd, key_mask=mask), layer(x, key_mask=mask), rtol=0, atol=0)
    (slope,) = torch.autograd.grad(layer(odd, key_mask=mask).sum(), odd)
    assert slope.isfinite().all()
    assert not slope.masked_select(~mask[:, None]).any()


def test_short_floats_are_summed_in_float32():
    """4096 pixels of 20 are more than float16 holds."""
    x = torch.full((1, 1, 2, 4096), 20.0, dtype=torch.float16)
    assert (line_means(x)[0] == 20).all()
    assert (line_means(x, torch.ones(1, 2, 4096, dtype=torch.bool))[0] == 20).all()


def test_permuted_rows_and_columns_permute_the_result():
    layer, x = Kronecker(4, 2, "lines").double(), torch.randn(1, 4, 5, 6, dtype=torch.float64)
    rows, columns = torch.randperm(5), torch.randperm(6)
    assert_close(layer(x[:, :, rows][..., columns]), layer(x)[:, :, rows][..., columns], rtol=0, atol=1e-12)


def test_refusals():
    x = torch.randn(2, 4, 3, 5)
    with pytest.raises(ValueError, match="queries='rows'"):
        Kronecker(4, queries="rows")
    with pytest.raises(ValueError, match="scale=2"):
        Kronecker(4, scale=2)
    with pytest.raises(ValueError, match="num_axes=0"):
        Kronecker(4, num_axes=0)
    with pytest.raises(ValueError, match="head_dim=3 needs project=True"):
        Kronecker(4, 2, head_dim=3, project=False)
    with pytest.raises(UnsupportedError, match="cannot be causal: the mean of a line has seen all of its pixels"):
        regard.create("kronecker", dim=4, causal=True)
    layer = Kronecker(4, 2)
    with pytest.raises(UnsupportedError, match="no segments"):
        layer(x, segments=torch.zeros(2, 15, dtype=torch.long))
    with pytest.raises(UnsupportedError, match="a context only with"):
        Kronecker(4, queries="lines")(x, x)
    with pytest.raises(ValueError, match="take no context"):
        kronecker_attention(x, x, queries="lines")
    with pytest.raises(ValueError, match=r"x has shape \(2, 4, 15\), expected \(batch, 4, n_1, n_2\)"):
        layer(x.flatten(2))
    with pytest.raises(ValueError, match="x and context hold 2 and 1 maps"):
        layer(x, x[:1])
    with pytest.raises(TypeError, match=r"query_mask is torch\.int64"):
        layer(x, query_mask=torch.ones(2, 3, 5, dtype=torch.long))
    with pytest.raises(ValueError, match=r"key_mask has shape \(2, 5, 3\), but the pixels are \(2, 3, 5\)"):
        layer(x, key_mask=torch.ones(2, 5, 3, dtype=torch.bool))
