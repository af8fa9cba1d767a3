"""Longformer's importers against loops: both window conventions, global tokens, dilation, causality, thinned ends."""

import json

import pytest
import torch
from torch.testing import assert_close

from regard.authors.replay import replay

AUTHORS = "allenai/longformer@caefee6:longformer/longformer.py:LongformerSelfAttention"
PORT = (
    "huggingface/transformers@v5.23.0:src/transformers/models/longformer/modeling_longformer.py:LongformerSelfAttention"
)


def weights(dim):
    names = [a + b for b in ("", "_global") for a in ("query", "key", "value")]
    shapes = (("weight", (dim, dim)), ("bias", (dim,)))
    return {f"{n}.{kind}": torch.randn(*shape, dtype=torch.float64) * 0.5 for n in names for kind, shape in shapes}


def loop(state, x, states, heads, sees, thinned=lambda i: 0):
    """Every row for itself; ``sees(i, h)`` lists the window, ``thinned(i)`` counts slots of score 0 and value 0."""
    out, width = torch.zeros_like(x), x.shape[-1] // heads

    def project(name, b):
        return (x[b] @ state[f"{name}.weight"].T + state[f"{name}.bias"]).unflatten(-1, (heads, width))

    for b in range(len(x)):
        q, k, v, qg, kg, vg = (project(a + g, b) for g in ("", "_global") for a in ("query", "key", "value"))
        marked = [j for j in range(x.shape[1]) if states[b, j] > 0]
        for i in range(x.shape[1]):
            for h in range(heads):
                if states[b, i] > 0:
                    keys = [j for j in range(x.shape[1]) if states[b, j] >= 0]
                    row = (torch.stack([qg[i, h] @ kg[j, h] for j in keys]) / width**0.5).softmax(0)
                    out[b, i, h * width : (h + 1) * width] = sum(w * vg[j, h] for w, j in zip(row, keys, strict=True))
                elif states[b, i] == 0:
                    keys = marked + [j for j in sees(i, h) if states[b, j] == 0]
                    scores = torch.stack([q[i, h] @ k[j, h] for j in keys]) / width**0.5
                    row = torch.cat([scores, scores.new_zeros(thinned(i))]).softmax(0)
                    out[b, i, h * width : (h + 1) * width] = sum(w * v[j, h] for w, j in zip(row, keys, strict=False))
    return out


def run(source, config, state, tensors):
    meta = {"mechanism": "longformer", "source": source, "config": json.dumps(config), "main_output": "out/out"}
    return replay({f"param/{k}": t for k, t in state.items()} | {f"in/{k}": t for k, t in tensors.items()}, meta)


def token_states(n, with_globals):
    states = torch.zeros(2, n, dtype=torch.long)
    states[1, n - 3 :] = -1
    if with_globals:
        states[0, [0, 7]], states[1, 2] = 1, 1
    return states


@pytest.mark.parametrize("with_globals", [False, True])
@pytest.mark.parametrize("w", [1, 2, 3, 6])
@pytest.mark.parametrize("source", [AUTHORS, PORT])
def test_windows_and_global_tokens(source, w, with_globals):
    state, x, states = weights(8), torch.randn(2, 12, 8, dtype=torch.float64), token_states(12, with_globals)
    config = {"hidden": 8, "heads": 2, "window": w, "mode": "sliding_chunks"}
    if source == PORT:
        config = {"hidden_size": 8, "num_attention_heads": 2, "attention_window": [2 * w]}
    found = run(source, config, state, {"hidden_states": x, "attention_mask": states})
    expected = loop(state, x, states, 2, lambda i, h: range(max(0, i - w), min(12, i + w + 1)))
    assert_close(found["out/out"], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("with_globals", [False, True])
@pytest.mark.parametrize("w", [1, 2, 4, 12])
def test_blocks_without_overlap_thin_out_both_ends(w, with_globals):
    state, x, states = weights(8), torch.randn(2, 12, 8, dtype=torch.float64), token_states(12, with_globals)
    config = {"hidden": 8, "heads": 2, "window": w, "mode": "sliding_chunks_no_overlap"}
    found = run(AUTHORS, config, state, {"hidden_states": x, "attention_mask": states})

    def sees(i, h):
        return [j for j in range(12) if abs(i // w - j // w) <= 1]

    def thinned(i):
        return (i if i < w else 0) + (w - 1 - i % w if i >= 12 - w else 0)

    assert_close(found["out/out"], loop(state, x, states, 2, sees, thinned), rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dilation", [1, 2, [1, 3]])
def test_dilation_and_the_papers_causal_variant(dilation, causal):
    w, n = 2, 16
    reach = [dilation] * 2 if isinstance(dilation, int) else dilation

    def sees(i, h):
        offsets = range(-w, 1 if causal else w + 1)
        return [i + reach[h] * o for o in offsets if 0 <= i + reach[h] * o < n]

    state, x, states = weights(8), torch.randn(2, n, 8, dtype=torch.float64), torch.zeros(2, n, dtype=torch.long)
    kept = {k: t for k, t in state.items() if "_global" not in k or dilation == 1} if causal else state
    config = {"hidden": 8, "heads": 2, "window": w, "mode": "tvm", "dilation": dilation, "autoregressive": causal}
    found = run(AUTHORS, config, kept, {"hidden_states": x})
    assert_close(found["out/out"], loop(state, x, states, 2, sees), rtol=0, atol=1e-12)

    q, k, v = (torch.randn(2, n, 2, 4, dtype=torch.float64) for _ in range(3))
    kernel = "allenai/longformer@caefee6:longformer/diagonaled_mm_tvm.py:diagonaled_mm"
    config = {"window": w, "dilation": dilation, "autoregressive": causal}
    found = run(kernel, config, {}, {"q": q, "k": k, "v": v})["out/out"]
    turned = {name: t.transpose(1, 2) for name, t in (("q", q), ("k", k), ("v", v))}
    heads_first = run("equations", {**config, "heads": 2}, {}, turned)
    assert_close(heads_first["out/out"], found.transpose(1, 2), rtol=0, atol=0)
    for i, h in [(0, 0), (5, 1), (15, 0), (15, 1)]:
        keys = sees(i, h)
        row = (k[0, keys, h] @ q[0, i, h] / 2).softmax(0)
        assert_close(found[0, i, h], row @ v[0, keys, h], rtol=0, atol=1e-12)
