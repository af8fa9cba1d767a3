import pytest
import torch
from torch.testing import assert_close

from regard.ops.initialisation import fan_in_normal_
from regard.ops.lines import from_lines, shift, to_lines


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_lines_of_a_grid_and_back(axis):
    x = torch.randn(2, 3, 4, 5, 6)
    lines = to_lines(x, axis)
    others = [a for a in range(3) if a != axis]
    count = 0
    for b in range(2):
        for i in range((3, 4, 5)[others[0]]):
            for j in range((3, 4, 5)[others[1]]):
                place = [slice(None)] * 3
                place[others[0]], place[others[1]] = i, j
                assert torch.equal(lines[count], x[b][tuple(place)])
                count += 1
    assert len(lines) == count
    assert torch.equal(from_lines(lines, x.shape[:-1], axis), x)
    assert torch.equal(to_lines(x[..., 0], axis, features=0), lines[..., 0])


@pytest.mark.parametrize("axis", [0, 1])
def test_shift(axis):
    x = torch.randn(2, 3, 4, 5)
    y = shift(x, axis).movedim(axis + 1, 0)
    assert not y[0].any()
    assert torch.equal(y[1:], x.movedim(axis + 1, 0)[:-1])


def test_fan_in_normal():
    weight = fan_in_normal_(torch.empty(64, 8, 5, 5), scale=4.0)
    deviation = (4 / 200) ** 0.5
    assert_close(float(weight.std()), deviation, rtol=0.02, atol=0)
    assert weight.abs().max() <= 2 * deviation / 0.8796 + 1e-4  # what is cut off is made up for by the rest
