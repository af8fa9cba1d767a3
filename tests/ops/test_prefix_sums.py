import pytest
import torch
from torch.testing import assert_close

from regard.ops.prefix_sums import prefix_sums, read_between


@pytest.mark.parametrize("n", [1, 63, 64, 65, 300])
@pytest.mark.parametrize("compiling", [False, True])
def test_sums_of_what_comes_before(n, compiling, monkeypatch):
    u = torch.randn(2, 3, n, 4, dtype=torch.float64, requires_grad=True)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    found = prefix_sums(u)
    expected = torch.stack([u[:, :, :i].sum(2) for i in range(n + 1)], 2)
    assert_close(found, expected, rtol=0, atol=1e-12)
    weights = torch.randn_like(found)
    assert_close(*(torch.autograd.grad((sums * weights).sum(), u)[0] for sums in (found, expected)))


def test_later_tokens_move_nothing():
    u = torch.randn(1, 1, 200, 3)
    before = prefix_sums(u)
    u[:, :, 100] = 1e6
    assert torch.equal(prefix_sums(u)[:, :, :101], before[:, :, :101])


def test_between_two_rows_it_is_a_line():
    sums = torch.randn(2, 3, 6, 4, dtype=torch.float64, requires_grad=True)
    place = (5 * torch.rand(2, 3, 7, dtype=torch.float64)).requires_grad_()
    expected = torch.zeros(2, 3, 7, 4, dtype=torch.float64)
    for b, h, i in torch.cartesian_prod(*map(torch.arange, place.shape)).tolist():
        low = int(place[b, h, i])
        share = place[b, h, i] - low
        expected[b, h, i] = (1 - share) * sums[b, h, low] + share * sums[b, h, low + 1]
    found, weights = read_between(sums, place), torch.randn_like(expected)
    assert_close(found, expected, rtol=0, atol=1e-12)
    assert_close(*(torch.autograd.grad((rows * weights).sum(), (sums, place)) for rows in (found, expected)))


def test_on_a_row_the_gradient_is_zero():
    sums, place = torch.randn(1, 1, 4, 2), torch.tensor([[[0.0, 2.0, 3.0]]], requires_grad=True)
    found = read_between(sums, place)
    assert torch.equal(found[0, 0], sums[0, 0, [0, 2, 3]])
    assert not torch.autograd.grad(found.sum(), place)[0].any()
