"""trax's LSH attention and the port in transformers against loops, in configurations beyond the recorded case."""

import json
import math

import pytest
import torch
from torch.testing import assert_close

from regard.authors import load
from regard.authors.replay import replay

TRAX = "google/trax@7c189c2:trax/layers/research/efficient_attention.py:LSHSelfAttention"
PORT = "pypi transformers==5.23.0:models/reformer/modeling_reformer.py:LSHSelfAttention"


def hashed(q, table, factors):
    """(R, N) of one head: q (N, d), table (d, R, sum of factors / 2)."""
    turned = torch.einsum("nd,drc->rnc", q, table)
    number, step, column = 0, 1, 0
    for factor in factors:
        part = turned[..., column : column + factor // 2]
        number = number + step * torch.cat((part, -part), -1).argmax(-1)
        step, column = step * factor, column + factor // 2
    return number, step


def one_head(q, v, buckets, real, L, before, after, causal):
    """Theirs, on N rows: sort all rounds together, chunk, look around with wrap-around, subtract, undo, combine."""
    rounds, n = buckets.shape
    k = q / (q.square().mean(-1, keepdim=True) + 1e-6).sqrt() / q.shape[-1] ** 0.5
    place = torch.arange(rounds * n)
    order = (buckets.flatten() * n + place % n).argsort()
    token = (order % n).view(-1, L)
    out, lse = q.new_zeros(rounds * n, v.shape[-1]), q.new_zeros(rounds * n)
    for chunk in range(len(token)):
        seen = torch.cat([token[(chunk + o) % len(token)] for o in range(-before, after + 1)])
        i = token[chunk]
        scores = q[i] @ k[seen].T
        scores = scores - 1e9 * (i[:, None] < seen) * causal - 1e5 * (i[:, None] == seen) - 1e9 * ~real[seen]
        where = order.view(-1, L)[chunk]
        out[where], lse[where] = scores.softmax(-1) @ v[seen], scores.logsumexp(-1)
    return (lse.view(rounds, n).softmax(0)[..., None] * out.view(rounds, n, -1)).sum(0)


def run(source, config, state, tensors):
    meta = {"mechanism": "reformer", "source": source, "config": json.dumps(config), "main_output": "out/out"}
    return replay({f"param/{k}": t for k, t in state.items()} | {f"in/{k}": t for k, t in tensors.items()}, meta)


def trax_factors(config, n):
    factors = config.get("n_buckets")
    if factors is None:
        count = 2 * max(1, n // config["chunk_len"])
        power = 2 ** math.ceil(math.log2(math.sqrt(count)))
        factors = count if count <= 128 else [power, 2 * (count // (2 * power))]
    return [factors] if isinstance(factors, int) else factors


@pytest.mark.parametrize("recorded", [False, True], ids=["rotations", "buckets"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        {"causal": False, "chunk_len": 8, "n_hashes": 1},
        {"causal": True, "chunk_len": 4, "n_hashes": 3, "n_buckets": [2, 4]},
        {"causal": False, "chunk_len": 4, "n_chunks_before": 1, "n_chunks_after": 1, "n_hashes": 2, "n_buckets": 8},
        {"causal": True, "chunk_len": 24, "n_chunks_before": 0, "n_hashes": 2, "n_buckets": 2},
        {"causal": False, "chunk_len": 12, "n_chunks_before": 1, "n_chunks_after": 1, "n_hashes": 1},
        {"causal": True, "chunk_len": 1, "n_chunks_before": 3, "n_hashes": 1},
    ],
)
def test_trax(config, masked, recorded):
    length = 160 if config["chunk_len"] == 1 else 24
    config = {"n_heads": 2, "d_qk": 5, "d_v": 3, "masked": masked, "mode": "eval", **config}
    factors, rounds = trax_factors(config, length), config["n_hashes"]
    sizes = {"w_q": (2, 6, 5), "w_v": (2, 6, 3), "w_o": (2, 3, 6)}
    state = {name: torch.randn(size, dtype=torch.float64) for name, size in sizes.items()}
    x = torch.randn(2, length, 6, dtype=torch.float64)
    table = torch.randn(2, 2, 5, rounds, sum(factors) // 2, dtype=torch.float64)
    real = torch.arange(length) < torch.tensor([[length], [length - 3]]) if masked else x[..., 0] < torch.inf
    buckets, expected = torch.zeros(2, 2, rounds, length, dtype=torch.long), 0
    for b in range(2):
        rows = []
        for h in range(2):
            q, v = x[b] @ state["w_q"][h], x[b] @ state["w_v"][h]
            own, count = hashed(q, table[b, h], factors)
            own = own.where(real[b], count) + (count + masked) * torch.arange(rounds)[:, None]
            buckets[b, h] = own
            sight = (config["chunk_len"], config.get("n_chunks_before", 1), config.get("n_chunks_after", 0))
            rows.append(one_head(q, v, own, real[b], *sight, config["causal"]) @ state["w_o"][h])
        expected = expected + torch.nn.functional.one_hot(torch.tensor(b), 2)[:, None, None] * sum(rows)
    tensors = (
        {"x": x, "rotations": table} | ({"mask": real} if masked else {}) | ({"buckets": buckets} if recorded else {})
    )
    found = run(TRAX, config, state, tensors)["out/out"]
    seen = real | torch.tensor(
        config.get("n_chunks_before", 1) > 0
    )  # padding alone in its chunk gives 0, not an average
    assert_close(found[seen], expected[seen], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "config",
    [
        {"is_decoder": True, "num_hashes": 2, "num_buckets": 4, "lsh_attn_chunk_length": 8},
        {
            "is_decoder": False,
            "num_hashes": 1,
            "num_buckets": [2, 4],
            "lsh_num_chunks_after": 1,
            "lsh_attn_chunk_length": 4,
        },
        {
            "is_decoder": True,
            "num_hashes": 3,
            "num_buckets": None,
            "lsh_attn_chunk_length": 2,
            "max_position_embeddings": 32,
        },
        {"is_decoder": True, "num_hashes": 1, "num_buckets": None, "lsh_attn_chunk_length": 24},
    ],
)
def test_the_port(config):
    config = {"hidden_size": 6, "num_attention_heads": 2, "attention_head_size": 5, **config}
    chunk, rounds, factors = config["lsh_attn_chunk_length"], config["num_hashes"], config["num_buckets"]
    if factors is None:
        factors = {2: [4, 4], 24: 2}[chunk]
    factors = [factors] if isinstance(factors, int) else factors
    state = {f"{name}.weight": torch.randn(10, 6, dtype=torch.float64) for name in ("query_key", "value")}
    x = torch.randn(2, 24, 6, dtype=torch.float64)
    table = torch.randn(2, 5, rounds, sum(factors) // 2, dtype=torch.float64)
    out = torch.zeros(2, 24, 10, dtype=torch.float64)
    for b in range(2):
        for h in range(2):
            rows = slice(5 * h, 5 * h + 5)
            q, v = x[b] @ state["query_key.weight"][rows].T, x[b] @ state["value.weight"][rows].T
            own, count = hashed(q, table[h], factors)
            own = own + count * torch.arange(rounds)[:, None]
            sight = (chunk, 1, config.get("lsh_num_chunks_after", 0))
            out[b, :, rows] = one_head(q, v, own, torch.ones(24, dtype=torch.bool), *sight, config["is_decoder"])
    found = run(PORT, config, state, {"hidden_states": x, "rotations": table})["out/out"]
    assert_close(found, out, rtol=0, atol=1e-10)


def test_a_loaded_layer_is_one_of_ours():
    state = {"w_q": torch.randn(2, 6, 5), "w_v": torch.randn(2, 6, 3), "w_o": torch.randn(2, 3, 6)}
    layer = load("reformer", TRAX, {"n_heads": 2, "d_qk": 5, "d_v": 3, "chunk_len": 4, "causal": True}, state).eval()
    x = torch.randn(2, 11, 6)
    assert layer(x).shape == x.shape
    assert_close(layer(x[:, :3]), layer(x[:, :3]))
