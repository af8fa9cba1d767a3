"""Gathering and distributing as loops, in float64, in one to three axes; options, masks and refusals."""

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.linear.double_attention import DoubleAttention
from regard.registry import UnsupportedError


def equations(layer, x, mask):
    """Z as rows (B, N, m)."""
    out = []
    for pixels, keep in zip(x.flatten(2).mT, mask.flatten(1), strict=True):
        a, places, mixture = layer.features(pixels), layer.places(pixels), layer.mixture(pixels).softmax(1)
        descriptors = [sum(w * row for w, row in zip(k[keep].softmax(0), a[keep], strict=True)) for k in places.T]
        out.append(torch.stack([sum(s * g for s, g in zip(row, descriptors, strict=True)) for row in mixture]))
    return torch.stack(out)


@pytest.mark.parametrize("sides", [(6,), (3, 4), (2, 3, 2)])
@pytest.mark.parametrize(("reconstruct", "residual"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("masked", [False, True])
def test_matches_the_equations(sides, reconstruct, residual, masked):
    layer = DoubleAttention(6, 3, 3, reconstruct=reconstruct, residual=residual).double()
    x, mask = torch.randn(2, 6, *sides, dtype=torch.float64), torch.ones(2, *sides, dtype=torch.bool)
    if masked:
        mask[1, ..., :1] = False
    z = equations(layer, x, mask)
    y = layer.out_proj(z) if reconstruct else z
    expected = (y.mT.unflatten(-1, sides) + (x if residual else 0)) * mask[:, None]
    assert_close(layer(x.masked_fill(~mask[:, None], torch.nan), key_mask=mask), expected, rtol=0, atol=1e-12)


def test_without_pixels_there_is_nothing_to_hand_out():
    layer, x = DoubleAttention(4, 4, 2, reconstruct=False, residual=False), torch.randn(1, 4, 3, 3)
    nobody = torch.zeros(1, 3, 3, dtype=torch.bool)
    assert not layer(x, key_mask=nobody, query_mask=~nobody).any()


def test_a_quarter_of_the_width_is_the_default():
    layer = DoubleAttention(12)
    assert (layer.features.out_features, layer.places.out_features, layer.mixture.out_features) == (3, 3, 3)
    assert DoubleAttention(2).features.out_features == 1


def test_features_of_the_width_of_x_need_no_matrix_for_a_residual():
    layer, x = DoubleAttention(4, 4, 2, reconstruct=False), torch.randn(1, 4, 3, 3)
    assert_close(layer(x), x + equations(layer, x, torch.ones(1, 3, 3).bool()).mT.unflatten(-1, (3, 3)))


def test_refusals():
    with pytest.raises(ValueError, match="dim=8 channels and the output features=2: pass residual=False"):
        DoubleAttention(8, reconstruct=False)
    with pytest.raises(ValueError, match="descriptors=0"):
        DoubleAttention(8, descriptors=0)
    with pytest.raises(UnsupportedError, match="cannot be causal: a descriptor has seen all pixels"):
        regard.create("double_attention", dim=8, causal=True)
