import pytest
import torch
from torch.testing import assert_close

import regard
from regard.map_layers import like_format, pixels_of
from regard.models import map_attention
from regard.pixel_layers import MapAttention, OnPixels
from regard.registry import UnsupportedError


def maps(*sides, batch=2, dim=12):
    return torch.randn(batch, dim, *sides)


def test_a_core_on_pixels_is_the_layer_on_rows_of_them():
    layer = MapAttention(12, 3, regard.core("multi_head")).eval()
    x, keep = maps(3, 4, 2), torch.rand(2, 3, 4, 2) < 0.7
    y = layer(x, key_mask=keep)
    rows = layer.layer(x.flatten(2).mT, key_mask=keep.flatten(1))
    assert_close(y, rows.mT.unflatten(-1, (3, 4, 2)))
    assert not y.movedim(1, -1)[~keep].any()


def test_a_second_map_is_asked_by_its_own_pixels():
    layer = MapAttention(12, 3, regard.core("multi_head")).eval()
    x, context, keep = maps(3, 4), maps(5, 2), torch.rand(2, 5, 2) < 0.6
    y = layer(x, context, key_mask=keep)
    rows = layer.layer(x.flatten(2).mT, context.flatten(2).mT, key_mask=keep.flatten(1))
    assert_close(y, rows.mT.unflatten(-1, (3, 4)))


def test_weights_of_pixels():
    layer, x = map_attention("linear_transformer", dim=12, num_heads=3), maps(2, 3)
    values = torch.randn(2, 3, 6, 4)
    assert_close(layer.weigh(x, values), layer.layer.weigh(x.flatten(2).mT, values))
    with pytest.raises(UnsupportedError, match="set_transformer has no weights to show"):
        map_attention("set_transformer", dim=12, num_heads=3).weigh(x, values)


def test_a_layer_on_maps_stays_what_it_is():
    assert not isinstance(map_attention("axial", dim=12, num_heads=3), OnPixels)


@pytest.mark.parametrize(("sides", "form"), [((4, 5), torch.channels_last), ((4, 5, 3), torch.channels_last_3d)])
def test_the_memory_format_is_that_of_the_input(sides, form):
    x = maps(*sides)
    y = torch.randn(2, *sides, 7).movedim(-1, 1)
    assert like_format(y, x).is_contiguous()
    assert like_format(y, x.contiguous(memory_format=form)).is_contiguous(memory_format=form)


def test_rows_of_channels_last_maps_are_no_copy():
    x = maps(4, 5).contiguous(memory_format=torch.channels_last)
    assert pixels_of(x).data_ptr() == x.data_ptr()
    assert_close(pixels_of(x), x.flatten(2).mT, rtol=0, atol=0)
