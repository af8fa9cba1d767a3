import math

import pytest
import torch
from torch.testing import assert_close

from regard.models.subsampling import Subsampling


def convolved(x, weight, bias, ahead):
    """3 x 3, stride 2, ReLU; x (K, T, F), a loop over all places. ``ahead``: rows after the middle that are read."""
    channels, rows, columns = len(weight), -(-x.shape[1] // 2), -(-x.shape[2] // 2)
    out = x.new_zeros(channels, rows, columns)
    for k in range(channels):
        for t in range(rows):
            for f in range(columns):
                total = bias[k].clone()
                for i in range(3):
                    for j in range(3):
                        row, column = 2 * t + ahead + i - 2, 2 * f + j - 1
                        if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                            total += (weight[k, :, i, j] * x[:, row, column]).sum()
                out[k, t, f] = total.clamp(min=0)
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("frames", "mels"), [(1, 6), (2, 5), (7, 7), (10, 6)])
def test_matches_the_equations(causal, frames, mels):
    layer = Subsampling(mels, 4, channels=3, causal=causal, dtype=torch.float64)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(1, frames, mels, dtype=torch.float64)
    maps = convolved(x, layer.first.weight, layer.first.bias, not causal)
    maps = convolved(maps, layer.second.weight, layer.second.bias, not causal)
    expected = maps.transpose(0, 1).flatten(1) @ layer.out.weight.T + layer.out.bias
    found, mask = layer(x)
    assert mask is None
    assert_close(found[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_padding_changes_nothing(causal):
    layer, x = Subsampling(6, 4, causal=causal), torch.randn(3, 9, 6)
    torch.nn.init.normal_(layer.first.bias)  # else what lies behind the end would be 0 by itself
    mask = torch.arange(15) < torch.tensor([[9], [5], [1]])
    padded = torch.full((3, 15, 6), math.nan)
    padded[mask] = x[mask[:, :9]]
    found, real = layer(padded, mask)
    assert real.sum(1).tolist() == [3, 2, 1]
    for row, count in enumerate((9, 5, 1)):
        alone, _ = layer(x[row : row + 1, :count])
        assert_close(found[row, real[row]], alone[0], rtol=0, atol=1e-6)
        assert not found[row, ~real[row]].any()


@pytest.mark.parametrize("sizes", [(13,), (1,) * 13, (1, 0, 4, 2, 6)])
def test_pieces_are_the_whole(sizes):
    layer, x = Subsampling(6, 4, causal=True), torch.randn(2, 13, 6)
    memory, found = layer.memory(2), []
    for piece in x.split(sizes, 1):
        y, memory = layer.stream(piece, memory)
        found.append(y)
        assert memory.frames.shape[1] <= 3
        assert memory.maps.shape[2] <= 3
    assert_close(torch.cat(found, 1), layer(x)[0], rtol=0, atol=1e-6)


def test_frames_of_variance_1_stay_about_as_large():
    x, _ = Subsampling(80, 144)(torch.randn(4, 100, 80))
    assert 0.5 < float(x.detach().std()) < 2


def test_nothing_comes_of_nothing():
    layer = Subsampling(6, 4)
    assert layer(torch.zeros(2, 0, 6))[0].shape == (2, 0, 4)
    with pytest.raises(ValueError, match=r"frames has shape \(2, 9, 5\), expected \(batch, length, 6\)"):
        layer(torch.zeros(2, 9, 5))
