"""Lambdas as loops over pixels, in float64; both forms, depths, masks, strides, other numbers of axes, refusals."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from regard.mechanisms.lowrank.lambda_networks import LambdaNetworks, lambda_attention


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def equations(q, k, v, table, mask, bias=None):
    """A lambda for each pixel, applied to its queries; pixels that are masked are simply absent."""
    sides, out = q.shape[1:-2], q.new_zeros(*q.shape[:-1], v.shape[-1])
    places = list(itertools.product(*map(range, sides)))
    for b in range(len(q)):
        seen = [m for m in places if mask[(b, *m)]]
        if not seen:
            continue
        weights = torch.stack([k[(b, *m)] for m in seen]).softmax(0)
        content = sum(w.T @ v[(b, *m)] for w, m in zip(weights, seen, strict=True))
        for n in places:
            matrix = content if bias is None else content + bias[:, None]
            for m in seen:
                at = [j - i + r // 2 for i, j, r in zip(n, m, table.shape[2:], strict=True)]
                if all(0 <= a < r for a, r in zip(at, table.shape[2:], strict=True)):
                    matrix = matrix + table[(..., *at)] @ v[(b, *m)]
            out[(b, *n)] = q[(b, *n)] @ matrix
    return out


@pytest.mark.parametrize("sides", [(4, 5), (1, 1), (6,), (2, 3, 2)])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("reach", [3, 13])
@pytest.mark.parametrize("masked", [False, True])
def test_matches_the_equations(sides, depth, reach, masked):
    q, k, v = random(3, *sides, 2, 3), random(3, *sides, depth, 3), random(3, *sides, depth, 4)
    table, bias = random(3, depth, *[reach] * len(sides)), random(3) if depth == 2 else None
    mask = torch.rand(3, *sides) < 0.6 if masked else torch.ones(3, *sides, dtype=torch.bool)
    if masked:
        mask[1] = False
    out = lambda_attention(q, k, v, table, bias=bias, key_mask=mask if masked else None)
    assert_close(out, equations(q, k, v, table, mask, bias), rtol=0, atol=1e-11)


def layer_equations(layer, x, mask):
    """Projections and norms with the statistics that the layer has, and the heads side by side."""
    pixels, width = x.movedim(1, -1), layer.table.shape[0]

    def norm(part, t):
        return (t - part.running_mean) / (part.running_var + part.eps).sqrt() * part.weight + part.bias

    q = norm(layer.q_norm, pixels @ layer.q_proj.weight.T).unflatten(-1, (-1, width))
    k = (pixels @ layer.k_proj.weight.T).unflatten(-1, (-1, width))
    v = norm(layer.v_norm, pixels @ layer.v_proj.weight.T).unflatten(-1, (k.shape[-2], -1))
    return equations(q, k, v, layer.table, mask, layer.bias).flatten(-2).movedim(-1, 1) * mask[:, None]


def trained(layer):
    """With statistics and weights that norms have after some training."""
    for part in (layer.q_norm, layer.v_norm):
        for tensor in (part.running_mean, part.weight.data, part.bias.data):
            tensor.normal_()
        part.running_var.uniform_(0.5, 2)
    return layer.double().eval()


@pytest.mark.parametrize("options", [{"kernel": 3}, {"grid": (4, 7)}, {"grid": (5, 6), "intra_depth": 3, "dim_out": 8}])
def test_layers(options):
    layer, x = trained(LambdaNetworks(6, 2, 3, **options)), random(2, 6, 4, 5)
    mask = torch.rand(2, 4, 5) < 0.7
    everywhere = torch.ones_like(mask)
    assert_close(layer(x), layer_equations(layer, x, everywhere), rtol=0, atol=1e-11)
    assert_close(layer(x, key_mask=mask), layer_equations(layer, x, mask), rtol=0, atol=1e-11)


@pytest.mark.parametrize("sides", [(7,), (3, 4, 2)])
def test_lines_and_volumes(sides):
    layer = trained(LambdaNetworks(6, 2, 3, kernel=3, num_axes=len(sides)))
    x, mask = random(2, 6, *sides), torch.rand(2, *sides) < 0.7
    assert_close(layer(x, key_mask=mask), layer_equations(layer, x, mask), rtol=0, atol=1e-11)


@pytest.mark.parametrize("sides", [(5, 4), (1, 2)])
def test_a_stride_averages_what_is_there(sides):
    layer, x = trained(LambdaNetworks(6, 2, 3, kernel=3, stride=2, bias=True)), random(2, 6, *sides)
    mask = torch.rand(2, *sides) < 0.7
    whole = layer_equations(layer, x, mask)
    y = layer(x, key_mask=mask)
    assert y.shape[2:] == tuple(-(-side // 2) for side in sides)
    for b, i, j in itertools.product(range(2), *map(range, y.shape[2:])):
        window = (b, slice(max(0, 2 * i - 1), 2 * i + 2), slice(max(0, 2 * j - 1), 2 * j + 2))
        seen = mask[window]
        expected = whole[(b, slice(None), *window[1:])][:, seen].mean(-1) * mask[b, 2 * i, 2 * j]
        assert_close(y[b, :, i, j], expected if seen.any() else torch.zeros_like(expected), rtol=0, atol=1e-11)
    full = torch.ones_like(mask)
    assert_close(layer(x), layer(x, key_mask=full), rtol=0, atol=1e-12)


def test_a_row_of_weights_for_each_depth():
    """The heads of y are the sums of what each depth makes of its own values."""
    layer, x = trained(LambdaNetworks(6, 2, 3, kernel=3, intra_depth=2)), random(2, 6, 3, 4)
    values = layer.v_norm(layer.v_proj(x.movedim(1, -1))).flatten(1, 2).unflatten(-1, (2, 3)).transpose(1, 2)
    weighed = layer.weigh(x, values.repeat(1, 2, 1, 1)).unflatten(1, (2, 2)).sum(2)
    assert_close(weighed.transpose(1, 2).flatten(2).mT.unflatten(-1, (3, 4)), layer(x), rtol=0, atol=1e-11)


def test_masked_pixels_are_in_no_statistic():
    layer, x = LambdaNetworks(6, 2, 3, kernel=3).double().train(), random(2, 6, 4, 5)
    mask = torch.rand(2, 4, 5) < 0.7
    y = layer(x.masked_fill(~mask[:, None], 50.0), key_mask=mask)
    pixels = x.movedim(1, -1)[mask]
    for norm, projection in ((layer.q_norm, layer.q_proj), (layer.v_norm, layer.v_proj)):
        assert_close(norm.running_mean, 0.1 * projection(pixels).mean(0), rtol=0, atol=1e-12)
    assert_close(y, layer(x, key_mask=mask), rtol=0, atol=1e-12)


def test_starts_as_in_the_paper():
    layer = LambdaNetworks(64, 4, 16, kernel=7, intra_depth=4)
    for weight, expected in (
        (layer.q_proj.weight, (16 * 64) ** -0.5),
        (layer.k_proj.weight, 1 / 8),
        (layer.v_proj.weight, 1 / 8),
        (layer.table, 1.0),
    ):
        assert abs(weight.std().item() / expected - 1) < 0.1
    assert LambdaNetworks(8).table.shape == (16, 1, 23, 23)
    assert LambdaNetworks(8, grid=(3, 5)).table.shape == (16, 1, 5, 9)


def test_refusals():
    for options, message in (
        ({"kernel": 4}, "kernel=4: an odd number"),
        ({"kernel": 3, "grid": (2, 2)}, "kernel=3 is the local form"),
        ({"grid": (2,)}, r"grid=\(2,\) holds no 2 positive sides"),
        ({"grid": (2, 0)}, "positive sides"),
        ({"num_axes": 4}, "num_axes=4"),
        ({"stride": 3}, "stride=3"),
        ({"intra_depth": 0}, "intra_depth=0"),
        ({"dim_out": 7}, "dim=7 is no multiple of num_heads=2"),
    ):
        with pytest.raises(ValueError, match=message):
            LambdaNetworks(6, 2, 3, **options)
    layer = LambdaNetworks(6, 2, 3, grid=(4, 5))
    with pytest.raises(ValueError, match=r"x has shape \(1, 6, 5, 4\).*grid=\(4, 5\)"):
        layer(torch.randn(1, 6, 5, 4))
    with pytest.raises(ValueError, match=r"values has shape \(1, 3, 20, 2\)"):
        layer.weigh(torch.randn(1, 6, 4, 5), torch.randn(1, 3, 20, 2))
