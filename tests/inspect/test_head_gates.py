"""Gates on models of ours and of transformers: where they act, what they cost, what they learn, that they go again."""

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.inspect import HeadGates, gate_heads
from regard.inspect.headed import attentions
from regard.registry import UnsupportedError
from tests.contract.cases import SEQUENCES
from tests.inspect.head_models import OURS, THEIRS, grouped, language, learned

MODELS = [make for make in OURS + THEIRS if make is not learned]


def set_gates(gates, *values):
    """Log alpha of every layer: the values, again and again."""
    with torch.no_grad():
        for parameter in gates.parameters():
            parameter.copy_(torch.tensor(values).repeat(len(parameter))[: len(parameter)])


def test_a_gate_multiplies_its_head_before_the_output_projection():
    layer = regard.create("full", dim=12, num_heads=3).eval()
    x = torch.randn(2, 5, 12)
    joined = []
    layer.out_proj.register_forward_pre_hook(lambda module, inputs: joined.append(inputs[0]))
    layer(x)
    gates = gate_heads(layer)
    set_gates(gates, -5.0, 0.4, 5.0)
    g = torch.tensor([0.0, 1.2 * torch.sigmoid(torch.tensor(0.4)).item() - 0.1, 1.0])
    assert_close(gates.gates(), {"": g})
    expected = layer.out_proj.bias + (joined[0] * g.repeat_interleave(4)) @ layer.out_proj.weight.T
    assert_close(layer(x), expected)
    assert gates.open() == {"": [1, 2]}
    assert repr(gates) == "HeadGates(2 of 3 heads open, weight=0.1)"


