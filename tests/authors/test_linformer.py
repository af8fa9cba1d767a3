"""Configurations of the sources beside the recorded ones, against their formulas written as loops."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from regard.authors import find, load
from regard.registry import UnsupportedError

FAIRSEQ = "facebookresearch/fairseq:multihead_linear_attention.py:MultiheadLinearAttention"
PORT = "tatp22/linformer-pytorch:linformer_pytorch/linformer_pytorch.py:MHAttention"
OTHER_PORT = "lucidrains/linformer:linformer/linformer.py:LinformerSelfAttention"


def run(source, config, state, inputs, call=None):
    module = load("linformer", source, config, state)
    return find("linformer", source).call(module, inputs, call or {})


def softmax_attention(q, k, v):
    return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v


def heads(x, count):
    return x.unflatten(-1, (count, -1)).transpose(-2, -3)


@pytest.mark.parametrize("shared", [0, 1])
@pytest.mark.parametrize("more", [(), ("add_bias_kv",), ("add_zero_attn",), ("add_bias_kv", "add_zero_attn")])
@pytest.mark.parametrize("form", ["self", "other"])
def test_fairseq(shared, more, form):
    config = {"embed_dim": 8, "num_heads": 2, "compressed": 3, "max_seq_len": 12, "shared_kv_compressed": shared}
    config |= {f"{form}_attention" if form == "self" else "encoder_decoder_attention": True}
    config |= dict.fromkeys(more, True)
    state = {f"{p}_proj.{kind}": torch.randn(8, 8)[: 8 if kind == "weight" else 1].squeeze(0)
             for p, kind in itertools.product(("q", "k", "v", "out"), ("weight", "bias"))}  # fmt: skip
    state |= {f"compress_{p}.weight": torch.randn(4, 12) for p in ("k" if shared else "kv")}
    if "add_bias_kv" in more:
        state |= {f"bias_{p}": torch.randn(1, 1, 8) for p in "kv"}
    query, other = torch.randn(10, 2, 8), torch.randn(7, 2, 8)

    def linear(name, x):
        return x @ state[f"{name}_proj.weight"].T + state[f"{name}_proj.bias"]

    def asked(name):
        table = state[f"compress_{'k' if shared else name}.weight"][:, :10]
        tokens = table @ query.transpose(0, 1) if form == "self" else other.transpose(0, 1)
        rows = [linear(name, tokens)]
        rows += [state[f"bias_{name}"].expand(2, 1, 8)] if "add_bias_kv" in more else []
        rows += [torch.zeros(2, 1, 8)] if "add_zero_attn" in more else []
        return heads(torch.cat(rows, 1), 2)

    q, k, v = heads(linear("q", query.transpose(0, 1)), 2), asked("k"), asked("v")
    expected = linear("out", softmax_attention(q, k, v).transpose(1, 2).flatten(2)).transpose(0, 1)
    inputs = {"query": query} | ({} if form == "self" else {"key": other, "value": other})
    found = run(FAIRSEQ, config, state, inputs)
    assert_close(found["out"], expected, rtol=1e-4, atol=1e-4)
    assert found["attention"].shape == (2, 10, k.shape[2])


@pytest.mark.parametrize("sharing", ["none", "headwise", "kv"])
@pytest.mark.parametrize("method", ["learnable", "convolution"])
@pytest.mark.parametrize("causal", [False, True])
def test_one_linear_map_a_head(sharing, method, causal):
    config = {"input_size": 9, "dim": 4, "channels": 6, "dim_k": 3, "nhead": 2, "parameter_sharing": sharing}
    config |= {"method": method, "causal_mask": causal, "w_o_intermediate_dim": 5}
    sizes = {"weight": (3, 9), "bias": (3,)} if method == "learnable" else {"weight": (4, 4, 3), "bias": (4,)}
    state = {f"to_{p}.{h}.weight": torch.randn(4, 6) for p, h in itertools.product("qkv", range(2))}
    first = {p: {kind: torch.randn(size) for kind, size in sizes.items()} for p in "EF"}
    for h, p, kind in itertools.product(range(2), "EF", sizes):
        shared = first["E" if sharing == "kv" else p][kind]
        state[f"heads.{h}.{p}.{kind}"] = shared if sharing != "none" else torch.randn(sizes[kind])
    state |= {"w_o_1.weight": torch.randn(5, 8), "w_o_1.bias": torch.randn(5)}
    state |= {"w_o_2.weight": torch.randn(6, 5), "w_o_2.bias": torch.randn(6)}
    x, keep = torch.randn(2, 9, 6), torch.rand(2, 9) < 0.7

    def mixed(h, p, rows):  # (B, 9, 4) -> (B, 3, 4)
        weight, bias = (state[f"heads.{h}.{p}.{kind}"] for kind in ("weight", "bias"))
        if method == "learnable":
            return weight @ rows + bias[:, None]
        return torch.conv1d(rows.mT, weight, bias, stride=3).mT

    outs = []
    for h in range(2):
        q, k, v = (x @ state[f"to_{p}.{h}.weight"].T for p in "qkv")
        k, v = (mixed(h, p, rows * keep[..., None]) for p, rows in (("E", k), ("F", v)))
        scores = q @ k.mT / 2
        outs.append(
            (scores.masked_fill(~torch.ones(9, 3).tril().bool(), -torch.inf) if causal else scores).softmax(-1) @ v
        )
    y = torch.cat(outs, -1) @ state["w_o_1.weight"].T + state["w_o_1.bias"]
    expected = y @ state["w_o_2.weight"].T + state["w_o_2.bias"]
    found = run(PORT, config, state, {"x": x, "input_mask": keep})["out"]
    assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_table_in_no_state_dict_is_refused():
    config = {"input_size": 9, "dim": 4, "channels": 6, "dim_k": 3, "nhead": 2, "method": "no_params"}
    with pytest.raises(UnsupportedError, match="no_params"):
        load("linformer", PORT, config, {})


@pytest.mark.parametrize("one_kv_head", [False, True])
@pytest.mark.parametrize("share_kv", [False, True])
def test_the_other_port(one_kv_head, share_kv):
    config = {"dim": 8, "seq_len": 12, "k": 3, "heads": 2, "one_kv_head": one_kv_head, "share_kv": share_kv}
    width = 4 if one_kv_head else 8
    state = {"to_q.weight": torch.randn(8, 8), "to_k.weight": torch.randn(width, 8), "proj_k": torch.randn(12, 3)}
    state |= {"to_out.weight": torch.randn(8, 8), "to_out.bias": torch.randn(8)}
    if not share_kv:
        state |= {"to_v.weight": torch.randn(width, 8), "proj_v": torch.randn(12, 3)}
    x, context = torch.randn(2, 5, 8), torch.randn(2, 9, 8)
    k = state["proj_k"][:9].T @ (context @ state["to_k.weight"].T)
    v = k if share_kv else state["proj_v"][:9].T @ (context @ state["to_v.weight"].T)
    q, k, v = heads(x @ state["to_q.weight"].T, 2), *(heads(t, width // 4) for t in (k, v))
    y = softmax_attention(q, k, v).transpose(1, 2).flatten(2) @ state["to_out.weight"].T + state["to_out.bias"]
    assert_close(run(OTHER_PORT, config, state, {"x": x, "context": context})["out"], y, rtol=1e-4, atol=1e-4)
