"""A file under the names of the released ones: stacks come out as wide as it says, with its numbers."""

import numpy
import pytest
import torch
from torch.testing import assert_close

from regard.authors.alphafold2_released import read_released, released_trunk
from regard.registry import UnsupportedError
from tests.authors import alphafold2_haiku as haiku

ROOT = "alphafold/alphafold_iteration/evoformer"
TEMPLATES = f"{ROOT}/template_embedding/single_template_embedding/template_pair_stack/__layer_stack_no_state"


def stacked(run, root, blocks):
    """A stack of blocks by ``run(params)``, stored as in the files."""
    states = []
    for number in range(blocks):
        params = haiku.Params(root, seed=number)
        run(params)
        states.append(params.state)
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


class Stored(haiku.Params):
    """Parameters of one block out of a file."""

    def __init__(self, state, root, number):
        super().__init__(root)
        self.state = {name: tensor[number] for name, tensor in state.items() if name.startswith(f"{root}/")}


def released(*, templates=True, first=False):
    config, given = haiku.block_config(first=first, fused=first), haiku.alignment()
    state = {}
    for name, extra, blocks in (("extra_msa_stack", True, 2), ("evoformer_iteration", False, 3)):

        def run(params, extra=extra):
            haiku.evoformer_iteration(params, *given.values(), config, extra=extra)

        state |= stacked(run, f"{ROOT}/{name}", blocks)
    if templates:
        pair, mask = given["pair"], given["pair_mask"]
        state |= stacked(lambda params: haiku.template_pair_block(params, pair, mask, config), TEMPLATES, 2)
        params = haiku.Params(f"{ROOT}/template_embedding")
        ones = torch.ones(1, 1)
        options = {"gating": False, "num_head": 2, "key_dim": 4, "value_dim": 6}
        haiku.attention(params, "attention", pair[:1, :1], pair[:1, 1:2], ones, options)
        state |= params.state
    if first:
        state[f"{ROOT}/~_relative_encoding/position_activations//bias"] = torch.zeros(1)
    return config, given, state


def run_trunk(stack, given):
    masks = (given[name][None] > 0 for name in ("msa_mask", "pair_mask"))
    msa, pair = given["msa"][None], given["pair"][None]
    masks = tuple(masks)
    for block in stack.eval().blocks:
        msa, pair = block.update(msa, pair, *masks)
    return msa[0], pair[0]


@pytest.mark.parametrize("first", [False, True])
def test_a_file_gives_the_stacks(tmp_path, first):
    config, given, state = released(first=first)
    numpy.savez(tmp_path / "params.npz", **{name: tensor.numpy() for name, tensor in state.items()})
    trunk = released_trunk(tmp_path / "params.npz", chunk_size=2, checkpoint=True)
    for stack, name, extra in (
        (trunk.extra_msa, "extra_msa_stack", True),
        (trunk.evoformer, "evoformer_iteration", False),
    ):
        assert stack.checkpoint
        assert stack.blocks[0].chunk_size == 2
        assert stack.blocks[0].outer_first == first
        msa, pair, *masks = given.values()
        for number in range(len(stack.blocks)):
            params = Stored(state, f"{ROOT}/{name}", number)
            msa, pair = haiku.evoformer_iteration(params, msa, pair, *masks, config, extra=extra)
        found = run_trunk(stack.double(), given)
        assert_close(found, (msa, pair), rtol=0, atol=1e-9)
        assert_close(stack(*(t[None] for t in given.values() if t.ndim == 3))[0].shape[0], 1)


def test_templates_of_a_file():
    config, given, state = released()
    trunk = released_trunk(state)
    pair, mask = given["pair"], given["pair_mask"]
    for number in range(2):
        pair = haiku.template_pair_block(Stored(state, TEMPLATES, number), pair, mask, config)
    found = trunk.template_pairs.double().eval()
    got = given["pair"][None]
    for block in found.blocks:
        got = block.update(got, mask[None] > 0)
    assert_close(got[0], pair, rtol=0, atol=1e-10)

    templates = torch.randn(1, 3, 5, 5, 8, dtype=torch.float64)
    exists = torch.tensor([[True, False, True]])
    params = haiku.Params(f"{ROOT}/template_embedding")
    params.state = state
    options = {"gating": False, "num_head": 2, "key_dim": 4, "value_dim": 6}
    keys = templates[0].permute(1, 2, 0, 3).reshape(25, 3, 8)
    update = haiku.attention(
        params, "attention", given["pair"].reshape(25, 1, 8), keys, exists.double().expand(25, 3), options
    )
    found = trunk.template_attention.double()(given["pair"][None], templates, exists)
    assert_close(found[0], update.reshape(5, 5, 8), rtol=0, atol=1e-10)


def test_files_without_templates_and_other_files():
    _, _, state = released(templates=False)
    assert released_trunk(state).template_pairs is None
    with pytest.raises(UnsupportedError, match=r"no evoformer/extra_msa_stack among 1 names"):
        released_trunk({"bert/layer//weights": torch.zeros(1)})


def test_pickles_are_not_opened(tmp_path):
    numpy.savez(tmp_path / "bad.npz", x=numpy.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        read_released(tmp_path / "bad.npz")
