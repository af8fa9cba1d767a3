import math

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.linear.talk_convolutions import TalkConvolutions, talk_convolution
from regard.registry import UnsupportedError


def equations(u, left, right, max_left, max_right):
    """Section 3 of the paper: every window summed token by token; windows stand at the last tokens."""
    n, m = left.shape[-1], u.shape[-2]
    out = u.new_zeros(*left.shape, u.shape[-1])
    for b, h, i in torch.cartesian_prod(*map(torch.arange, left.shape)).tolist():
        place = i + m - n
        low = (place - left[b, h, i] * max_left).clamp(0, m - 1)
        high = torch.tensor(float(place)) if right is None else (place + right[b, h, i] * max_right).clamp(0, m - 1)
        first, last = math.ceil(low.detach()), math.floor(high.detach())
        total = sum((u[b, h, j] for j in range(first, last + 1)), torch.zeros_like(u[b, h, 0]))
        total = total + (first - low) * u[b, h, math.floor(low.detach())]
        total = total + (high - last) * u[b, h, math.ceil(high.detach())]
        out[b, h, i] = total / (max_left + max_right + 1)
    return out


@pytest.mark.parametrize(("max_left", "max_right"), [(3, 5), (1, 1), (40, 2), (3, 0), (40, 0)])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (9, 9), (2, 9), (70, 70)])
def test_matches_the_equations(max_left, max_right, n, m):
    u = torch.randn(2, 3, m, 4, dtype=torch.float64, requires_grad=True)
    left, right = (torch.rand(2, 3, n, dtype=torch.float64, requires_grad=True) for _ in range(2))
    right = right if max_right else None
    out = talk_convolution(u, left, right, max_left=max_left, max_right=max_right)
    expected = equations(u, left, right, max_left, max_right)
    assert_close(out, expected, rtol=0, atol=1e-12)
    leaves, weights = [t for t in (u, left, right) if t is not None], torch.randn_like(out)
    slopes = [torch.autograd.grad((y * weights).sum(), leaves, materialize_grads=True) for y in (out, expected)]
    assert_close(*slopes, rtol=0, atol=1e-11)


def test_the_layer_predicts_its_windows_from_what_it_averages():
    layer = TalkConvolutions(12, 3, head_dim=5, max_left=4, max_right=2).double()
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    first, second = layer.v_proj[0](x).chunk(2, -1)
    u = first * second.sigmoid()
    reach = layer.windows.offsets(u).sigmoid().transpose(1, 2)
    out = equations(u.unflatten(-1, (3, 5)).transpose(1, 2), reach[:, :3], reach[:, 3:], 4, 2)
    assert_close(layer(x), layer.out_proj(out.transpose(1, 2).flatten(2)), rtol=0, atol=1e-12)


def test_the_divisor_is_constant():
    u, whole = torch.ones(1, 1, 5, 1), torch.ones(1, 1, 5)
    out = talk_convolution(u, whole, whole, max_left=2, max_right=1) * 4
    assert out.flatten().tolist() == [2, 3, 4, 4, 3]


def test_long_sequences_are_summed_in_float32():
    """In half precision the prefix sums would lose the windows."""
    u = 1 + torch.rand(1, 1, 3000, 2)
    left = torch.rand(1, 1, 3000)
    out = talk_convolution(u.bfloat16(), left, max_left=7)
    exact = talk_convolution(u.bfloat16().double(), left.double(), max_left=7)
    assert out.dtype == torch.bfloat16
    assert_close(out.double(), exact, rtol=2**-7, atol=1e-2)


def test_memory_holds_what_windows_reach_and_no_more():
    layer = TalkConvolutions(12, 3, max_left=6, causal=True).eval()
    x, memory, outs = torch.randn(2, 100, 12), layer.memory(2), []
    for piece in x.split([2, 1, 1, 70, 26], 1):
        y, memory = layer.stream(piece, memory)
        assert memory.value.shape == (2, 3, 6, 4)
        outs.append(y)
    assert_close(torch.cat(outs, 1), layer(x), rtol=1e-5, atol=1e-5)


def test_dropout_is_on_the_reaches():
    layer = TalkConvolutions(12, 3, max_left=4, causal=True, attn_drop=0.5).train()
    x = torch.randn(1, 200, 12)
    u = layer.v_proj(x)
    reach, _ = layer.windows(u, torch.Generator().manual_seed(0))
    plain = layer.windows.reaches(u)
    dropped = reach == 0
    assert 0.4 < dropped.float().mean() < 0.6
    assert_close(reach[~dropped], 2 * plain[~dropped])
    assert_close(layer.eval().windows(u)[0], plain, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_left": 0}, "max_left=0"),
        ({"max_right": -1}, "max_right=-1"),
        ({"causal": True, "max_right": 2}, "max_right=2: a causal window ends with the token itself"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TalkConvolutions(12, 3, **options)


def test_what_does_not_fit_is_refused():
    u, reach = torch.randn(1, 1, 4, 2), torch.rand(1, 1, 4)
    with pytest.raises(ValueError, match="4 windows over 3 tokens"):
        talk_convolution(u[:, :, :3], reach, max_left=2)
    with pytest.raises(ValueError, match="max_right=2 with no right ends"):
        talk_convolution(u, reach, max_left=2, max_right=2)
    with pytest.raises(ValueError, match="max_right=0 with right ends"):
        talk_convolution(u, reach, reach, max_left=2)
    with pytest.raises(UnsupportedError, match="streams only with causal=True"):
        TalkConvolutions(12, 3).memory(1)
    with pytest.raises(UnsupportedError, match="no queries and keys"):
        regard.create("talk_convolutions", dim=12, num_heads=4, num_kv_heads=2)
