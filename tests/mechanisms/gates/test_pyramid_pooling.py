"""Bins as loops in float64, for both the module and its ancestor; sizes, windows, training on one map, refusals."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import regard
from regard.mechanisms.gates.pyramid_pooling import PyramidPooling, SpatialPyramid, bin_means, spatial_pyramid
from regard.registry import UnsupportedError

SIZES = [(12, 6), (5, 7), (13, 1), (2, 3)]


def covered(a, n, i):
    """The places of bin i of n on a side of a."""
    return [place for place in range(a) if place >= i * a // n and place < (i + 1) * a / n]


def binned(plane, n, reduce):
    rows, columns = ([covered(a, n, i) for i in range(n)] for a in plane.shape)
    return torch.stack([torch.stack([reduce(plane[r][:, c]) for c in columns]) for r in rows])


def stretched(grid, height, width):
    """Bilinear, corners on corners, pixel by pixel."""
    n, out = len(grid), grid.new_zeros(height, width)
    for i, j in torch.cartesian_prod(torch.arange(height), torch.arange(width)).tolist():
        y, x = (0.0 if side == 1 else p * (n - 1) / (side - 1) for p, side in ((i, height), (j, width)))
        for r, c in torch.cartesian_prod(torch.arange(n), torch.arange(n)).tolist():
            out[i, j] += max(0.0, 1 - abs(y - r)) * max(0.0, 1 - abs(x - c)) * grid[r, c]
    return out


@pytest.mark.parametrize("sides", SIZES)
@pytest.mark.parametrize("pool", ["max", "avg"])
@pytest.mark.parametrize("rule", ["bins", "slices"])
def test_the_vector_is_level_after_level(sides, pool, rule):
    x = torch.randn(2, 3, *sides, dtype=torch.float64)
    reduce = {"max": torch.max, "avg": torch.mean}[pool]
    expected = [torch.cat([binned(plane, n, reduce).flatten() for n in (4, 1, 3) for plane in image]) for image in x]
    found = spatial_pyramid(x, (4, 1, 3), pool, rule)
    assert_close(found, torch.stack(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", ["bins", "slices"])
def test_of_equal_values_the_first_gets_the_gradient(rule):
    x = torch.zeros(1, 1, 2, 4)
    x[0, 0, 0, 1] = x[0, 0, 1, 0] = 1  # in reading order the upper one, column by column the left one
    x.requires_grad_()
    spatial_pyramid(x, (1,), "max", rule).sum().backward()
    assert x.grad.nonzero().tolist() == [[0, 0, 0, 1]]


@pytest.mark.parametrize("pool", ["max", "avg"])
def test_windows_are_those_of_the_paper(pool):
    x = torch.randn(2, 3, 13, 12, dtype=torch.float64)
    reduce = {"max": torch.amax, "avg": torch.mean}[pool]
    rows = [slice(0, 4), slice(3, 7), slice(6, 10), slice(9, 13)]  # ceil(13 / 4) wide, floor(13 / 4) apart
    columns = [slice(3 * i, 3 * i + 3) for i in range(4)]
    expected = torch.stack([reduce(x[:, :, r, c], (2, 3)) for r in rows for c in columns], -1)
    assert_close(spatial_pyramid(x, (4,), pool, "windows"), expected.flatten(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("side", "bins"), [(5, 3), (6, 4), (7, 4), (10, 6), (15, 6), (3, 4)])
def test_windows_that_do_not_come_out_are_refused(side, bins):
    x = torch.randn(1, 2, side, 12)
    with pytest.raises(ValueError, match=f"a side of {side} gives .* windows .* not {bins}"):
        spatial_pyramid(x, (bins,), rule="windows")
    assert spatial_pyramid(x, (bins,)).shape == (1, 2 * bins**2)


@pytest.mark.parametrize("sides", SIZES)
def test_the_module_matches_the_equations(sides):
    layer = PyramidPooling(4, (1, 3, 6), width=2).double().eval()
    for name, tensor in layer.state_dict().items():
        if "norm" in name and tensor.is_floating_point():
            torch.nn.init.uniform_(tensor, 0.5, 1.5)
    x = torch.randn(2, 4, *sides, dtype=torch.float64)
    parts = [x]
    for n, branch in zip((1, 3, 6), layer.branches, strict=True):
        means = torch.stack([torch.stack([binned(plane, n, torch.mean) for plane in image]) for image in x])
        norm, g = branch.norm, torch.einsum("dc,bcij->bdij", branch.linear.weight, means)
        mean, var, weight, bias = (
            t.view(-1, 1, 1) for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        g = ((g - mean) / torch.sqrt(var + 1e-5) * weight + bias).clamp(min=0)
        parts.append(torch.stack([torch.stack([stretched(grid, *sides) for grid in image]) for image in g]))
    y = layer(x)
    assert y.shape[1] == layer.dim_out == 10
    assert_close(y, torch.cat(parts, 1), rtol=0, atol=1e-12)


def test_the_published_width():
    """2048 channels become 4096; 512 for each of four bins."""
    layer = PyramidPooling(2048, device="meta")
    assert layer.dim_out == 4096
    assert sum(p.numel() for p in layer.parameters()) == 4 * (512 * 2048 + 2 * 512)


def test_means_and_their_gradients_are_those_of_adaptive_pooling():
    x = torch.randn(2, 3, 11, 8, dtype=torch.float64, requires_grad=True)
    for n, found in zip((1, 4, 9), bin_means(x, (1, 4, 9)), strict=True):
        expected = F.adaptive_avg_pool2d(x, n)
        assert_close(found, expected, rtol=0, atol=1e-14)
        slopes = [torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0] for y in (found, expected)]
        assert_close(*slopes, rtol=0, atol=1e-14)


def test_training_on_one_map_needs_a_group_norm():
    x = torch.randn(1, 8, 5, 5)
    with pytest.raises(ValueError, match=r"shape \(1, 2, 1, 1\) .* train with two maps or more, or .* groups="):
        PyramidPooling(8).train()(x)
    y = PyramidPooling(8, groups=1).train()(x)
    y.sum().backward()
    assert PyramidPooling(8, bins=(2,)).train()(x).isfinite().all()
    layer = PyramidPooling(8, width=4, groups=2)
    assert_close(layer(torch.cat((x, 9 * x)))[:1], layer(x))


def test_refusals():
    x = torch.randn(2, 8, 5, 5)
    for options in ({"pool": "sum"}, {"rule": "cells"}, {"levels": ()}, {"levels": (2, 0)}):
        with pytest.raises(ValueError, match=next(iter(options))):
            spatial_pyramid(x, **options)
        with pytest.raises(ValueError, match=next(iter(options))):
            SpatialPyramid(**options)
    with pytest.raises(ValueError, match=r"bins=\(\)"):
        PyramidPooling(8, bins=())
    with pytest.raises(UnsupportedError, match="takes no masks: its bins are shares of the whole map"):
        PyramidPooling(8).eval()(x, key_mask=torch.ones(2, 5, 5, dtype=torch.bool))
    with pytest.raises(UnsupportedError, match="cannot be causal"):
        regard.create("pyramid_pooling", dim=8, causal=True)
