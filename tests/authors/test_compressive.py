"""Both sources of the compressive family against loops, in configurations beyond the recorded cases."""

import json

import pytest
import torch
from torch.nn.functional import layer_norm, pad
from torch.testing import assert_close

from regard.authors.replay import replay

XL = "kimiyoung/transformer-xl@44781ed:pytorch/mem_transformer.py:RelPartialLearnableMultiHeadAttn"
PORT = "lucidrains/compressive-transformer-pytorch@cd3c533:x/y.py:SelfAttention"


def run(source, config, state, tensors, call=None):
    meta = {"mechanism": "compressive", "source": source, "config": json.dumps(config), "call": json.dumps(call or {})}
    return replay({f"param/{k}": t for k, t in state.items()} | {f"in/{k}": t for k, t in tensors.items()}, meta)


def drawn(**shapes):
    return {name.replace("__", "."): torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("memory", [None, 0, 5])
@pytest.mark.parametrize("mask", [None, "causal", "same length", "by batch"])
def test_transformer_xl(pre_norm, memory, mask):
    H, d, C, n, B = 2, 3, 6, 4, 2
    M = memory or 0
    state = drawn(
        qkv_net__weight=(3 * H * d, C), r_net__weight=(H * d, C), o_net__weight=(C, H * d),
        layer_norm__weight=(C,), layer_norm__bias=(C,),
    )  # fmt: skip
    inputs = drawn(w=(n, B, C), r=(M + n, 1, C), r_w_bias=(H, d), r_r_bias=(H, d))
    if memory is not None:
        inputs |= drawn(mems=(M, B, C))
    hidden = torch.ones(n, M + n).triu(M + 1).bool().expand(B, n, M + n).clone()
    if mask == "same length":
        hidden |= torch.ones(n, M + n).tril(-1).bool()
    if mask == "by batch":
        hidden[1, 3, 2] = True
    if mask is not None:
        inputs["attn_mask"] = hidden.permute(1, 2, 0) if mask == "by batch" else hidden[0, :, :, None].byte()
    config = {"n_head": H, "d_model": C, "d_head": d, "dropout": 0.1, "pre_lnorm": pre_norm}
    found = run(XL, config, state, inputs)["out/out"]

    def norm(x):
        return layer_norm(x, (C,), state["layer_norm.weight"], state["layer_norm.bias"])

    for b in range(B):
        x = inputs["w"][:, b]
        states = torch.cat((inputs["mems"][:, b], x)) if memory is not None else x
        q, k, v = ((norm(states) if pre_norm else states) @ state["qkv_net.weight"].T).chunk(3, -1)
        r = inputs["r"][:, 0] @ state["r_net.weight"].T
        rows = x.new_zeros(n, H * d)
        for h in range(H):
            own = slice(h * d, (h + 1) * d)
            for i in range(n):
                seen = [j for j in range(M + n) if not hidden[b, i, j]]
                scores = [
                    (q[M + i, own] + inputs["r_w_bias"][h]) @ k[j, own]
                    + (q[M + i, own] + inputs["r_r_bias"][h]) @ r[M + n - 1 - (i + M - j), own]
                    for j in seen
                ]
                rows[i, own] = (torch.stack(scores) / d**0.5).softmax(0) @ v[seen][:, own]
        y = x + rows @ state["o_net.weight"].T
        assert_close(found[:, b], y if pre_norm else norm(y), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("sizes", "lengths"),
    [
        ({"mem_len": 8, "cmem_len": 2, "cmem_ratio": 4}, (8, 2, 6)),
        ({"mem_len": 8, "cmem_len": 2, "cmem_ratio": 4}, (3, 0, 6)),  # 1 state leaves: 1 zero in front, nothing fits
        ({"mem_len": 7, "cmem_len": 3, "cmem_ratio": 2}, (4, 1, 6)),  # 3 states leave: 1 zero in front, 2 slots
        ({"mem_len": 8, "cmem_len": 2, "cmem_ratio": 4}, (0, 0, 6)),
        ({"mem_len": 8, "cmem_len": 2, "cmem_ratio": 4}, (5, 1, 4)),  # no whole segment: nothing is kept
        ({"mem_len": 6, "cmem_len": 0, "cmem_ratio": 3}, (6, 0, 6)),
    ],
)
@pytest.mark.parametrize("form", ["plain", "masked", "no positions", "keeps nothing"])
def test_the_port(sizes, lengths, form):
    H, d, B, (M, K, n) = 2, 3, 2, lengths
    C, c = H * d, sizes["cmem_ratio"]
    config = {"dim": C, "seq_len": 6, "heads": H, "attn_dropout": 0.1, **sizes}
    state = drawn(
        to_q__weight=(C, C), to_kv__weight=(2 * C, C), to_out__weight=(C, C), to_out__bias=(C,),
        compress_mem_fn__conv__weight=(C, C, c), compress_mem_fn__conv__bias=(C,),
    )  # fmt: skip
    inputs = drawn(x=(B, n, C), mem=(B, M, C), cmem=(B, K, C))
    if form != "no positions":
        inputs |= drawn(pos_emb=(H, K + M + n + 2, d))
    real = torch.ones(B, n, dtype=torch.bool)
    if form == "masked":
        real[0, -2:], real[1, 0] = False, False
        inputs["input_mask"] = real
    keeps = form != "keeps nothing"
    found = run(PORT, config, state, inputs, {} if keeps else {"kwargs": {"calc_memory": False}})
    for b in range(B):
        states, past = torch.cat([inputs[name][b] for name in ("cmem", "mem", "x")]), K + M
        q, (k, v) = inputs["x"][b] @ state["to_q.weight"].T, (states @ state["to_kv.weight"].T).chunk(2, -1)
        rows = q.new_zeros(n, C)
        for h in range(H):
            own = slice(h * d, (h + 1) * d)
            for i in range(n):
                scores = k[:, own] @ q[i, own]
                if form != "no positions":
                    distance = i + past - torch.arange(past + n)
                    scores = scores + inputs["pos_emb"][h].flip(0)[distance.clamp(min=0)] @ q[i, own]
                pairs = torch.cat((torch.ones(past, dtype=torch.bool), real[b] & real[b, i]))
                seen = pairs & (torch.arange(past + n) <= i + past)
                weights = scores.div(d**0.5).masked_fill(~seen, -torch.finfo(torch.float64).max).softmax(0)
                rows[i, own] = weights @ v[:, own]
        assert_close(found["out/out"][b], rows @ state["to_out.weight"].T + state["to_out.bias"], rtol=0, atol=1e-10)
        memory, slots = inputs["mem"][b], inputs["cmem"][b]
        if n == 6 and keeps:
            states = torch.cat((memory, inputs["x"][b]))
            old, memory = states[: -sizes["mem_len"]], states[-sizes["mem_len"] :]
            old = pad(old, (0, 0, len(old) % c, 0))
            if len(old) and sizes["cmem_len"]:
                new = [
                    sum(state["compress_mem_fn.conv.weight"][:, :, t] @ old[g * c + t] for t in range(c))
                    + state["compress_mem_fn.conv.bias"]
                    for g in range(len(old) // c)
                ]
                slots = torch.cat((slots, *(slot[None] for slot in new)))[-sizes["cmem_len"] :]
        assert_close(found["out/new_mem"][b], memory, rtol=0, atol=1e-12)
        assert_close(found["out/new_cmem"][b], slots, rtol=0, atol=1e-12)
