"""Row, column and global column attention as loops, with arbitrary masks; chunks change nothing."""

import pytest
import torch
from torch.testing import assert_close

from regard.ops.msa_attention import MsaColumnAttention, MsaGlobalColumnAttention, MsaRowAttention
from tests.ops import evoformer_loops as loops


def test_row_attention_is_the_equation():
    part = loops.redrawn(MsaRowAttention(6, 4, 2, 3))
    msa, pair, seen, _ = loops.protein()
    for mask in (seen, torch.ones_like(seen)):
        expected = loops.row_attention(part, msa, pair, mask)
        assert_close(part(msa[None], pair[None], mask[None])[0], expected, rtol=0, atol=1e-12)
    assert_close(part(msa[None], pair[None])[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(
    ("cls", "equation"),
    [(MsaColumnAttention, loops.column_attention), (MsaGlobalColumnAttention, loops.global_column_attention)],
)
def test_column_attention_is_the_equation(cls, equation, gated):
    part = loops.redrawn(cls(6, 2, 3, gated=gated))
    msa, _, seen, _ = loops.protein()
    seen[:, 2] = False
    for mask in (seen, torch.ones_like(seen)):
        assert_close(part(msa[None], mask[None])[0], equation(part, msa, mask), rtol=0, atol=1e-12)
    assert_close(part(msa[None])[0], equation(part, msa, mask), rtol=0, atol=1e-12)


@pytest.mark.parametrize("cls", [MsaColumnAttention, MsaGlobalColumnAttention])
def test_columns_in_chunks_are_the_same(cls):
    part = loops.redrawn(cls(6, 2, 3))
    msa, _, seen, _ = (t[None] for t in loops.protein())
    assert_close(part(msa, seen, chunk_size=2), part(msa, seen), rtol=0, atol=1e-12)


def test_rows_in_chunks_are_the_same():
    part = loops.redrawn(MsaRowAttention(6, 4, 2, 3))
    msa, pair, seen, _ = (t[None] for t in loops.protein())
    assert_close(part(msa, pair, seen, chunk_size=3), part(msa, pair, seen), rtol=0, atol=1e-12)
