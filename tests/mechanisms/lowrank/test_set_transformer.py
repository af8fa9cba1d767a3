import math

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.lowrank.set_transformer import ISAB, MAB, PMA, SAB, SetTransformerLayer, set_attention
from regard.registry import UnsupportedError


def points(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def drawn(module):
    """Weights large enough that every term counts."""
    for parameter in module.double().parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def norm(y, layer):
    return (y - y.mean()) / (y.var(correction=0) + 1e-5).sqrt() * layer.weight + layer.bias


def equations(block, x, y, seen=None):
    """MAB of one set of queries (N, Cx) and one of points (M, Cy), number by number; only ``seen`` points exist."""
    y = y if seen is None else y[seen]
    q, k, v = block.q_proj(x), block.k_proj(y), block.v_proj(y)
    width, out = q.shape[-1], []
    head = width // block.num_heads
    root = math.sqrt(width if block.scale == "width" else head)
    for n in range(len(x)):
        row = q[n].clone()
        for h in range(block.num_heads):
            own = slice(h * head, (h + 1) * head)
            if len(y):
                weights = torch.stack([(q[n, own] @ k[m, own]) / root for m in range(len(y))]).softmax(0)
                row[own] = row[own] + sum(weights[m] * v[m, own] for m in range(len(y)))
        row = row if block.norm1 is None else norm(row, block.norm1)
        row = row + (block.feed_forward.weight @ row + block.feed_forward.bias).clamp(min=0)
        out.append(row if block.norm2 is None else norm(row, block.norm2))
    return torch.stack(out)


@pytest.mark.parametrize("scale", ["width", "head"])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize(("n", "m", "heads"), [(3, 5, 2), (4, 1, 4), (1, 6, 1)])
def test_a_block_matches_the_equations(scale, layer_norm, n, m, heads):
    block = drawn(MAB(3, 5, 8, heads, scale=scale, layer_norm=layer_norm))
    x, y, mask = points(3, n, 3), points(3, m, 5, seed=1), torch.rand(3, m) < 0.7
    mask[0], mask[1] = True, False  # all of them, none of them, some of them
    expected = torch.stack([equations(block, x[b], y[b], mask[b]) for b in range(3)])
    assert_close(block(x, y, key_mask=mask), expected, rtol=0, atol=1e-12)
    assert_close(block(x[:1], y[:1]), expected[:1], rtol=0, atol=1e-12)


def test_the_blocks_are_made_of_that_one():
    x, y, mask = points(2, 6, 3), points(2, 4, 3, seed=1), torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0]]).bool()
    sab, isab = drawn(SAB(3, 8, 2)), drawn(ISAB(3, 8, 2, num_inducing=3))
    pma, deep = drawn(PMA(8, 2, num_seeds=2)), drawn(PMA(8, 2, num_seeds=2, rff_in_pma=True))
    z = sab(x, y, key_mask=mask)
    assert_close(sab(x), torch.stack([equations(sab.block, x[b], x[b]) for b in range(2)]), rtol=0, atol=1e-12)
    for b in range(2):
        assert_close(z[b], equations(sab.block, x[b], y[b], mask[b]), rtol=0, atol=1e-12)
        middle = equations(isab.gather, isab.inducing[0], y[b], mask[b])
        expected = equations(isab.spread, x[b], middle)
        assert_close(isab(x, y, key_mask=mask)[b], expected, rtol=0, atol=1e-12)
        keep = torch.arange(6) < 5 - b
        pooled = equations(pma.block, pma.seeds[0], z[b], keep)
        assert_close(pma(z, key_mask=keep.expand(2, 6))[b], pooled, rtol=0, atol=1e-12)
        fed = (z[b] @ deep.feed_forward.weight.T + deep.feed_forward.bias).relu()
        assert_close(deep(z)[b], equations(deep.block, deep.seeds[0], fed), rtol=0, atol=1e-12)


def test_inducing_points_are_seen_even_where_no_point_is():
    layer, nobody = drawn(SetTransformerLayer(8, 2, num_inducing=3)), torch.zeros(2, 5, dtype=torch.bool)
    x, gather, spread = points(2, 5, 8), layer.block.gather, layer.block.spread
    y = layer(x, key_mask=nobody, query_mask=~nobody)
    middle = equations(gather, layer.block.inducing[0], x[0], slice(0))
    assert_close(y[0], equations(spread, x[0], middle), rtol=0, atol=1e-12)


def test_cost_is_linear_in_points():
    """Nothing of N x N is ever made: 50,000 points through 4 inducing ones."""
    layer = SetTransformerLayer(8, 2, num_inducing=4)
    with torch.no_grad():
        assert layer(torch.randn(1, 50_000, 8)).isfinite().all()


def test_inducing_points_and_seeds_start_over_three_axes():
    torch.manual_seed(0)
    for start, count in ((ISAB(3, 64, 4, num_inducing=20).inducing, 20), (PMA(64, 4, num_seeds=20).seeds, 20)):
        bound = math.sqrt(6 / ((count + 1) * 64))
        assert start.shape == (1, count, 64)
        assert 0.95 * bound < start.abs().max() <= bound


def test_the_scale_is_that_of_the_full_width():
    q, k = points(1, 4, 8), points(2, 5, 8, seed=1)
    for scale, root in (("width", 8**0.5), ("head", 2**0.5)):
        weights = (q[..., :2] @ k[..., :2].mT / root).softmax(-1)
        found = set_attention(q, k, k, num_heads=4, scale=scale)
        assert_close(found[..., :2], q[..., :2] + weights @ k[..., :2], rtol=0, atol=1e-12)


def test_refusals():
    with pytest.raises(UnsupportedError, match="cannot be causal: a set has no order"):
        regard.create("set_transformer", dim=8, num_heads=2, causal=True)
    with pytest.raises(ValueError, match="dim=8 is no multiple of num_heads=3"):
        MAB(2, 2, 8, 3)
    with pytest.raises(ValueError, match="scale='heads' is neither"):
        MAB(2, 2, 8, 2, scale="heads")
    with pytest.raises(ValueError, match="num_inducing=0"):
        SetTransformerLayer(8, 2, num_inducing=0)
    with pytest.raises(ValueError, match="num_seeds=0"):
        PMA(8, 2, num_seeds=0)
    layer, x = SetTransformerLayer(8, 2), torch.randn(2, 3, 8)
    with pytest.raises(UnsupportedError, match="without context"):
        layer(x, x, segments=torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="2 and 1 sets"):
        layer(x, x[:1])
    with pytest.raises(ValueError, match="context has shape"):
        layer(x, torch.randn(2, 3, 7))
