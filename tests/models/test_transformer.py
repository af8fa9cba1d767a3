import inspect

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import regard
from regard import registry
from regard.factory import find
from regard.memory import named_tensors
from regard.models.decoding import generate
from regard.models.transformer import TransformerClassifier, TransformerEncoder, TransformerLM
from regard.registry import Card, Layer, Sample, UnsupportedError, register

SIZES = {"vocab_size": 20, "dim": 12, "depth": 2, "num_heads": 3, "max_length": 16}
MECHANISMS = ["full", "linear_transformer"]


def tokens(n=9):
    return torch.randint(20, (2, n))


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_language_model_sees_no_later_token(mechanism):
    model, x = TransformerLM(**SIZES, mechanism=mechanism), tokens()
    changed = torch.cat((x[:, :5], (x[:, 5:] + 1) % 20), 1)
    assert_close(model(changed)[:, :5], model(x)[:, :5])
    assert not torch.allclose(model(changed)[:, 5:], model(x)[:, 5:])


def test_the_blocks_are_pre_norm():
    model, x = TransformerLM(**SIZES), tokens()
    h = model.token_embedding.weight[x] + model.position_embedding.weight[:9]
    for block in model.blocks:
        h = h + block.attention(F.layer_norm(h, (12,)))
        h = h + block.mlp(F.layer_norm(h, (12,)))
    assert_close(model(x), F.layer_norm(h, (12,)) @ model.token_embedding.weight.T)


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("kind", [TransformerEncoder, TransformerLM, TransformerClassifier])
def test_padding_changes_nothing(kind, mechanism):
    extra = {"num_classes": 4} if kind is TransformerClassifier else {}
    model, x = kind(**SIZES, mechanism=mechanism, **extra), tokens()
    for real in (slice(0, 9), slice(4, 13)):  # right, left
        mask = torch.zeros(2, 13, dtype=torch.bool)
        mask[:, real] = True
        padded = torch.randint(20, (2, 13))
        padded[:, real] = x
        y = model(padded, key_mask=mask)
        assert_close(y if extra else y[:, real], model(x), rtol=0, atol=1e-5)


def test_the_classifier_takes_the_mean():
    model, x = TransformerClassifier(**SIZES, num_classes=4), tokens()
    assert model(x).shape == (2, 4)
    nothing = model(x, key_mask=torch.zeros(2, 9, dtype=torch.bool))
    assert_close(nothing, model.classes.bias.expand(2, 4))


def test_every_parameter_learns():
    for model in (TransformerLM(**SIZES, dropout=0.1), TransformerClassifier(**SIZES, num_classes=4)):
        model(tokens(16)).square().sum().backward()
        assert all(
            parameter.grad is not None and parameter.grad.any()
            for name, parameter in model.named_parameters()
            if "k_proj.bias" not in name
        )  # a bias on all keys cancels in the softmax


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_documents_are_kept_apart(mechanism):
    model, x = TransformerLM(**SIZES, mechanism=mechanism), tokens()
    y = model(x, segments=torch.tensor([[0] * 4 + [1] * 5] * 2))
    assert_close(y, torch.cat((model(x[:, :4]), model(x[:, 4:])), 1), rtol=0, atol=1e-5)


def test_what_layers_tell_carries_their_path(monkeypatch):
    regard.names()  # what is imported registers once, so all of it before the registry is set aside
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    @register("teller", samples=[Sample()])
    class Teller(Layer):
        card = Card(title="t", paper="p", year=1, family="f", data="sequence", causal="strict")

        def __init__(self, dim, causal):
            super().__init__()

        def forward(self, x, *, key_mask=None, segments=None, generator=None, return_aux=False):
            return (x, {"loss/balance": x.sum(), "map/weights": x}) if return_aux else x

    logits, aux = TransformerLM(**SIZES, mechanism="teller")(tokens(), return_aux=True)
    assert logits.shape == (2, 9, 20)
    assert sorted(aux) == [
        f"{kind}.{i}.attention/{what}"
        for kind, what in (("loss/blocks", "balance"), ("map/blocks", "weights"))
        for i in range(2)
    ]
    assert TransformerLM(**SIZES)(tokens(), return_aux=True)[1] == {}


def test_options_reach_the_mechanism():
    model = TransformerLM(**SIZES, num_kv_heads=1, attn_drop=0.1, dtype=torch.float64, mlp_ratio=2)
    assert model.blocks[1].attention.num_kv_heads == 1
    assert model.blocks[0].attention.core.attn_drop == 0.1
    assert model.blocks[0].mlp[0].out_features == 24
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


