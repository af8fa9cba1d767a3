"""The Evoformer's block against the supplement in loops; padding, NaN, dropout, compile, export, refusals."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing import assert_close

import regard
from regard.mechanisms.pairs.alphafold2 import AlphaFold2, Drops
from regard.registry import UnsupportedError
from tests.ops.evoformer_loops import block as equations
from tests.ops.evoformer_loops import protein, redrawn

SIZES = {"pair_heads": 2, "pair_head_dim": 2, "triangle_width": 3, "outer_width": 2, "factor": 2}


def small(**options):
    return redrawn(AlphaFold2(6, 4, 2, 3, **(SIZES | options))).eval()


@pytest.mark.parametrize("options", [{}, {"global_columns": True}, {"outer_first": True}, {"chunk_size": 2}], ids=str)
def test_a_block_is_the_supplement(options):
    block = small(**options)
    msa, pair, seen, pairs = protein()
    expected = equations(block, msa, pair, seen, pairs)
    found = block.update(msa[None], pair[None], seen[None], pairs[None])
    for got, right in zip(found, expected, strict=True):
        assert_close(got[0], right, rtol=0, atol=1e-10)


def padded(msa, pair, front, back, value):
    """One more protein in the batch, and rows, columns and pairs of padding on both sides that hold ``value``."""
    size = (front, back)
    more = torch.nn.functional.pad(msa, (0, 0, *size, *size), value=value)
    pairs = torch.nn.functional.pad(pair, (0, 0, *size, *size), value=value)
    seen = torch.zeros(more.shape[:2], dtype=torch.bool)
    seen[front : len(more) - back, front : more.shape[1] - back] = True
    residues = seen.any(0)
    return more, pairs, seen, residues[:, None] & residues


@pytest.mark.parametrize("options", [{}, {"global_columns": True}, {"outer_first": True}], ids=str)
@pytest.mark.parametrize("value", [3.0, torch.nan])
def test_padding_changes_nothing_whatever_it_holds(options, value):
    block = small(**options)
    msa, pair, _, _ = protein()
    alone = block(msa[None], pair[None])
    more, pairs, seen, among = padded(msa, pair, 1, 2, value)
    found = block(more[None], pairs[None], seen[None], among[None])
    inside = slice(1, -2)
    for got, right in zip(found, alone, strict=True):
        assert_close(got[:, inside, inside], right, rtol=0, atol=1e-10)
    assert not found[0][0][~seen].any(), "masked places give 0"
    assert not found[1][0][~among].any()


def test_a_protein_without_anything_is_no_disaster():
    block = small()
    msa, pair = torch.randn(1, 2, 3, 6).double().requires_grad_(), torch.randn(1, 3, 3, 4).double().requires_grad_()
    nothing = torch.zeros(1, 2, 3, dtype=torch.bool), torch.zeros(1, 3, 3, dtype=torch.bool)
    found = block(msa, pair, *nothing)
    for slope in torch.autograd.grad(sum(t.square().sum() for t in found), (msa, pair, *block.parameters())):
        assert slope.isfinite().all()
    assert not any(t.any() for t in found)


def test_a_fresh_block_is_the_identity():
    block, (msa, pair, _, _) = AlphaFold2(6, 4, 2, 3, **SIZES).double(), (t[None] for t in protein())
    assert_close(block.eval()(msa, pair), (msa, pair), rtol=0, atol=0)


def test_dropout_is_shared_and_its_rates_are_the_papers():
    assert Drops() == (0.15, 0.0, 0.0, 0.0, 0.25, 0.25, 0.25, 0.25, 0.0)
    msa, pair, _, _ = (t[None] for t in protein(5, 7))
    for name, shared, other in (("row", 1, 2), ("column", 2, 1), ("ending", 2, 1), ("starting", 1, 2), ("outer", 1, 2)):
        rates = dict.fromkeys(Drops._fields, 0.0) | {name: 0.5}
        block = small(drops=Drops(**rates)).train()
        draw = block._dropped(name, torch.ones_like(msa), torch.Generator().manual_seed(3))
        assert_close(draw, draw.narrow(shared, 0, 1).expand_as(draw), rtol=0, atol=0)
        assert bool((draw != draw.narrow(other, 0, 1)).any())
        first, again, third = (block(msa, pair, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert_close(first, again, rtol=0, atol=0)
        assert not torch.allclose(first[1], third[1])
        assert_close(block.eval()(msa, pair), small()(msa, pair), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_size_in_any_dtype(dtype):
    block = small().to(dtype)
    for sequences, residues in ((1, 1), (3, 1), (1, 6), (4, 9)):
        msa = torch.randn(2, sequences, residues, 6, dtype=dtype)
        pair = torch.randn(2, residues, residues, 4, dtype=dtype)
        seen = torch.rand(2, sequences, residues) < 0.8
        found = block(msa, pair, seen, seen[:, 0, :, None] & seen[:, 0, None])
        assert [(t.shape, t.dtype) for t in found] == [(msa.shape, dtype), (pair.shape, dtype)]
        assert all(t.isfinite().all() for t in found)


def given(sequences, residues):
    msa, pair, seen, pairs = (t[None] for t in protein(sequences, residues))
    return {"msa": msa, "pair": pair, "msa_mask": seen, "pair_mask": pairs}


@pytest.mark.slow
def test_one_graph_serves_every_size():
    block, frames = small(), []
    torch.compiler.reset()
    counted = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=counted)
    # no size is that of a channel: those are fixed, and equals are taken for one
    for sizes in ((3, 5), (2, 8), (7, 9)):
        with torch.no_grad():
            assert_close(compiled(**given(*sizes)), block(**given(*sizes)), rtol=0, atol=1e-10)
        frames.append(counted.frame_count)
    torch.compiler.reset()
    assert len(set(frames)) == 1


@pytest.mark.slow
def test_export_with_dynamic_sizes():
    block = small()
    auto = torch.export.Dim.DYNAMIC
    shapes = {name: dict.fromkeys((1, 2), auto) for name in ("msa", "pair", "msa_mask", "pair_mask")}
    program = torch.export.export(block, (), given(4, 5), dynamic_shapes=shapes).module()
    for sizes in ((4, 5), (3, 8)):
        assert_close(program(**given(*sizes)), block(**given(*sizes)), rtol=0, atol=1e-10)


def test_refusals():
    block, (msa, pair, seen, pairs) = small(), (t[None] for t in protein())
    with pytest.raises(ValueError, match=r"msa has shape \(1, 4, 5, 5\), expected \(batch, sequences, residues, 6\)"):
        block(msa[..., :5], pair)
    with pytest.raises(ValueError, match=r"pair has shape \(1, 4, 5, 4\), expected \(1, 5, 5, 4\)"):
        block(msa, pair[:, :4])
    with pytest.raises(ValueError, match=r"pair_mask has shape \(1, 4, 5\), expected \(1, 5, 5\)"):
        block(msa, pair, pair_mask=pairs[:, :4])
    with pytest.raises(TypeError, match=r"msa_mask is torch.float32: pass Bool"):
        block(msa, pair, seen.float())
    with pytest.raises(ValueError, match=r"row=1.0.*\[0, 1\)"):
        AlphaFold2(msa_drop=1.0, device="meta")
    with pytest.raises(ValueError, match="chunk_size=0"):
        AlphaFold2(chunk_size=0, device="meta")
    with pytest.raises(UnsupportedError, match="every residue sees every other one"):
        regard.create("alphafold2", dim=8, num_heads=2, causal=True)
