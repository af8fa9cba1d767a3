"""The stack is its blocks one after the other; recomputation draws again what was drawn; the door."""

import pytest
import torch
from torch.testing import assert_close

from regard.models.evoformer import EvoformerStack
from tests.ops.evoformer_loops import protein, redrawn

SIZES = {"pair_heads": 2, "pair_head_dim": 2, "triangle_width": 3, "outer_width": 2, "factor": 2}


def small(**options):
    return redrawn(EvoformerStack(2, 6, 4, 2, 3, **(SIZES | options)))


def given():
    msa, pair, seen, pairs = (t[None] for t in protein())
    return {"msa": msa, "pair": pair, "msa_mask": seen, "pair_mask": pairs}


@pytest.mark.parametrize("options", [{}, {"global_columns": True}, {"outer_first": True}, {"chunk_size": 2}], ids=str)
def test_a_stack_is_its_blocks(options):
    stack, inputs = small(**options).eval(), given()
    seen, pairs = inputs["msa_mask"], inputs["pair_mask"]
    msa, pair = inputs["msa"] * seen[..., None], inputs["pair"] * pairs[..., None]
    for block in stack.blocks:
        msa, pair = block.update(msa, pair, seen, pairs)
    assert_close(stack(**inputs), (msa * seen[..., None], pair * pairs[..., None]), rtol=0, atol=1e-12)


def test_what_masked_places_hold_reaches_no_block():
    stack, inputs = small().eval(), given()
    spoilt = dict(inputs)
    for name in ("msa", "pair"):
        spoilt[name] = inputs[name].masked_fill(~inputs[f"{name}_mask"][..., None], torch.nan)
    assert_close(stack(**spoilt), stack(**inputs), rtol=0, atol=0)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_recomputation_changes_neither_numbers_nor_gradients(chunk_size):
    found = []
    for checkpoint in (False, True):
        stack, inputs = small(checkpoint=checkpoint, chunk_size=chunk_size, pair_drop=0.5).train(), given()
        msa = inputs["msa"].requires_grad_()
        out = stack(**inputs, generator=torch.Generator().manual_seed(5))
        total = sum((t * t.detach().cos()).sum() for t in out)
        found.append((*out, *torch.autograd.grad(total, [msa, *stack.parameters()])))
    for kept, again in zip(*found, strict=True):
        assert_close(again, kept, rtol=0, atol=1e-12)


def test_recomputation_keeps_less_for_the_backward_pass():
    kept = []
    for checkpoint in (False, True):
        stack, inputs = small(checkpoint=checkpoint).train(), given()
        size = 0

        def pack(tensor):
            nonlocal size
            size += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            stack(**inputs, generator=torch.Generator().manual_seed(5))
        kept.append(size)
    assert kept[1] < kept[0] / 10


def test_dropout_differs_from_block_to_block_and_from_seed_to_seed():
    stack, inputs = small(pair_drop=0.5).train(), given()
    first, again, other = (stack(**inputs, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert_close(first, again, rtol=0, atol=0)
    assert not torch.allclose(first[1], other[1])
    assert not torch.allclose(first[1], stack(**inputs)[1])


def test_a_fresh_stack_is_the_identity():
    stack, (msa, pair, _, _) = EvoformerStack(2, 6, 4, 2, 3, **SIZES).double().eval(), given().values()
    assert_close(stack(msa, pair), (msa, pair), rtol=0, atol=0)
    for parameter in stack.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    stack.reset_parameters()
    assert_close(stack(msa, pair), (msa, pair), rtol=0, atol=0)


def test_refusals():
    with pytest.raises(ValueError, match="num_blocks=0"):
        EvoformerStack(0)
    inputs = given()
    with pytest.raises(ValueError, match=r"pair has shape \(1, 5, 5, 3\), expected \(1, 5, 5, 4\)"):
        small()(inputs["msa"], inputs["pair"][..., :3])