def test_refusals():
    with pytest.raises(ValueError, match=r"17 tokens.*max_length=16"):
        TransformerLM(**SIZES)(tokens(17))
    with pytest.raises(UnsupportedError, match="cannot honour attn_drop"):
        TransformerEncoder(**SIZES, mechanism="linear_transformer", attn_drop=0.1)
    with pytest.raises(TypeError, match=r"segments is torch.float32"):
        TransformerLM(**SIZES)(tokens(), segments=torch.zeros(2, 9))
    with pytest.raises(TypeError, match="no option 'heads'"):
        TransformerLM(**SIZES, heads=3)


def test_the_networks_are_public():
    assert regard.models.TransformerLM is TransformerLM
    assert set(regard.models.__all__) <= set(dir(regard.models))
    with pytest.raises(AttributeError, match=r"no attribute 'TransformerXX'; it has .*TransformerLM"):
        regard.models.TransformerXX  # noqa: B018


STREAMING = [name for name in regard.names(data="sequence", causal="strict") if regard.card(name).streaming]


@pytest.mark.parametrize("mechanism", STREAMING)
@pytest.mark.parametrize("static", [None, 16])
def test_one_token_at_a_time_is_the_whole(mechanism, static):
    model, x = TransformerLM(**SIZES, mechanism=mechanism).eval(), tokens(12)
    with torch.no_grad():
        memory, parts = model.memory(2, static=static), []
        for part in x.split((5, *[1] * 7), 1):
            logits, memory = model.stream(part, memory)
            parts.append(logits)
        assert_close(torch.cat(parts, 1), model(x), rtol=0, atol=1e-5)
    assert memory.position.tolist() == [12, 12]


@pytest.mark.parametrize("mechanism", regard.names(data="sequence", causal=True))
def test_every_causal_mechanism_makes_a_language_model(mechanism):
    assert TransformerLM(**SIZES, mechanism=mechanism)(tokens()).shape == (2, 9, 20)


@pytest.mark.parametrize("mechanism", regard.names(data="sequence"))
def test_every_mechanism_makes_an_encoder(mechanism):
    entry = find(mechanism)
    if entry.card.causal and "causal" not in inspect.signature(entry.cls).parameters:
        with pytest.raises(UnsupportedError, match="always causal"):
            TransformerEncoder(**SIZES, mechanism=mechanism)
        return
    assert TransformerEncoder(**SIZES, mechanism=mechanism)(tokens()).shape == (2, 9, 12)


GROWING = (
    *("multi_head", "bigbird", "sparse_transformer", "talking_heads", "coda", "head_pruning"),
    *("memory_compressed", "sinkhorn", "synthesizer"),
)
"""Mechanisms whose next token may look at any of those before; the others let go of them, or only keep sums."""


@pytest.mark.parametrize("mechanism", [name for name in STREAMING if name not in GROWING])
def test_the_memory_of_windows_and_sums_does_not_grow(mechanism):
    options = {"window": 4} if mechanism in ("local", "longformer") else {}
    model = TransformerLM(20, 12, 1, 3, 4096, mechanism, **options).eval()
    sizes, memory = [], model.memory(1)
    with torch.no_grad():
        for _ in range(2):  # whole segments, for the mechanisms that have some
            _, memory = model.stream(torch.zeros(1, 1024, dtype=torch.long), memory)
            sizes.append(sum(tensor.numel() for tensor in named_tensors(memory).values()))
    assert sizes[0] == sizes[1]


def test_streaming_refuses():
    model = TransformerLM(**SIZES)
    _, memory = model.stream(tokens(15), model.memory(2))
    with pytest.raises(ValueError, match=r"15 tokens and 2 more.*max_length=16"):
        model.stream(tokens(2), memory)
    with pytest.raises(ValueError, match=r"memory.layers.0.core.key has shape \(2, 3, 15, 4\)"):
        model.stream(tokens(1)[:1], memory)
    with pytest.raises(UnsupportedError, match=r"reformer streams only with strict=True"):
        TransformerLM(**SIZES, mechanism="reformer").memory(2)


def test_generate_takes_the_likeliest_or_draws():
    model, prompt = TransformerLM(**SIZES).eval(), tokens(3)
    greedy = generate(model, prompt, 4, temperature=0)
    assert greedy[:, :3].equal(prompt)
    for step in range(3, 7):
        assert greedy[:, step].equal(model(greedy[:, :step])[:, -1].argmax(-1))
    assert generate(model, prompt, 4, top_k=1).equal(greedy)
    first, same, other = (
        generate(model, prompt, 9, temperature=5.0, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert first.equal(same)
    assert not first.equal(other)
    for wrong in ({"prompt": prompt[:, :0]}, {"steps": -1}, {"temperature": -1.0}, {"top_k": 0}):
        with pytest.raises(ValueError, match=r"prompt|steps="):
            generate(model, **{"prompt": prompt, "steps": 1, **wrong})
