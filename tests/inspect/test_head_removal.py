"""Models without their closed heads give what they gave with them; sizes, numbers, groups, checkpoints, refusals."""

import contextlib
import copy

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.inspect import HeadGates, gate_heads, load_pruned, prune_heads
from regard.inspect.headed import attentions
from regard.registry import UnsupportedError
from tests.contract.cases import SEQUENCES
from tests.inspect.head_models import OURS, THEIRS, gpt2, grouped, language, learned, llama, translation
from tests.inspect.test_head_gates import set_gates

SIMPLE = [make for make in OURS + THEIRS if make is not learned]


def gates_on(model, make, *values):
    gates = HeadGates(model) if make is learned else gate_heads(model)
    set_gates(gates, *values)
    return gates


@pytest.mark.parametrize("make", OURS + THEIRS)
def test_removal_changes_no_output(make):
    model, run = make()
    whole = copy.deepcopy(model.eval())
    gates = gates_on(model, make, -9.0, -9.0, 0.3, 1.5)  # whole groups too, where keys are shared
    closed = run(model)
    assert (closed - run(whole)).abs().max() > 1e-4
    left = prune_heads(model, gates)
    assert_close(run(model), closed, rtol=0, atol=1e-5)
    for name, found in attentions(model).items():
        before = attentions(whole)[name]
        assert left[name] == [head for head in range(before.num_heads) if head % 4 > 1]
        assert found.num_heads == before.num_heads // 2 == len(left[name])
        assert found.width == before.width
        for linear, larger in zip((*found.inputs, found.output), (*before.inputs, before.output), strict=True):
            assert 2 * linear.weight.numel() == larger.weight.numel()
    if make is not learned:  # its mechanism has another name, and no gates, from now on
        load_pruned(whole, model.state_dict())
        assert_close(run(whole), closed, rtol=0, atol=1e-5)
        assert whole.state_dict().keys() == model.state_dict().keys()
    run(model.train()).square().sum().backward()
    assert all(
        parameter.grad is not None for layer in attentions(model).values() for parameter in layer.module.parameters()
    )


@pytest.mark.parametrize("make", SIMPLE)
def test_heads_go_by_number_and_keep_their_numbers(make):
    model, run = make()
    reference = copy.deepcopy(model.eval())
    name, headed = list(attentions(model).items())[-1]
    pairs = headed.num_heads // 4  # 1, or 2 where two heads share their keys
    first, second = list(range(pairs)), list(range(2 * pairs, 3 * pairs))
    assert prune_heads(model, {name: first}) == {name: list(range(pairs, headed.num_heads))}
    rest = [head for head in range(pairs, headed.num_heads) if head not in second]
    assert prune_heads(model, {name: second}) == {name: rest}
    gates = gate_heads(reference, layers=[name])
    with torch.no_grad():
        gates.parameters()[0].copy_(torch.tensor([9.0 if head in rest else -9.0 for head in range(headed.num_heads)]))
    assert_close(run(model), run(reference), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=rf"{name} has no head 0.*: its heads are {rest[0]}"):
        prune_heads(model, {name: first})


@pytest.mark.parametrize("make", OURS + THEIRS)
def test_a_layer_without_open_heads_gives_its_bias(make):
    model, run = make()
    gates = gates_on(model.eval(), make, -9.0)
    closed = run(model)
    assert all(left == [] for left in prune_heads(model, gates).values())
    assert_close(run(model), closed, rtol=0, atol=1e-6)
    for found in attentions(model).values():
        assert found.num_heads == 1
        assert not found.output.weight.any()


def test_by_number_too_a_layer_can_lose_all_heads():
    layer = regard.create("full", dim=12, num_heads=3)
    torch.nn.init.normal_(layer.out_proj.bias)
    assert prune_heads(layer, {"": [0, 1, 2]}) == {"": []}
    assert_close(layer(torch.randn(2, 5, 12)), layer.out_proj.bias.expand(2, 5, 12), rtol=0, atol=0)


def test_heads_that_share_keys_go_together():
    model, run = grouped()  # pairs of heads share their keys
    name = "blocks.0.attention"
    whole = run(model.eval())
    with pytest.raises(UnsupportedError, match=r"cannot lose the heads \[1\]: each 2 share keys and values, so whole"):
        prune_heads(model, {name: [1]})
    assert_close(run(model), whole, rtol=0, atol=0)
    assert prune_heads(model, {name: [2, 3]}) == {name: [0, 1, 4, 5, 6, 7]}
    assert model.blocks[0].attention.num_kv_heads == 3
    assert prune_heads(model, {name: [0, 5, 7]}) == {name: [1, 4, 6]}  # one of each pair
    assert (model.blocks[0].attention.num_heads, model.blocks[0].attention.num_kv_heads) == (3, 3)


