"""Equations 10 to 13 of Louizos et al. as scalars, and what P means: the share of draws that are not 0."""

import math

import pytest
import torch
from torch.testing import assert_close

from regard.ops.hard_concrete import check_hard_concrete, gates, hardened, open_probability, sampled_gates


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(("temperature", "stretch"), [(0.33, (-0.1, 1.1)), (2 / 3, (-0.3, 1.05))])
def test_the_equations(temperature, stretch):
    low, high = stretch
    for a in (-3.0, -0.4, 0.0, 1.7, 4.0):
        one = torch.tensor([a], dtype=torch.float64)
        expected = min(1.0, max(0.0, sigmoid(a) * (high - low) + low))
        assert gates(one, stretch=stretch).item() == pytest.approx(expected, abs=1e-12)
        opened = sigmoid(a - temperature * math.log(-low / high))
        found = open_probability(one, temperature=temperature, stretch=stretch)
        assert found.item() == pytest.approx(opened, abs=1e-12)
        for u in (0.02, 0.4, 0.9):
            s = sigmoid((math.log(u / (1 - u)) + a) / temperature)
            g = sampled_gates(one, torch.tensor([u], dtype=torch.float64), temperature=temperature, stretch=stretch)
            assert g.item() == pytest.approx(min(1.0, max(0.0, s * (high - low) + low)), abs=1e-12)


def test_p_is_the_share_of_draws_that_are_open():
    a = torch.tensor([[-2.0], [0.0], [1.0]])
    u = (torch.arange(20000) + 0.5)[None] / 20000
    share = (sampled_gates(a.expand(3, 20000), u.expand(3, -1)) != 0).float().mean(1, keepdim=True)
    assert_close(open_probability(a), share, rtol=0, atol=1e-3)


def test_noise_of_exactly_0_or_1_is_harmless():
    a = torch.zeros(2, requires_grad=True)
    g = sampled_gates(a, torch.tensor([0.0, 1.0]))
    assert g.tolist() == [0.0, 1.0]
    assert torch.autograd.grad(g.sum(), a)[0].isfinite().all()
    sure = torch.tensor([20.0, -20.0])  # more than the noise that is left can turn
    assert sampled_gates(sure, torch.tensor([0.0, 1.0])).tolist() == [1.0, 0.0]


def test_a_hard_gate_has_the_gradient_of_the_soft_one():
    a = torch.tensor([-0.7, 0.2, 0.9], requires_grad=True)
    soft = torch.autograd.grad(gates(a).sum(), a)[0]
    hard = hardened(gates(a))
    assert hard.tolist() == [0.0, 1.0, 1.0]
    assert_close(torch.autograd.grad(hard.sum(), a)[0], soft)
    assert soft.min() > 0.1


def test_half_precision_is_computed_in_float32():
    a = torch.tensor([1.3], dtype=torch.bfloat16)
    for found in (gates(a), open_probability(a), sampled_gates(a, torch.tensor([0.3]))):
        assert found.dtype == torch.float32
    assert_close(gates(a), gates(a.float()))


@pytest.mark.parametrize("wrong", [(0.0, (-0.1, 1.1)), (0.33, (0.0, 1.1)), (0.33, (-0.1, 1.0))])
def test_numbers_of_which_no_gate_can_be_made(wrong):
    with pytest.raises(ValueError, match="below 0 and above 1"):
        check_hard_concrete(*wrong)
