import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.models.convolution_module import ConvolutionModule


def drawn(kernel, causal=False):
    module = ConvolutionModule(4, kernel, causal=causal, dtype=torch.float64)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize(("kernel", "causal"), [(1, False), (3, False), (5, True), (4, True)])
def test_matches_the_equations(kernel, causal):
    module, x = drawn(kernel, causal), torch.randn(1, 6, 4, dtype=torch.float64)
    normed = F.layer_norm(x[0], (4,), module.norm.weight, module.norm.bias)
    values, gates = (normed @ module.enter.weight.T + module.enter.bias).chunk(2, -1)
    gated = values * gates.sigmoid()
    for n in range(6):
        near = module.depthwise.bias.clone()
        for i in range(kernel):
            place = n + i - (kernel - 1 if causal else kernel // 2)
            if 0 <= place < 6:
                near += module.depthwise.weight[:, 0, i] * gated[place]
        inner = F.layer_norm(near, (4,), module.inner_norm.weight, module.inner_norm.bias)
        answer = inner * inner.sigmoid() @ module.leave.weight.T + module.leave.bias
        assert_close(module(x)[0, n], x[0, n] + answer, rtol=0, atol=1e-12)


def test_padding_changes_nothing():
    module, x = drawn(5), torch.randn(2, 6, 4, dtype=torch.float64)
    padded = torch.full((2, 9, 4), math.nan, dtype=torch.float64)
    padded[:, :6] = x
    mask = (torch.arange(9) < 6).expand(2, -1)
    assert_close(module(padded, mask)[:, :6], module(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sizes", [(8,), (1,) * 8, (3, 0, 1, 4)])
def test_pieces_are_the_whole(sizes):
    module, x = drawn(4, causal=True), torch.randn(2, 8, 4, dtype=torch.float64)
    memory, found = module.memory(2), []
    for piece in x.split(sizes, 1):
        y, memory = module.stream(piece, memory)
        found.append(y)
        assert memory.shape == (2, 3, 4)
    assert_close(torch.cat(found, 1), module(x), rtol=0, atol=1e-12)


def test_refusals():
    with pytest.raises(ValueError, match="kernel=4: it must be positive, and odd unless it is causal"):
        ConvolutionModule(4, 4)
    with pytest.raises(ValueError, match=r"x has shape \(2, 3, 5\), expected \(batch, length, 4\)"):
        drawn(3)(torch.zeros(2, 3, 5))
