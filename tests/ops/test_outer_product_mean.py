"""The outer product mean pair by pair; what no sequence has; a few rows at a time."""

import pytest
import torch
from torch.testing import assert_close

from regard.ops import outer_product_mean
from regard.ops.outer_product_mean import OuterProductMean
from tests.ops import evoformer_loops as loops


def test_it_is_the_equation():
    part = loops.redrawn(OuterProductMean(6, 4, 3))
    msa, _, seen, _ = loops.protein()
    for mask in (seen, torch.ones_like(seen)):
        expected = loops.outer_product_mean(part, msa, mask)
        assert_close(part(msa[None], mask[None])[0], expected, rtol=0, atol=1e-12)
    assert_close(part(msa[None])[0], expected, rtol=0, atol=1e-12)


def test_a_pair_that_no_sequence_has_gets_the_bias_a_thousand_times():
    part = loops.redrawn(OuterProductMean(6, 4, 3))
    msa, _, seen, _ = (t[None] for t in loops.protein())
    seen[0, :, 2] = False
    assert_close(part(msa, seen)[0, 1, 2], 1000 * part.out.bias, rtol=0, atol=1e-10)


def test_few_rows_at_a_time_change_neither_numbers_nor_gradients(monkeypatch):
    part = loops.redrawn(OuterProductMean(6, 4, 3))
    msa, _, seen, _ = (t[None] for t in loops.protein())
    found = []
    for most in (1 << 22, 100):
        monkeypatch.setattr(outer_product_mean, "AT_ONCE", most)
        x = msa.clone().requires_grad_()
        y = part(x, seen)
        found.append((y, *torch.autograd.grad((y * y.detach()).sum(), [x, *part.parameters()])))
    for whole, cut in zip(*found, strict=True):
        assert_close(cut, whole, rtol=0, atol=1e-12)


def test_half_precision_stays():
    part = OuterProductMean(6, 4, 3, dtype=torch.bfloat16)
    msa = torch.randn(1, 3, 5, 6, dtype=torch.bfloat16)
    assert part(msa, torch.ones(1, 3, 5, dtype=torch.bool)).dtype == torch.bfloat16


def test_sizes_are_refused():
    with pytest.raises(ValueError, match=r"width=0.*positive"):
        OuterProductMean(6, 4, 0)
