"""The attention of AlphaFold as a loop: gate, bias, masks, widths of its own, rows that see nothing."""

import pytest
import torch
from torch.testing import assert_close

from regard.ops.gated_attention import GatedAttention, GlobalAttention, attend_or_average
from tests.ops.evoformer_loops import gated, no_bias, protein, redrawn


@pytest.mark.parametrize("gate", [True, False])
def test_attention_is_the_equation(gate):
    part = redrawn(GatedAttention(6, 2, 3, context_dim=4, value_dim=5, out_dim=7, gated=gate))
    x, pair, seen, _ = protein()
    bias = torch.randn(2, 5, 5, dtype=torch.float64)
    out = part(x, pair[:4], bias=bias, key_mask=seen)
    expected = [gated(part, row, context, bias, mask) for row, context, mask in zip(x, pair, seen, strict=False)]
    assert_close(out, torch.stack(expected), rtol=0, atol=1e-12)


def test_without_mask_and_bias():
    part, x = redrawn(GatedAttention(6, 2, 3)), protein()[0]
    everyone = torch.ones(5, dtype=torch.bool)
    expected = torch.stack([gated(part, row, row, no_bias(2, 5, 5), everyone) for row in x])
    assert_close(part(x), expected, rtol=0, atol=1e-12)


def test_gradients_where_a_row_sees_nothing():
    seen = torch.tensor([[False, False, False], [True, False, True]])
    q, k, v = (torch.randn(2, 1, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(3))
    bias = torch.randn(1, 3, 3, dtype=torch.float64, requires_grad=True)

    def run(q, k, v, bias):
        return attend_or_average(q, k, v, bias, seen)

    assert_close(run(q, k, v, bias)[0], v[0].mean(-2, keepdim=True).expand(1, 3, 2))
    assert torch.autograd.gradcheck(run, (q, k, v, bias))


def test_sizes_are_refused():
    with pytest.raises(ValueError, match=r"num_heads=0.*positive"):
        GatedAttention(6, 0, 3)
    with pytest.raises(ValueError, match=r"head_dim=0.*positive"):
        GlobalAttention(6, 2, 0)