@pytest.mark.parametrize("make", MODELS)
def test_every_attention_gets_gates_and_loses_them_again(make):
    model, run = make()
    model.eval()
    names, before = set(model.state_dict()), run(model)
    gates = gate_heads(model, weight=0.5)
    assert gates.gates().keys() == attentions(model).keys()
    heads = sum(found.num_heads for found in attentions(model).values())
    a = torch.tensor(2.0)
    assert_close(gates.penalty(), 0.5 * heads * torch.sigmoid(a - 0.33 * torch.log(torch.tensor(1 / 11))))
    added = set(model.state_dict()) - names
    assert len(added) == len(gates.parameters())
    assert all(name.endswith("head_gate.log_alpha") for name in added)
    assert {id(p) for p in gates.others()} | {id(p) for p in gates.parameters()} == {id(p) for p in model.parameters()}
    set_gates(gates, 9.0)
    assert_close(run(model), before, rtol=0, atol=1e-6)
    set_gates(gates, -9.0, 9.0)
    assert (run(model) - before).abs().max() > 1e-4
    gates.remove()
    assert set(model.state_dict()) == names
    assert_close(run(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("make", MODELS)
def test_loss_and_penalty_reach_every_gate(make):
    torch.manual_seed(3)
    model, run = make()
    gates = gate_heads(model.train(), start=0.0, temperature=3.0)  # draws that seldom reach 0 or 1
    loss = run(model).square().sum()
    for slope in torch.autograd.grad(loss, gates.parameters(), retain_graph=True):
        assert slope.abs().sum() > 0
    for slope in torch.autograd.grad(gates.penalty(), gates.parameters()):
        assert (slope > 0).all()
    assert not torch.equal(run(model), run(model))  # gates are drawn at each pass
    model.eval()
    assert_close(run(model), run(model), rtol=0, atol=0)


@pytest.mark.parametrize("make", MODELS)
def test_a_checkpoint_and_a_copy_carry_the_gates(make):
    model, run = make()
    gates = gate_heads(model.eval())
    set_gates(gates, -2.0, 0.5, 3.0)
    other, _ = make()
    gate_heads(other.eval())
    other.load_state_dict(model.state_dict())
    assert_close(run(other), run(model))
    twin = copy.deepcopy(model)
    assert_close(run(twin), run(model))
    set_gates(HeadGates(twin), -9.0)
    assert HeadGates(twin).open() != gates.open()
    assert (run(twin) - run(model)).abs().max() > 1e-5  # its gates are its own
    assert_close(run(pickle.loads(pickle.dumps(model))), run(model))


def test_fine_tuning_closes_the_heads_that_do_nothing():
    """Two of four heads reach the output: with a penalty the other two close, without one none does."""
    layer = regard.create("full", dim=16, num_heads=4)
    with torch.no_grad():
        layer.out_proj.weight[:, 4:12] = 0.0
    teacher, generator = copy.deepcopy(layer), torch.Generator().manual_seed(0)
    for weight, left in ((0.02, [0, 3]), (0.0, [0, 1, 2, 3])):
        student = copy.deepcopy(layer)
        gates = gate_heads(student, weight=weight)
        optimizer = torch.optim.AdamW([{"params": gates.parameters(), "weight_decay": 0.0}], lr=0.2)
        for _ in range(60):
            x = torch.randn(8, 4, 16, generator=generator)
            loss = (student(x) - teacher(x)).square().sum(-1).mean() + gates.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert gates.open() == {"": left}


def test_a_model_of_head_pruning_has_gates_already():
    model, _ = learned()
    gates = HeadGates(model, weight=0.1)
    told = model(torch.zeros(1, 3, dtype=torch.long), return_aux=True)[1]
    assert_close(gates.penalty(), sum(value for name, value in told.items() if name.startswith("loss/")))
    with pytest.raises(ValueError, match="has gates already"):
        gate_heads(model)


def test_gates_are_precise_in_half_precision():
    model, run = language()
    gates = gate_heads(model.bfloat16().eval())
    set_gates(gates, 0.3)
    assert gates.gates()["blocks.0.attention"].dtype == torch.float32
    assert run(model).dtype == torch.bfloat16


def test_gates_compile():
    layer = regard.create("full", dim=12, num_heads=3).eval()
    set_gates(gate_heads(layer), -9.0, 0.2, 9.0)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 5, 12)
    assert_close(compiled(x), layer(x))


def test_gates_act_in_a_stream_too():
    model, _ = grouped()
    set_gates(gate_heads(model.eval()), -9.0, 0.1, 0.9)
    tokens = torch.randint(50, (2, 6))
    first, memory = model.stream(tokens[:, :4], model.memory(2))
    second, _ = model.stream(tokens[:, 4:], memory)
    assert_close(torch.cat([first, second], 1), model(tokens))


def test_some_layers_only():
    model, _ = language()
    gates = gate_heads(model, layers=["blocks.1.attention"])
    assert list(gates.gates()) == ["blocks.1.attention"]
    assert list(gate_heads(model, layers=["blocks.0.attention"]).gates()) == [
        "blocks.0.attention",
        "blocks.1.attention",
    ]


@pytest.mark.parametrize("case", SEQUENCES, ids=str)
def test_every_mechanism_with_heads_can_be_closed(case):
    """With all gates closed nothing of the input is left, so no head gets around its gate."""
    layer = case.build().eval()
    try:
        found = attentions(layer)
    except UnsupportedError:
        return
    gates = HeadGates(layer) if case.name.startswith("head_pruning") else gate_heads(layer)
    assert gates.gates().keys() == found.keys()
    set_gates(gates, -9.0)
    y = layer(torch.randn(2, 9, layer.dim))
    y = y[0] if isinstance(y, tuple) else y
    assert_close(y, y[:1, :1].expand_as(y))


def test_refusals():
    model, _ = language()
    with pytest.raises(ValueError, match=r"no attention is called 'blocks.2'.*'blocks.0.attention'"):
        gate_heads(model, layers=["blocks.2"])
    with pytest.raises(ValueError, match="no gates: put some on"):
        HeadGates(model)
    with pytest.raises(ValueError, match="below 0 and above 1"):
        gate_heads(model, stretch=(0.0, 1.0))
    gate_heads(model)
    with pytest.raises(ValueError, match="has gates already"):
        gate_heads(model)
    with pytest.raises(UnsupportedError, match="Linear has no attention whose heads can be told apart"):
        gate_heads(torch.nn.Linear(4, 4))
    with pytest.raises(UnsupportedError, match=r"never calls its output projection.*regard.swap_attention"):
        gate_heads(torch.nn.TransformerEncoderLayer(8, 2))
    with pytest.raises(UnsupportedError, match="it convolves instead of attending"):
        gate_heads(regard.models.TransformerLM(50, 16, 1, 2, 32, "talk_convolutions"))
