"""The importers of context-guided BERT against a second statement of what its authors' code computes."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import regard
from regard.authors.replay import replay
from regard.registry import UnsupportedError

REPOSITORY = "frankaging/Quasi-Attention-ABSA@1597998:code/model"
SOURCES = {"quasi": "QACG", "mixed": "CG"}
BIAS = -10000.0


def linear(x, state, name):
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def heads(x, count):
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def attention(kind, state, count, x, context, added):
    """Their self-attention, before the output projection; ``added`` goes to all scores."""
    q, k, v = (heads(linear(x, state, name), count) for name in ("query", "key", "value"))
    if kind == "quasi":
        cq, ck = (heads(linear(context, state, f"context_for_{name}"), count) for name in "qk")
    else:
        cq, ck = (linear(heads(context, count), state, f"context_for_{name}") for name in "qk")
    lq = torch.sigmoid(linear(cq, state, "lambda_q_context_layer") + linear(q, state, "lambda_q_query_layer"))
    lk = torch.sigmoid(linear(ck, state, "lambda_k_context_layer") + linear(k, state, "lambda_k_key_layer"))
    scale = q.shape[-1] ** -0.5
    if kind == "mixed":
        q, k = (1 - lq) * q + lq * cq, (1 - lk) * k + lk * ck
        weights = torch.softmax(q @ k.mT * scale + added, -1)
    else:
        weights = torch.softmax(q @ k.mT * scale + added, -1)
        weights = weights + (1 - (lq + lk)) * torch.sigmoid(cq @ ck.mT * scale + added)
    return (weights @ v).transpose(1, 2).flatten(2)


def attention_shapes(kind, dim, count):
    d = dim // count
    inner = dim if kind == "quasi" else d
    shapes = {
        f"{name}.{part}": (dim, dim)[: 1 + (part == "weight")]
        for name in ("query", "key", "value")
        for part in ("weight", "bias")
    }
    for name in "qk":
        shapes |= {f"context_for_{name}.weight": (inner, inner), f"context_for_{name}.bias": (inner,)}
    for name in ("q_context", "q_query", "k_context", "k_key"):
        shapes[f"lambda_{name}_layer.weight"] = (1, d)
        if kind == "quasi":
            shapes[f"lambda_{name}_layer.bias"] = (1,)
    return shapes


def network_shapes(kind, config, labels):
    dim, wide = config["hidden_size"], config["intermediate_size"]
    shapes = {
        "bert.embeddings.word_embeddings.weight": (config["vocab_size"], dim),
        "bert.embeddings.position_embeddings.weight": (config["max_position_embeddings"], dim),
        "bert.embeddings.token_type_embeddings.weight": (config["type_vocab_size"], dim),
        "bert.context_embeddings.weight": (8, dim),
        "bert.pooler.dense.weight": (dim, dim),
        "bert.pooler.dense.bias": (dim,),
        "bert.pooler.attention_gate.0.weight": (32, dim),
        "bert.pooler.attention_gate.3.bias": (1,),
        "classifier.weight": (labels, dim),
        "classifier.bias": (labels,),
    }
    norms = ["bert.embeddings.LayerNorm"]
    for number in range(config["num_hidden_layers"]):
        layer = f"bert.encoder.layer.{number}"
        own = attention_shapes(kind, dim, config["num_attention_heads"])
        shapes |= {f"{layer}.attention.self.{name}": shape for name, shape in own.items()}
        shapes |= {f"bert.encoder.context_layer.{number}.weight": (dim, 2 * dim)}
        shapes |= {f"bert.encoder.context_layer.{number}.bias": (dim,)}
        for name, shape in (
            ("attention.output", (dim, dim)),
            ("intermediate", (wide, dim)),
            ("output", (dim, wide)),
        ):
            shapes |= {f"{layer}.{name}.dense.weight": shape, f"{layer}.{name}.dense.bias": shape[:1]}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    return shapes | {f"{name}.{part}": (dim,) for name in norms for part in ("gamma", "beta")}


def drawn(shapes):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def network(kind, state, config, tokens, types, mask, contexts):
    """Their forward, step by step."""

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.gamma"], state[f"{name}.beta"], eps=1e-12)

    state = {name.removeprefix("bert."): t for name, t in state.items()}
    table = {name: state[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")}
    x = norm(
        table["word"][tokens] + table["position"][: tokens.shape[1]] + table["token_type"][types],
        "embeddings.LayerNorm",
    )
    asked = state["context_embeddings.weight"][contexts.reshape(-1)][:, None].expand_as(x)
    added = (1 - mask.float())[:, None, None] * BIAS
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        context = linear(torch.cat((asked, x), -1), state, f"encoder.context_layer.{number}") + asked
        own = {
            n.removeprefix(f"{layer}.attention.self."): t
            for n, t in state.items()
            if n.startswith(f"{layer}.attention.self.")
        }
        seen = attention(kind, own, config["num_attention_heads"], x, context, added)
        x = norm(linear(seen, state, f"{layer}.attention.output.dense") + x, f"{layer}.attention.output.LayerNorm")
        wide = F.gelu(linear(x, state, f"{layer}.intermediate.dense"))
        x = norm(linear(wide, state, f"{layer}.output.dense") + x, f"{layer}.output.LayerNorm")
    pooled = torch.tanh(linear(x[:, 0], state, "pooler.dense"))
    return pooled, linear(pooled, state, "classifier")


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize(("dim", "count"), [(8, 1), (12, 4)])
def test_self_attention_in_other_sizes(kind, dim, count):
    torch.manual_seed(0)
    state = drawn(attention_shapes(kind, dim, count))
    x, context, cotangent = torch.randn(3, 2, 6, dim)
    real = torch.arange(6) < torch.tensor([[6], [4]])
    meta = {
        "mechanism": "quasi_attention",
        "source": f"{REPOSITORY}/{SOURCES[kind]}BERT.py:ContextBERTSelfAttention",
        "config": json.dumps({"hidden_size": dim, "num_attention_heads": count, "attention_probs_dropout_prob": 0.3}),
    }
    inputs = {"in/hidden_states": x, "in/context": context, "in/keep_mask": real, "in/cotangent": cotangent}
    found = replay({f"param/{name}": t for name, t in state.items()} | inputs, meta)
    leaves = {name: t.requires_grad_() for name, t in (state | {"hidden_states": x, "context": context}).items()}
    expected = attention(kind, leaves, count, x, context, (~real)[:, None, None] * BIAS)
    assert_close(found["out/out"], expected, rtol=1e-5, atol=1e-5)
    slopes = torch.autograd.grad((expected * cotangent).sum(), list(leaves.values()))
    for name, slope in zip(leaves, slopes, strict=True):
        assert_close(found[f"grad/{name}"], slope, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("nested", [False, True])
def test_whole_networks(kind, nested):
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
    sizes |= {"intermediate_size": 20, "max_position_embeddings": 10, "type_vocab_size": 2}
    config = {"config": sizes, "num_labels": 3} if nested else {**sizes, "num_labels": 3}
    state = drawn(network_shapes(kind, sizes, 3))
    tokens, types, contexts = torch.randint(30, (2, 7)), torch.randint(2, (2, 7)), torch.tensor([[5], [0]])
    mask = (torch.arange(7) < torch.tensor([[7], [4]])).long()
    prefix = SOURCES[kind]
    pooled, logits = network(kind, state, sizes, tokens, types, mask, contexts)
    inputs = {"in/input_ids": tokens, "in/token_type_ids": types, "in/attention_mask": mask, "in/context_ids": contexts}
    meta = {
        "mechanism": "quasi_attention",
        "source": f"{REPOSITORY}/{prefix}BERT.py:{prefix}BertForSequenceClassification",
        "config": json.dumps(config),
    }
    found = replay({f"param/{name}": t for name, t in state.items()} | inputs, meta)
    assert_close(found["out/out"], logits, rtol=1e-5, atol=1e-5)
    body = {name.removeprefix("bert."): t for name, t in state.items() if name.startswith("bert.")}
    meta |= {"source": f"{REPOSITORY}/{prefix}BERT.py:ContextBertModel", "config": json.dumps(sizes)}
    found = replay({f"param/{name}": t for name, t in body.items()} | inputs, meta)
    assert_close(found["out/out"], pooled, rtol=1e-5, atol=1e-5)


def test_refusals():
    source = f"{REPOSITORY}/CGBERT.py:CGBertForSequenceClassification"
    with pytest.raises(UnsupportedError, match="vocab_size"):
        regard.authors.load("quasi_attention", source, {"num_labels": 3}, {})
    with pytest.raises(UnsupportedError, match="cannot load"):
        regard.authors.load("quasi_attention", "frankaging/Quasi-Attention-ABSA:code/model/BiLSTM.py:BiLSTM", {}, {})
