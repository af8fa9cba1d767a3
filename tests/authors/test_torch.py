"""torch.nn's modules: configuration and weights give the same numbers in ours, through load and through replay."""

import itertools
import json

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from regard.authors import load
from regard.authors.replay import replay

OPTIONS = {
    "plain": {},
    "no bias": {"bias": False},
    "own widths": {"kdim": 6, "vdim": 10},
    "learned key": {"add_bias_kv": True},
    "zero key": {"add_zero_attn": True},
    "everything": {"kdim": 6, "vdim": 10, "add_bias_kv": True, "add_zero_attn": True, "bias": False},
}
SOURCE = "pypi torch==2.13.0:torch/nn/modules/activation.py:MultiheadAttention"
LAYERS = "pytorch/pytorch@v2.13.0:torch/nn/modules/transformer.py"


def attention_masks(kind, batch, heads, n, m):
    pairs = torch.rand(n, m) < 0.3
    pairs[:, 0] = False
    keys = torch.zeros(batch, m, dtype=torch.bool)
    keys[1, m - 2 :] = True
    return {
        "none": {},
        "keys": {"key_padding_mask": keys},
        "pairs": {"attn_mask": pairs},
        "both": {"key_padding_mask": keys, "attn_mask": pairs},
        "float": {"key_padding_mask": torch.randn(batch, m), "attn_mask": torch.randn(n, m)},
        "per head": {"attn_mask": torch.randn(batch * heads, n, m)},
    }[kind]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("masks", ["none", "keys", "pairs", "both", "float", "per head"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_multihead_attention(options, masks, batch_first):
    config = {"embed_dim": 8, "num_heads": 2, "batch_first": batch_first, **options}
    theirs = nn.MultiheadAttention(**config)
    nn.init.normal_(theirs.in_proj_bias) if theirs.in_proj_bias is not None else None
    ours = load("multi_head", SOURCE, config, theirs.state_dict())
    q, k, v = torch.randn(2, 5, 8), torch.randn(2, 7, config.get("kdim", 8)), torch.randn(2, 7, config.get("vdim", 8))
    q, k, v = (x if batch_first else x.transpose(0, 1) for x in (q, k, v))
    given = attention_masks(masks, 2, 2, 5, 7)
    for average in (True, False):
        expected = theirs(q, k, v, **given, average_attn_weights=average)
        found = ours(q, k, v, **given, average_attn_weights=average)
        assert_close(found, expected, rtol=0, atol=1e-5)


def test_multihead_attention_without_a_batch():
    theirs = nn.MultiheadAttention(8, 2)
    ours = load("multi_head", SOURCE, {"embed_dim": 8, "num_heads": 2}, theirs.state_dict())
    x = torch.randn(5, 8)
    assert_close(ours(x, x, x), theirs(x, x, x), rtol=0, atol=1e-5)


def test_a_query_without_keys_gives_the_output_bias_where_torch_gives_nan():
    theirs = nn.MultiheadAttention(8, 2, batch_first=True)
    nn.init.normal_(theirs.out_proj.bias)
    ours = load("multi_head", SOURCE, {"embed_dim": 8, "num_heads": 2, "batch_first": True}, theirs.state_dict())
    x, nothing = torch.randn(1, 3, 8), torch.ones(1, 3, dtype=torch.bool)
    out, weights = ours(x, x, x, key_padding_mask=nothing)
    assert_close(out, theirs.out_proj.bias.expand(1, 3, 8), rtol=0, atol=0)
    assert not weights.any()


@pytest.mark.parametrize(
    ("batch_first", "norm_first", "activation", "bias"),
    list(itertools.product([False, True], [False, True], ["relu", "gelu"], [True, False])),
)
def test_encoder_layer(batch_first, norm_first, activation, bias):
    config = {"d_model": 8, "nhead": 2, "dim_feedforward": 12, "dropout": 0.1, "layer_norm_eps": 1e-3, "bias": bias,
              "batch_first": batch_first, "norm_first": norm_first, "activation": activation}  # fmt: skip
    theirs = nn.TransformerEncoderLayer(**config).train(False)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    ours = load("multi_head", f"{LAYERS}:TransformerEncoderLayer", config, theirs.state_dict()).eval()
    x, keys = torch.randn(2, 5, 8), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    x = x if batch_first else x.transpose(0, 1)
    pairs = torch.ones(5, 5, dtype=torch.bool).triu(1)
    with torch.enable_grad():  # with gradients torch takes the path that computes padded rows, too
        expected = theirs(x, src_mask=pairs, src_key_padding_mask=keys)
    found = ours(x, src_mask=pairs, src_key_padding_mask=keys)
    assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("norm_first", [False, True])
def test_whole_transformer_through_replay(norm_first):
    config = {"d_model": 8, "nhead": 2, "num_encoder_layers": 2, "num_decoder_layers": 1, "dim_feedforward": 12,
              "dropout": 0.0, "batch_first": True, "norm_first": norm_first}  # fmt: skip
    theirs = nn.Transformer(**config)
    src, tgt = torch.randn(2, 6, 8, requires_grad=True), torch.randn(2, 4, 8, requires_grad=True)
    keys, causal = torch.tensor([[False] * 6, [False] * 4 + [True] * 2]), torch.ones(4, 4, dtype=torch.bool).triu(1)
    out = theirs(src, tgt, tgt_mask=causal, src_key_padding_mask=keys, memory_key_padding_mask=keys)
    cotangent = torch.randn_like(out)
    (out * cotangent).sum().backward()
    tensors = {f"param/{name}": p for name, p in theirs.state_dict().items()}
    inputs = {"src": src, "tgt": tgt, "cotangent": cotangent, "tgt_mask": causal, "pad": keys}
    call = {"args": ["src", "tgt"], "kwargs": {"src_key_padding_mask": "pad", "memory_key_padding_mask": "pad"}}
    meta = {"mechanism": "multi_head", "source": "torch.nn.Transformer", "config": json.dumps(config),
            "call": json.dumps(call)}  # fmt: skip
    found = replay(tensors | {f"in/{name}": t.detach() for name, t in inputs.items()}, meta)
    assert_close(found["out/out"], out.detach(), rtol=0, atol=1e-5)
    expected = {name: p.grad for name, p in theirs.named_parameters()} | {"src": src.grad, "tgt": tgt.grad}
    for name, gradient in expected.items():
        assert_close(found[f"grad/{name}"], gradient, rtol=0, atol=5e-5)


@pytest.mark.parametrize("cls", ["TransformerEncoder", "TransformerDecoder", "TransformerDecoderLayer"])
def test_stacks(cls):
    layer = {"d_model": 8, "nhead": 2, "dim_feedforward": 12, "dropout": 0.0}
    one = getattr(nn, cls.removesuffix("Layer") + "Layer")(**layer)
    options = {"enable_nested_tensor": False} if cls == "TransformerEncoder" else {}
    theirs = one if cls.endswith("Layer") else getattr(nn, cls)(one, 2, **options)
    config = {**layer, "num_layers": 2}
    ours = load("multi_head", f"torch.nn.{cls}", config, theirs.state_dict())
    x, memory = torch.randn(5, 2, 8), torch.randn(7, 2, 8)
    if cls == "TransformerEncoder":
        assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)
    else:
        assert_close(ours(tgt=x, memory=memory), theirs(x, memory), rtol=0, atol=1e-5)
