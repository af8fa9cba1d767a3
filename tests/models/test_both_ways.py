"""Layers between two inputs: both are answered, by one set of weights, on sequences and on maps."""

import pytest
import torch
from torch.testing import assert_close

from regard.models.both_ways import Across, across
from regard.pair_layers import PairLayer
from regard.registry import Card, UnsupportedError


class Swap(PairLayer):
    """Answers both sides at once: each gets the other's mean."""

    card = Card(title="Swap", paper="none", year=2026, family="pairs", data="pair", cross=True)
    dim = context_dim = 4

    def meet(self, x, context, *, key_mask, query_mask, generator):
        y, z = (a + b.mean(1, keepdim=True) for a, b in ((x, context), (context, x)))
        return (y, z)


def two_maps():
    x, context = torch.randn(2, 6, 3, 4), torch.randn(2, 6, 2, 5)
    return x, context, torch.rand(2, 3, 4) < 0.7, torch.rand(2, 2, 5) < 0.7


@pytest.mark.parametrize("mechanism", ["linear_transformer", "full", "set_transformer"])
def test_one_layer_goes_both_ways(mechanism):
    torch.manual_seed(0)
    layer = across(mechanism, dim=6, num_heads=2, max_length=20).eval()
    x, context = torch.randn(2, 7, 6), torch.randn(2, 5, 6)
    query_mask, key_mask = torch.rand(2, 7) < 0.7, torch.rand(2, 5) < 0.7
    y, z = layer(x, context, key_mask=key_mask, query_mask=query_mask)
    assert_close(y, layer.layer(x, context, key_mask=key_mask, query_mask=query_mask))
    assert_close(z, layer.layer(context, x, key_mask=query_mask, query_mask=key_mask))
    assert not y[~query_mask].any()
    assert not z[~key_mask].any()


def test_maps_of_a_layer_on_sequences_are_its_pixels():
    torch.manual_seed(0)
    layer = across("full", dim=6, num_heads=2)
    x, context, query_mask, key_mask = two_maps()
    y, z = layer(x, context, key_mask=key_mask, query_mask=query_mask)
    rows = [t.flatten(2).mT for t in (x, context)]
    masks = {"key_mask": key_mask.flatten(1), "query_mask": query_mask.flatten(1)}
    for map, row in zip((y, z), layer(*rows, **masks), strict=True):
        assert_close(map.flatten(2).mT, row)
    assert (y.shape, z.shape) == (x.shape, context.shape)


def test_maps_of_a_layer_on_maps():
    torch.manual_seed(0)
    layer = across("kronecker", dim=6, num_heads=2, max_length=20)
    x, context, query_mask, key_mask = two_maps()
    y, z = layer(x, context, key_mask=key_mask, query_mask=query_mask)
    assert_close(y, layer.layer(x, context, key_mask=key_mask, query_mask=query_mask))
    assert_close(z, layer.layer(context, x, key_mask=query_mask, query_mask=key_mask))


def test_a_layer_that_answers_both_is_asked_once():
    layer = Across(Swap())
    x, context = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    (y, z), aux = layer(x, context, return_aux=True)
    assert_close(y, x + context.mean(1, keepdim=True))
    assert_close(z, context + x.mean(1, keepdim=True))
    assert aux == {}
    x, context = torch.randn(2, 4, 2, 3), torch.randn(2, 4, 3, 3)
    y, z = layer(x, context)
    assert_close(z, context + x.mean((2, 3), keepdim=True))
    assert y.shape == x.shape


def test_what_each_way_tells_stays_apart():
    class Telling(Swap):
        def meet(self, x, context, **options):
            return x, {"metric/length": torch.tensor(float(x.shape[1]))}

    _, aux = Across(Telling())(torch.randn(2, 3, 4), torch.randn(2, 5, 4), return_aux=True)
    assert {name: float(value) for name, value in aux.items()} == {"metric/x/length": 3, "metric/context/length": 5}


def test_refusals():
    with pytest.raises(UnsupportedError, match="local attends within one sequence"):
        across("local", dim=6, num_heads=2)
    with pytest.raises(UnsupportedError, match="axial attends within one map"):
        across("axial", dim=6, num_heads=2)
    with pytest.raises(TypeError, match="no_such_option"):
        across("full", dim=6, num_heads=2, no_such_option=1)
    with pytest.raises(ValueError, match="no mechanism is called"):
        across("nobody", dim=6, num_heads=2)
