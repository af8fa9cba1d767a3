"""Every engine computes the same attention as the definition: out, lse and all gradients, on random problems."""

import pytest
import torch
from torch.testing import assert_close

import regard
from tests.engines.problems import attend_and_gradients, problem_for, random_problem
from tests.samples import some_daily

OTHERS = [name for name in regard.engines("cpu") if name != "dense"]


@pytest.mark.parametrize("seed", [*some_daily(range(60), 20)])
@pytest.mark.parametrize("engine", OTHERS)
def test_forward_and_backward(engine, seed):
    leaves, options = problem_for(engine, seed)
    found, expected = (attend_and_gradients(name, leaves, options) for name in (engine, "dense"))
    assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(100, 112))
@pytest.mark.parametrize("engine", OTHERS)
def test_float32(engine, seed):
    leaves, options = problem_for(engine, seed, dtype=torch.float32)
    found, expected = (attend_and_gradients(name, leaves, options) for name in (engine, "dense"))
    assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(200, 212))
def test_flex_forward(seed):
    leaves, options = random_problem(seed, grad=False)
    found, expected = (attend_and_gradients(name, leaves, options, wanted=False) for name in ("flex", "dense"))
    assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("engine", OTHERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(engine, dtype):
    q, k, v = torch.randn(3, 2, 2, 70, 8).to(dtype).requires_grad_()
    found, lse = regard.attend(q, k, v, is_causal=True, engine=engine, return_lse=True)
    expected, expected_lse = regard.attend(q.double(), k.double(), v.double(), is_causal=True, return_lse=True)
    assert found.dtype == dtype
    assert lse.dtype == torch.float32
    tolerance = 4 * torch.finfo(dtype).eps
    assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    assert_close(lse.double(), expected_lse, rtol=5e-4, atol=5e-4)  # summed in float32, exp of 20 bits in torch


@pytest.mark.parametrize("engine", ["dense", *OTHERS])
def test_gradcheck(engine):
    shape = (1, 1, 5, 2)
    q, k, v = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = torch.tensor([True, False, True, True, False])

    def function(q, k, v):
        out, lse = regard.attend(q, k, v, is_causal=True, key_mask=mask, q_offset=-1, engine=engine, return_lse=True)
        return out, lse.masked_fill(lse == -torch.inf, 0.0)

    assert torch.autograd.gradcheck(function, (q, k, v))
    assert torch.autograd.gradgradcheck(function, (q, k, v))


def test_dense_is_the_definition():
    """Sums over pairs, written with loops."""
    q, k, v = (torch.randn(2, heads, n, 3, dtype=torch.float64) for heads, n in ((4, 5), (2, 6), (2, 6)))
    bias, mask = torch.randn(4, 5, 6, dtype=torch.float64), torch.rand(2, 6) < 0.6
    out, lse = regard.attend(
        q, k, v, is_causal=True, attn_mask=bias, key_mask=mask, enable_gqa=True, engine="dense", return_lse=True
    )
    for b, h, i in torch.cartesian_prod(*map(torch.arange, (2, 4, 5))).tolist():
        total, weighted = 0.0, torch.zeros(3, dtype=torch.float64)
        for j in range(6):
            if mask[b, j] and j <= i + 1:
                weight = torch.exp(q[b, h, i] @ k[b, h // 2, j] / 3**0.5 + bias[h, i, j])
                total, weighted = total + weight, weighted + weight * v[b, h // 2, j]
        expected = weighted / total if total else weighted
        assert_close(out[b, h, i], expected)
        assert_close(lse[b, h, i], torch.as_tensor(total, dtype=torch.float64).log())
