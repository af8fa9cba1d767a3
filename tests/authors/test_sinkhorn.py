"""Other configurations of lucidrains' causal class, restated block by block, and what is not loaded."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors.replay import replay
from regard.registry import UnsupportedError

SOURCE = "lucidrains/sinkhorn-transformer@531bdbe:sinkhorn_transformer/sinkhorn_transformer.py:SinkhornCausalAttention"
CONFIG = {"bucket_size": 4, "dim": 12, "dim_heads": 3, "heads": 4, "max_seq_len": 24}


def run(config, q, k, v, state, **masks):
    tensors = {f"in/{name}": t for name, t in ({"q": q, "k": k, "v": v} | masks).items()}
    tensors |= {f"param/{name}": t for name, t in state.items()}
    meta = {
        "mechanism": "sinkhorn",
        "source": SOURCE,
        "config": json.dumps(config),
        "call": '{"args": ["q", "k", "v"]}',
    }
    return replay(tensors, meta)["out/out"]


def one_head(q, k, v, null_k, null_v, table, length, picks, temperature):
    """(N, D) each; the picks of a block, one after the other, then its own tokens up to the one that asks."""
    out, blocks, steps = torch.zeros_like(v), len(q) // length, torch.arange(1, len(q) + 1)[:, None]
    mean_q, mean_k = q.cumsum(0) / steps, k.cumsum(0) / steps
    for i in range(blocks):
        at = slice(i * length, (i + 1) * length)
        if table is None:
            past = [mean_k[j * length : (j + 1) * length].sum(0) for j in range(i)]
            scores = [torch.zeros((), dtype=q.dtype)] * picks + [
                mean_q[i * length] @ t / q.shape[1] ** 0.5 for t in past
            ]
        else:
            scores = list(F.leaky_relu(torch.cat((mean_k[i * length], k[i * length])) @ table))[: picks + i]
        left, keys, values = torch.stack(scores), [], []
        for _ in range(picks):
            weights = (left / temperature).softmax(0)
            best = int(weights.argmax())
            block = slice((best - picks) * length, (best - picks + 1) * length)
            keys.append(weights[best] * (null_k.expand(length, -1) if best < picks else k[block]))
            values.append(weights[best] * (null_v.expand(length, -1) if best < picks else v[block]))
            left = left.clone()
            left[best] = -torch.inf
        for r in range(length):
            own = slice(i * length, i * length + r + 1)
            scores = torch.cat((*keys, k[own])) @ q[i * length + r] / q.shape[1] ** 0.5
            out[at][r] = scores.softmax(0) @ torch.cat((*values, v[own]))
    return out


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize(("picks", "temperature", "n"), [(1, 1.0, 24), (2, 0.5, 16), (3, 2.0, 20)])
def test_other_configurations(table, picks, temperature, n):
    """The first half of the heads; the turned half is the same on a turned sequence but for its last block."""
    q, k, v = torch.randn(3, 2, 4, n, 3, dtype=torch.float64)
    state = {name: torch.randn(4, 1, 3, dtype=torch.float64) for name in ("null_keys", "null_values")}
    if table:
        state["sort_net.linear"] = torch.randn(1, 4, 6, 6 + picks, dtype=torch.float64)
    config = CONFIG | {"n_top_buckets": picks, "temperature": temperature, "use_simple_sort_net": table}
    found = run(config, q, k, v, state)
    for h in range(4):
        turn = 3 if h >= 2 else 0
        rows = (t[1, h].roll(-turn, 0) for t in (q, k, v))
        own = None if not table else state["sort_net.linear"][0, h]
        expected = one_head(*rows, state["null_keys"][h], state["null_values"][h], own, 4, picks, temperature)
        expected = expected.roll(turn, 0)
        # of a turned head: its last block is the last token and then the first ones, which saw nothing but each other
        whole = slice(turn, n)
        assert_close(found[1, h, whole], expected[whole], rtol=0, atol=1e-12)
        for t in range(turn):
            scores = k[1, h, : t + 1] @ q[1, h, t] / 3**0.5
            assert_close(found[1, h, t], scores.softmax(0) @ v[1, h, : t + 1], rtol=0, atol=1e-12)


def test_what_is_not_loaded():
    q = torch.randn(1, 4, 8, 3)
    state = {name: torch.randn(4, 1, 3) for name in ("null_keys", "null_values")}
    with pytest.raises(UnsupportedError, match="kv_bucket_size=2"):
        run(CONFIG | {"kv_bucket_size": 2}, q, q, q, state)
    with pytest.raises(UnsupportedError, match="two picks only"):
        run(CONFIG, q, q, q, state, q_mask=torch.ones(1, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="no multiple of bucket_size=4"):
        run(CONFIG, q[:, :, :7], q[:, :, :7], q[:, :, :7], state)
