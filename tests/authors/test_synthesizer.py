"""The other classes and configurations of both sources, restated."""

import json

import pytest
import torch
from torch.testing import assert_close

from regard.authors.replay import replay
from regard.registry import UnsupportedError

FILE = "leaderj1001/Synthesizer-Rethinking-Self-Attention-Transformer-Models@3ee5829:synthesizer.py"


def run(source, config, x, state, call=None):
    tensors = {"in/x": x} | {f"param/{name}": t for name, t in state.items()}
    meta = {"mechanism": "synthesizer", "source": source, "config": json.dumps(config)}
    return replay(tensors, meta | {"call": json.dumps({"forward": call or "x"})})


def draw(**shapes):
    return {name.replace("__", "."): torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


def linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


@pytest.mark.parametrize("kind", ["Transformer", "FactorizedSynthesizerDense", "FactorizedSynthesizerRandom"])
def test_single_heads_without_a_recorded_case(kind):
    x = torch.randn(2, 12, 5, dtype=torch.float64)
    state = draw(value_fc__weight=(5, 5), value_fc__bias=(5,))
    config = {"in_dims": 5}
    if kind == "FactorizedSynthesizerDense":
        state |= draw(a_proj__weight=(4, 5), a_proj__bias=(4,), b_proj__weight=(3, 5), b_proj__bias=(3,))
        config["sentence_length"] = 12
        a, b = linear(state, "a_proj", x), linear(state, "b_proj", x)
        logits = torch.stack([a[..., j % 4] * b[..., j % 3] for j in range(12)], -1)
    else:
        width, scale = (5, 5**-0.5) if kind == "Transformer" else (8, 1.0)
        for name in ("query_fc", "key_fc"):
            state |= {f"{name}.weight": torch.randn(width, 5).double(), f"{name}.bias": torch.randn(width).double()}
        logits = scale * linear(state, "query_fc", x) @ linear(state, "key_fc", x).mT
    found = run(f"{FILE}:{kind}", config, x, state)
    assert_close(found["out/attention"], logits.softmax(-1), rtol=0, atol=1e-12)
    assert_close(found["out/out"], logits.softmax(-1) @ linear(state, "value_fc", x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("parts", [["factorized_random"], ["vanilla", "factorized_random"], ["dense", "dot"]], ids=str)
def test_equations_with_other_parts(parts, causal):
    C, H, d, L, n = 6, 2, 3, 9, 7
    x = torch.randn(2, n, C, dtype=torch.float64)
    s = draw(wv=(H, d, C), wo=(C, H * d), mix=(len(parts),))
    logits = []
    for part in parts:
        if part == "dense":
            s |= draw(w1=(H, d, C), b1=(H, d), w2=(H, L, d), b2=(H, L))
            hidden = (torch.einsum("bnc,hdc->bhnd", x, s["w1"]) + s["b1"][:, None]).relu()
            logits.append(torch.einsum("bhnd,hld->bhnl", hidden, s["w2"])[..., :n] + s["b2"][:, None, :n])
        elif part == "factorized_random":
            s |= draw(R1=(H, L, 4), R2=(H, L, 4))
            logits.append((s["R1"][:, :n] @ s["R2"][:, :n].mT).expand(2, -1, -1, -1))
        else:
            s |= draw(wq=(H, d, C), wk=(H, d, C))
            q, k = (torch.einsum("bnc,hdc->bhnd", x, s[name]) for name in ("wq", "wk"))
            logits.append(q @ k.mT / d**0.5)
    total = sum(share * part for share, part in zip(s["mix"].softmax(0), logits, strict=True))
    if causal:
        total = total.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf)
    out = (total.softmax(-1) @ torch.einsum("bnc,hdc->bhnd", x, s["wv"])).transpose(1, 2).flatten(2) @ s["wo"].T
    config = {"C": C, "H": H, "d": d, "Lmax": L, "parts": parts, "k": 4}
    found = run("equations", config, x, s, f"x, causal={causal}")
    assert_close(found["out/out"], out, rtol=0, atol=1e-12)
    assert_close(found["out/attention"], total.softmax(-1), rtol=0, atol=1e-12)


def test_parts_of_an_unknown_layout_are_refused():
    config = {"C": 6, "H": 2, "d": 3, "Lmax": 9, "parts": ["factorized_dense"]}
    with pytest.raises(UnsupportedError, match="factorized_dense"):
        run("equations", config, torch.randn(1, 4, 6), {})
