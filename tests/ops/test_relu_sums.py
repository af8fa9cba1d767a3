"""relu(u_i + v_j) over all pairs, with and without the pairs."""

import pytest
import torch
from torch.testing import assert_close

from regard.ops.relu_sums import relu_sums


def pairs(u, v, values):
    return (u[:, :, None] + v[:, None]).relu() @ values


@pytest.mark.parametrize(("n", "m"), [(7, 5), (1, 1), (3, 200), (65, 64)])
def test_equals_the_sum_over_pairs_with_its_gradients(n, m):
    u, v, values = (torch.randn(2, *shape, dtype=torch.float64).requires_grad_() for shape in ((n,), (m,), (m, 3)))
    found, expected = relu_sums(u, v, values), pairs(u, v, values)
    assert_close(found, expected, rtol=0, atol=1e-11)
    slope = torch.randn_like(found)
    for ours, theirs in zip(*(torch.autograd.grad(y, (u, v, values), slope) for y in (found, expected)), strict=True):
        assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_equal_sums_at_the_edge_and_far_from_it():
    """v_j = -u_i exactly counts as 0; everything and nothing may be above."""
    u = torch.tensor([[1.0, 2.0, 100.0, -100.0]])
    v = torch.tensor([[-1.0, -1.0, -2.0, 3.0]])
    values = torch.tensor([[[1.0], [10.0], [100.0], [1000.0]]])
    assert_close(relu_sums(u, v, values), pairs(u, v, values), rtol=0, atol=0)


def test_short_floats_are_summed_in_float32():
    u, v = torch.zeros(1, 1, dtype=torch.bfloat16), torch.ones(1, 1000, dtype=torch.bfloat16)
    assert relu_sums(u, v, torch.ones(1, 1000, 1, dtype=torch.bfloat16)).item() == 1000
    with torch.autocast("cpu", torch.bfloat16):
        assert relu_sums(u.float(), v.float(), torch.ones(1, 1001, 1)[:, :1000] + 2**-10).item() == 1000 + 1000 * 2**-10
