"""Exact attention maps of every registered mechanism that has them: they are what the layer does."""

import pytest
import torch
from torch.testing import assert_close

from regard.inspect import attention_map
from regard.map_layers import fixed_pattern
from tests.contract.cases import MAPS, SEQUENCES, first_of_each

WIDTH = 3
"""Of the values that are weighed: not the one that the layer projects to."""


def weighs(case):
    layer = case.build()
    return hasattr(layer, "weigh") and getattr(getattr(layer, "core", layer), "weighs_values", True)


WEIGHING = [case for case in SEQUENCES if weighs(case)]
WEIGHING_PIXELS = [case for case in MAPS if weighs(case)]


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=str)


def inputs_of(layer, masked):
    x = torch.randn(2, 9, layer.dim, dtype=torch.float64)
    keep = torch.arange(9) < torch.tensor([[9], [6]])
    return x, ({"key_mask": keep, "generator": seeded()} if masked else {"generator": seeded()})


def seeded():
    return torch.Generator().manual_seed(3)


def joined(layer, x, options):
    """What goes into the output projection, heads first."""
    told = []
    with layer.out_proj.register_forward_pre_hook(lambda module, arguments: told.append(arguments[0])):
        layer(x, **options)
    return told[0].unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)


def values_of(layer, x, width):
    """What each projection to values makes of x, heads first."""
    projections = [part for name, part in layer.named_children() if name.startswith("v_")]
    values = [part(x).unflatten(-1, (-1, width)).transpose(1, 2) for part in projections]
    return [value.repeat_interleave(layer.num_heads // value.shape[1], 1) for value in values]


@each(WEIGHING)
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
def test_an_exact_map_is_what_the_layer_does(case, masked):
    layer = case.build().double()
    x, options = inputs_of(layer, masked)
    weights = attention_map(layer, x, kind="exact", **options).tensor
    assert weights.shape == (2, layer.num_heads, 9, 9)
    values = torch.randn(2, layer.num_heads, 9, WIDTH, dtype=torch.float64)
    options["generator"] = seeded()
    assert_close(layer.weigh(x, values, **options), weights @ values, rtol=0, atol=1e-10)
    options["generator"] = seeded()
    out = joined(layer, x, options)
    if masked:
        hidden = ~options["key_mask"][:, None].expand(2, layer.num_heads, 9)
        assert not weights.mT[hidden].any(), "a masked key has weight 0"
        assert not weights[hidden].any(), "a masked query has weights 0"
        out = out.masked_fill(hidden[..., None], 0.0)
    # a layer with two projections to values uses one of them for each query
    gaps = [(weights @ values - out).abs().amax(-1) for values in values_of(layer, x, out.shape[-1])]
    assert torch.stack(gaps).amin(0).max() < 1e-10


@pytest.mark.parametrize("case", [*first_of_each(SEQUENCES)])
def test_every_layer_has_a_jacobian(case):
    layer = case.build()
    x, keep = torch.randn(2, 5, layer.dim), torch.arange(5) < torch.tensor([[5], [3]])
    found = attention_map(layer, x, kind="jacobian", key_mask=keep).tensor
    rows = found.sum(-1)[:, 0]
    assert (((rows - 1).abs() < 1e-5) | (rows == 0)).all()
    assert not rows[~keep].any()
    assert not found[:, 0].mT[~keep].any()
    assert attention_map(layer, x).kind == ("exact" if case in WEIGHING else "jacobian")


def pixels_of(case):
    """A layer and a map with a few pixels of padding."""
    layer = case.build().double()
    x = torch.randn(2, layer.dim, *(4, 5, 2)[: layer.num_axes or 2], dtype=torch.float64)
    keep = torch.ones(2, *x.shape[2:], dtype=torch.bool)
    keep[1, ..., -1:] = False
    return layer, x, {} if "key_mask" in layer.card.refuses else {"key_mask": keep}


@each(WEIGHING_PIXELS)
def test_an_exact_map_of_pixels_is_what_the_layer_does(case):
    layer, x, options = pixels_of(case)
    weights = attention_map(layer, x, kind="exact", **options).tensor
    values = torch.randn(2, weights.shape[1], weights.shape[3], WIDTH, dtype=torch.float64)
    assert_close(layer.weigh(x, values, **options), weights @ values, rtol=0, atol=1e-10)
    pattern = fixed_pattern(layer, x.shape[2:])
    if pattern is not None and weights.shape[2] == weights.shape[3]:  # means of queries have no pattern
        assert not weights[:, :, ~pattern.dense(*weights.shape[2:])].any()
    if options:
        assert not weights[1].mT[:, ~options["key_mask"][1].flatten()].any(), "a masked key has weight 0"


@pytest.mark.parametrize("case", [*first_of_each(MAPS)])
def test_every_layer_on_maps_has_a_jacobian(case):
    layer, x, options = pixels_of(case)
    found = attention_map(layer, x, kind="jacobian", **options).tensor
    rows = found.sum(-1)[:, 0]
    assert (((rows - 1).abs() < 1e-5) | (rows == 0)).all()
    if options:
        assert not found[1, 0].mT[~options["key_mask"][1].flatten()].any()
    assert attention_map(layer, x, **options).kind == ("exact" if case in WEIGHING_PIXELS else "jacobian")
