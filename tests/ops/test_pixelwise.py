"""A linear layer on pixels that stand side by side, with its gradients."""

import pytest
import torch
from torch.testing import assert_close

from regard.ops.pixelwise import pixelwise


@pytest.mark.parametrize("last", [True, False])
def test_is_the_linear_layer_in_either_layout(last):
    linear = torch.nn.Linear(4, 3).double()
    x = torch.randn(2, 5, 4, dtype=torch.float64).mT if last else torch.randn(2, 4, 5, dtype=torch.float64)
    x.requires_grad_()
    found, expected = pixelwise(linear, x), linear(x.mT).mT
    assert_close(found, expected, rtol=0, atol=1e-12)
    slope, leaves = torch.randn_like(found), [x, *linear.parameters()]
    for ours, theirs in zip(*(torch.autograd.grad(y, leaves, slope) for y in (found, expected)), strict=True):
        assert_close(ours, theirs, rtol=0, atol=1e-12)