def test_a_closed_head_stays_where_another_needs_its_group_to_be_full():
    model, run = grouped()
    gates = gates_on(model.eval(), grouped, -9.0, 0.5, 0.5, 0.5, -9.0, -9.0, -9.0, -9.0)
    closed = run(model)
    assert prune_heads(model, gates)["blocks.0.attention"] == [1, 2, 3]
    attention = model.blocks[0].attention
    assert (attention.num_heads, attention.num_kv_heads) == (4, 2)
    assert attention.heads_left.tolist() == [0, 1, 2, 3]
    assert not attention.out_proj.weight[:, :2].any()
    assert_close(run(model), closed, rtol=0, atol=1e-6)


def test_a_pruned_model_streams():
    model, _ = language()
    prune_heads(model.eval(), {"blocks.0.attention": [0, 1, 2, 3], "blocks.1.attention": [1]})
    tokens = torch.randint(50, (2, 6))
    first, memory = model.stream(tokens[:, :4], model.memory(2))
    second, _ = model.stream(tokens[:, 4:], memory)
    assert_close(torch.cat([first, second], 1), model(tokens))


@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_pruned_hugging_face_model_generates(make):
    model, _ = make()
    names = list(attentions(model))
    prune_heads(model.eval(), {names[0]: range(attentions(model)[names[0]].num_heads), names[1]: [0, 1]})
    prompt = torch.tensor([[3, 5, 8]])
    found = model.generate(prompt, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)
    expected = prompt
    for _ in range(4):
        expected = torch.cat([expected, model(expected).logits[:, -1:].argmax(-1)], 1)
    assert found.tolist() == expected.tolist()


def test_a_frozen_model_stays_frozen_and_keeps_its_dtype():
    model, _ = translation()
    model.double().requires_grad_(False)
    prune_heads(model, {name: [2] for name in attentions(model)})
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


def test_a_model_of_head_pruning_becomes_a_plain_one():
    model, _ = learned()
    set_gates(HeadGates(model), -9.0, 9.0)
    assert prune_heads(model) == {"blocks.0.attention": [1, 3], "blocks.1.attention": [1, 3]}
    assert model.blocks[0].attention.mechanism == "multi_head"
    assert not any("log_alpha" in name for name in model.state_dict())


@pytest.mark.parametrize("case", SEQUENCES, ids=str)
def test_every_mechanism_loses_heads_exactly_or_not_at_all(case):
    layer = case.build().eval()
    try:
        gates = HeadGates(layer) if case.name.startswith("head_pruning") else gate_heads(layer)
    except UnsupportedError:
        return
    set_gates(gates, -9.0, 0.7)
    x = torch.randn(2, 9, layer.dim)
    closed = layer(x)
    with contextlib.suppress(UnsupportedError):  # then the gates are still on it
        prune_heads(layer, gates)
    assert_close(layer(x), closed)


def test_mechanisms_that_know_their_heads_by_number_are_refused():
    for name, why in (("bigbird", "is built for their number"), ("longformer", "can only have gates put on them")):
        layer = regard.create(name, dim=12, num_heads=3, max_length=16)
        with pytest.raises(UnsupportedError, match=rf"cannot lose heads: {name} {why}"):
            prune_heads(layer, {"": [0]})


def test_what_does_not_exist_is_refused_and_nothing_is_cut():
    model, run = language()
    before = run(model.eval())
    for wrong, words in (
        (
            {"blocks.0.attention": [0], "blocks.1.attention": [4]},
            "blocks.1.attention has no head 4: its heads are 0, 1, 2, 3",
        ),
        ({"blocks.0.attention": [-1]}, "has no head -1"),
        ({"blocks.0.attention": [0], "blocks.2.attention": [0]}, "no attention is called 'blocks.2.attention'"),
    ):
        with pytest.raises(ValueError, match=words):
            prune_heads(model, wrong)
    with pytest.raises(ValueError, match="no gates: put some on"):
        prune_heads(model)
    assert_close(run(model), before, rtol=0, atol=0)
    gate_heads(model)
    with pytest.raises(ValueError, match="has gates: prune by them, or take them off first"):
        prune_heads(model, {"blocks.0.attention": [0]})
    other = regard.models.TransformerLM(50, 16, 2, 2, 32)
    pruned, _ = language()
    prune_heads(pruned, {"blocks.0.attention": [1]})
    with pytest.raises(ValueError, match=r"blocks.0.attention has no head 2, 3: its heads are 0, 1"):
        load_pruned(other, pruned.state_dict())


def test_heads_with_numbers_of_their_own_are_refused():
    class Biased(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads, self.table = 3, torch.nn.Parameter(torch.zeros(9, 3))
            self.query, self.key, self.value, self.dense = (torch.nn.Linear(12, 12) for _ in range(4))

    with pytest.raises(UnsupportedError, match="it has numbers for each in table"):
        prune_heads(Biased(), {"": [0]})
