import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.ops.convolution import token_convolution

SIZES = [(2, 3, 7, 4, 3), (2, 3, 200, 4, 33), (1, 2, 64, 3, 1), (1, 2, 65, 3, 5), (1, 2, 129, 3, 151)]


def inputs(batch, heads, n, width, kernel):
    x = torch.randn(batch, n, heads, width, dtype=torch.float64).transpose(1, 2)
    return x.requires_grad_(), torch.randn(heads, kernel, dtype=torch.float64, requires_grad=True)


def torchs(x, weight):
    return F.conv2d(x, weight[:, None, :, None], padding=(weight.shape[-1] // 2, 0), groups=len(weight))


@pytest.mark.parametrize("sizes", SIZES)
def test_is_torchs_depthwise_convolution(sizes):
    x, weight = inputs(*sizes)
    found, expected = token_convolution(x, weight), torchs(x, weight)
    assert_close(found, expected, rtol=0, atol=1e-12)
    cotangent = torch.randn_like(expected)
    assert_close(*(torch.autograd.grad(y, (x, weight), cotangent) for y in (found, expected)), rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch's own forward-mode rules use it
def test_derivatives_of_every_kind():
    x, weight = inputs(1, 2, 9, 2, 3)
    assert torch.autograd.gradcheck(token_convolution, (x, weight), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(token_convolution, (x, weight))


def test_vmap():
    x, weight = inputs(3, 2, 9, 2, 3)
    weights = torch.stack([weight, 2 * weight])
    found = torch.func.vmap(token_convolution, (None, 0))(x, weights)
    assert_close(found, torch.stack([token_convolution(x, w) for w in weights]))


def test_compiles_with_any_length():
    compiled = torch.compile(token_convolution, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (70, 9):
        x, weight = inputs(2, 3, n, 4, 5)
        assert_close(compiled(x, weight), token_convolution(x, weight))
