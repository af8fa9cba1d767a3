"""Convolution with few channels as a loop over places, its derivatives, and both ways to compute it."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from regard.ops import same_convolution as module
from regard.ops.same_convolution import same_convolution

SHAPES = [((5,), (3,)), ((5, 7), (3, 5)), ((3, 4), (9, 9)), ((1, 1), (3, 3)), ((2, 3, 4), (3, 5, 1)), ((6, 4), (11, 7))]


def equations(x, weight):
    y = x.new_zeros(len(x), len(weight), *x.shape[2:])
    places = list(itertools.product(*map(range, x.shape[2:])))
    for n, a in itertools.product(places, itertools.product(*map(range, weight.shape[2:]))):
        m = tuple(i + j - r // 2 for i, j, r in zip(n, a, weight.shape[2:], strict=True))
        if m in places:
            y[(..., *n)] += x[(..., *m)] @ weight[(..., *a)].T
    return y


@pytest.fixture(params=["direct", "transforms"])
def way(request, monkeypatch):
    monkeypatch.setattr(module, "_LARGE", 10**9 if request.param == "direct" else 0)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("sides", "kernel"), SHAPES)
@pytest.mark.parametrize("channels", [1, 2])
def test_matches_the_equations(sides, kernel, channels):
    x = torch.randn(2, channels, *sides, dtype=torch.float64)
    weight = torch.randn(3, channels, *kernel, dtype=torch.float64)
    assert_close(same_convolution(x, weight), equations(x, weight), rtol=0, atol=1e-12)


@pytest.mark.usefixtures("way")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch's own forward-mode rules use it
@pytest.mark.parametrize(("sides", "kernel"), SHAPES[1:4])
def test_derivatives(sides, kernel):
    x = torch.randn(2, 2, *sides, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, *kernel, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(same_convolution, (x, weight), check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(same_convolution, (x, weight), fast_mode=True)
    assert torch.autograd.gradcheck(lambda x: same_convolution(x, weight.detach()), x, check_forward_ad=True)


def test_batches_of_kernels():
    x, weights = torch.randn(2, 1, 4, 5, dtype=torch.float64), torch.randn(3, 2, 1, 3, 3, dtype=torch.float64)
    y = torch.vmap(same_convolution, (None, 0))(x, weights)
    assert_close(y, torch.stack([equations(x, weight) for weight in weights]), rtol=0, atol=1e-12)


def test_transforms_have_small_factors():
    smooth = {2 * 2**a * 3**b * 5**c for a in range(8) for b in range(5) for c in range(4)}
    for least in range(1, 200):
        assert module._smooth(least) == min(size for size in smooth if size >= least)
