import pytest
import torch

from regard.ops.dense_gradient import dense_gradient


@pytest.mark.parametrize("use", [lambda y: y.mT.square(), lambda y: y.sum().expand(2)])
def test_gradients_are_dense_and_right(use):
    x = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    strides = []
    x.register_hook(lambda slope: strides.append(slope.stride()))
    use(dense_gradient(x)).sum().backward()
    (expected,) = torch.autograd.grad(use(x).sum(), x)
    assert torch.equal(x.grad, expected)
    assert strides[0] == (20, 5, 1)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch's own forward-mode rules use it
def test_derivatives():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(dense_gradient, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: dense_gradient(x) ** 3, x)
    assert torch.equal(torch.vmap(dense_gradient)(x), x)
