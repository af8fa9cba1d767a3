"""The similarity as loops over its axes, the layer and its unit pixel by pixel, in float64; masks, refusals."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import regard
from regard.mechanisms.gates.fractal_tanimoto import FractalTanimoto, FractalUnit
from regard.ops.map_norms import MapGroupNorm, map_norm
from regard.ops.tanimoto import fractal_tanimoto, tanimoto_loss
from regard.registry import UnsupportedError


def drawn(layer):
    """In evaluation, with norms that do something."""
    for name, tensor in layer.state_dict().items():
        if tensor.is_floating_point() and "norm" in name:
            torch.nn.init.uniform_(tensor, 0.5, 1.5)
    return layer.double().eval()


def alike(p, label, depth):
    """T of two lists of numbers."""
    total = 0.0
    for one, other in ((p, label), ([1 - a for a in p], [1 - b for b in label])):
        pairs = ((one, other), (one, one), (other, other))
        pl, pp, ll = (sum(a * b for a, b in zip(*pair, strict=True)) for pair in pairs)
        terms = [(pl + 1e-5) / (2**d * (pp + ll) - (2 ** (d + 1) - 1) * pl + 1e-5) for d in range(max(depth, 1))]
        total += sum(terms) / len(terms) / 2
    return total


def equations(layer, query, key, value, mask=None):
    """One pixel or channel after the other; masked pixels are absent."""
    mask = torch.ones(len(query), *query.shape[2:], dtype=torch.bool) if mask is None else mask
    q, k, v = (
        part.norm(part.conv(x * mask[:, None])).sigmoid()
        for part, x in ((layer.query, query), (layer.key, key), (layer.value, value))
    )
    y = torch.zeros_like(v)
    for b in range(len(v)):
        real = mask[b].nonzero().tolist()
        for c in range(v.shape[1]):
            channel = alike(q[b, c][mask[b]].tolist(), k[b, c][mask[b]].tolist(), layer.depth)
            for i, j in real:
                spatial = alike(q[b, :, i, j].tolist(), k[b, :, i, j].tolist(), layer.depth)
                y[b, c, i, j] = 0.5 * (channel * v[b, c, i, j] + spatial * v[b, c, i, j])
    return layer.norm(y) * mask[:, None]


@pytest.mark.parametrize("depth", [0, 1, 5, 10])
@pytest.mark.parametrize("axes", [(2, 3), (1,), (1, 2, 3)])
def test_the_similarity_is_a_mean_of_terms(depth, axes):
    p, label = torch.rand(2, 3, 2, 4, dtype=torch.float64), torch.rand(2, 3, 2, 4, dtype=torch.float64)
    found = fractal_tanimoto(p, label, axes, depth)
    lists = [t.movedim(axes, tuple(range(-len(axes), 0))).flatten(-len(axes)) for t in (p, label)]
    flat = [t.reshape(-1, t.shape[-1]).tolist() for t in lists]
    expected = torch.tensor([alike(a, b, depth) for a, b in zip(*flat, strict=True)], dtype=torch.float64)
    assert_close(found.flatten(), expected, rtol=0, atol=1e-12)
    assert found.shape == tuple(1 if axis in axes else side for axis, side in enumerate(p.shape))


@pytest.mark.parametrize("depth", [1, 5])
def test_the_loss_is_zero_at_the_truth_and_grows_away_from_it(depth):
    truth = torch.rand(3, 2, 5, 4) < 0.3
    truth[1], truth[2] = False, True
    losses = [tanimoto_loss((truth.float() - off).abs(), truth.float(), depth) for off in (0.0, 0.1, 0.5, 1.0)]
    assert losses[0].abs().max() < 1e-6
    assert (torch.stack(losses).diff(dim=0) > 0).all()
    assert ((losses[-1] > 0.49) & (losses[-1] <= 1)).all()


def test_the_loss_leaves_out_what_is_masked():
    p, truth = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5).round()
    mask = torch.zeros(2, 1, 4, 5, dtype=torch.bool)
    mask[:, :, :3, :2] = True
    p.requires_grad_()
    odd = truth.masked_fill(~mask, torch.nan)
    loss = tanimoto_loss(p, odd, mask=mask)
    assert_close(loss, tanimoto_loss(p[:, :, :3, :2], truth[:, :, :3, :2]))
    (slope,) = torch.autograd.grad(loss.sum(), p)
    assert slope.isfinite().all()
    assert not slope.masked_select(~mask).any()


def test_the_loss_sums_in_float32():
    """65536 of 256 pixels of 1 would be 256 in bfloat16."""
    truth = torch.ones(1, 1, 256, 256, dtype=torch.bfloat16)
    half = truth / 2
    expected = tanimoto_loss(half.double(), truth.double())
    assert_close(tanimoto_loss(half, truth).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"num_heads": 2, "depth": 0}, {"dim_out": 6, "kernel_size": 1, "depth": 3}])
@pytest.mark.parametrize("masked", [False, True])
def test_matches_the_equations(options, masked):
    layer = drawn(FractalTanimoto(4, **options))
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    mask = torch.rand(2, 3, 5) < 0.6
    y = layer(x.masked_fill(~mask[:, None], torch.nan), key_mask=mask) if masked else layer(x)
    assert_close(y, equations(layer, x, x, x, mask if masked else None), rtol=0, atol=1e-11)


def test_the_relative_form_takes_keys_and_values_from_the_other_map():
    layer = drawn(FractalTanimoto(4, relative=True))
    x, context = torch.randn(2, 2, 4, 3, 5, dtype=torch.float64).unbind()
    assert_close(layer(x, context), equations(layer, x, context, context), rtol=0, atol=1e-11)
    mask = torch.rand(2, 3, 5) < 0.6
    for name in ("key_mask", "query_mask"):
        y = layer(x.masked_fill(~mask[:, None], torch.nan), context, **{name: mask})
        assert_close(y, equations(layer, x, context, context, mask), rtol=0, atol=1e-11)
    third = torch.randn_like(x)
    y, told = layer.compare(x, context, third)
    assert_close(y, equations(layer, x, context, third), rtol=0, atol=1e-11)
    assert {name: t.shape for name, t in told.items()} == {"map/channel": (2, 4), "map/spatial": (2, 3, 5)}


def test_keys_that_queries_may_not_see_are_in_no_similarity():
    layer = drawn(FractalTanimoto(4, relative=True))
    x, context = torch.randn(2, 2, 4, 6, 6, dtype=torch.float64).unbind()
    keys, queries = torch.rand(2, 6, 6) < 0.5, torch.rand(2, 6, 6) < 0.7
    masks = {"key_mask": keys, "query_mask": queries}
    first = layer(x, context, **masks)
    again = layer(x.masked_fill(~queries[:, None], torch.nan), context.masked_fill(~keys[:, None], torch.nan), **masks)
    assert_close(first, again, rtol=0, atol=0)
    assert not first.masked_select(~queries[:, None]).any()


@pytest.mark.parametrize("norm", [{}, {"norm": "group", "norm_groups": 2}, {"norm": "instance"}, {"norm": "layer"}])
def test_padding_is_in_no_statistic_of_training(norm):
    layer, alone = FractalUnit(4, **norm).train(), FractalUnit(4, **norm).train()
    torch.nn.init.ones_(layer.gamma)
    alone.load_state_dict(layer.state_dict())
    x = torch.randn(2, 4, 5, 6)
    mask = torch.zeros(2, 5, 6, dtype=torch.bool)
    mask[:, :4, :3] = True
    y = layer(x.masked_fill(~mask[:, None], torch.nan), mask)
    assert_close(y[:, :, :4, :3], alone(x[:, :, :4, :3]), rtol=1e-4, atol=1e-5)
    assert not y.masked_select(~mask[:, None]).any()
    for name, buffer in alone.named_buffers():
        assert_close(dict(layer.named_buffers())[name], buffer, rtol=1e-4, atol=1e-5, msg=name)


def test_the_unit_is_a_residual_block_times_one_plus_attention():
    unit = drawn(FractalUnit(4, dilation=2, groups=2))
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    block = F.conv2d(unit.norm1(x).relu(), unit.conv1.weight, padding=2, dilation=2, groups=2)
    block = F.conv2d(unit.norm2(block).relu(), unit.conv2.weight, unit.conv2.bias, padding=2, dilation=2, groups=2)
    assert_close(unit(x), x + block, rtol=0, atol=1e-12)
    torch.nn.init.constant_(unit.gamma, 0.7)
    assert_close(unit(x), (x + block) * (1 + 0.7 * unit.attention(x)), rtol=0, atol=1e-12)


def test_norms_without_a_mask_are_those_of_torch():
    x = torch.randn(2, 6, 3, 5)
    assert_close(map_norm("group", 6, 3)(x), F.group_norm(x, 3))
    assert_close(map_norm("instance", 6)(x, torch.ones(2, 3, 5, dtype=torch.bool)), F.instance_norm(x))
    assert_close(map_norm("layer", 6)(x), F.layer_norm(x.movedim(1, -1), (6,)).movedim(-1, 1))
    empty = MapGroupNorm(2, 6)(x, torch.zeros(2, 3, 5, dtype=torch.bool))
    assert empty.isfinite().all()


def test_refusals():
    x = torch.randn(2, 4, 5, 6)
    with pytest.raises(ValueError, match="num_heads=3 must divide both dim=4 and dim_out=6"):
        FractalTanimoto(4, 3, dim_out=6)
    with pytest.raises(ValueError, match="kernel_size=2"):
        FractalTanimoto(4, kernel_size=2)
    with pytest.raises(ValueError, match="depth=-1"):
        FractalTanimoto(4, depth=-1)
    with pytest.raises(ValueError, match="depth=-1"):
        fractal_tanimoto(x, x, (1,), -1)
    with pytest.raises(ValueError, match=r"sets of shapes \(2, 4, 5, 6\) and \(2, 4, 6, 5\)"):
        tanimoto_loss(x, x.mT)
    with pytest.raises(ValueError, match="norm='power'"):
        FractalTanimoto(4, norm="power")
    for options in ({"norm": "group"}, {"norm_groups": 2}):
        with pytest.raises(ValueError, match="needs their number"):
            FractalTanimoto(4, **options)
    with pytest.raises(UnsupportedError, match="a context only with relative=True"):
        FractalTanimoto(4)(x, x)
    with pytest.raises(ValueError, match="pass it as context"):
        FractalTanimoto(4, relative=True)(x)
    with pytest.raises(ValueError, match=r"context \(2, 4, 4, 6\): pixels are compared with those of the same place"):
        FractalTanimoto(4, relative=True)(x, x[:, :, 1:])
    with pytest.raises(ValueError, match="train with two maps or more"):
        FractalTanimoto(4).train()(x[:1, :, :1, :1])
    with pytest.raises(UnsupportedError, match="cannot be causal"):
        regard.create("fractal_tanimoto", dim=4, causal=True)
