import pytest
import torch
from torch.testing import assert_close

from regard.ops.rotary import Rotary, rotate


def test_matches_the_rotation_matrix():
    x, positions = torch.randn(2, 3, 4, 6).double(), torch.randint(100, (2, 4))
    out = rotate(x, positions, base=50.0)
    for b, n, pair in torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(3)).tolist():
        angle = positions[b, n].double() * 50.0 ** (-2 * pair / 6)
        matrix = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]]).double()
        for h in range(3):
            assert_close(out[b, h, n, [pair, pair + 3]], matrix @ x[b, h, n, [pair, pair + 3]])


def test_scores_depend_on_distances_only():
    q, k, places = torch.randn(1, 2, 5, 8).double(), torch.randn(1, 2, 5, 8).double(), torch.arange(5)[None]
    scores = [rotate(q, places + shift) @ rotate(k, places + shift).mT for shift in (0, 1000)]
    assert_close(*scores)


def test_half_precision_turns_far_positions_in_float32():
    x = torch.randn(1, 1, 1, 8)
    far = torch.tensor([[100_003]])
    assert_close(rotate(x.bfloat16(), far), rotate(x.bfloat16().float(), far).bfloat16(), rtol=0, atol=0)
    assert Rotary(10000.0).bfloat16().state_dict() == {}


def test_refusals():
    with pytest.raises(ValueError, match=r"rotary=0.*positive"):
        Rotary(0.0)
