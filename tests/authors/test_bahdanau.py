"""GroundHog's search without masks or start, and OpenNMT's attention in all its forms, restated."""

import json

import pytest
import torch
from torch.testing import assert_close

from regard.authors.replay import replay
from regard.registry import UnsupportedError

GROUNDHOG = "lisa-groundhog/GroundHog@4d2433b:experiments/nmt/encdec.py:RecurrentLayerWithSearch.step_fprop"
OPENNMT = "OpenNMT/OpenNMT-py@97111d9:onmt/modules/global_attention.py:GlobalAttention"
LENS = (7, 4, 1)


def random(*shape):
    return 0.6 * torch.randn(*shape, dtype=torch.float64)


def repeated(mechanism, source, config, state, inputs, call, main="y"):
    meta = {"mechanism": mechanism, "source": source, "config": json.dumps(config), "call": json.dumps(call)}
    tensors = {f"param/{name}": t for name, t in state.items()} | {f"in/{name}": t for name, t in inputs.items()}
    return replay(tensors, meta | {"main_output": main})


def searched(p, inputs, t, b, state):
    """One step of one sentence."""
    memory = inputs["memory"][:, b]
    energy = torch.exp((torch.tanh(memory @ p["A"] + state @ p["B"]) @ p["D"])[:, 0])
    if "memory_mask" in inputs:
        energy = energy * inputs["memory_mask"][:, b]
    probs = energy / energy.sum()
    seen = probs @ memory
    z = torch.sigmoid(inputs["x_z"][t, b] + seen @ p["C_z"] + state @ p["G"])
    r = torch.sigmoid(inputs["x_r"][t, b] + seen @ p["C_r"] + state @ p["R"])
    h = z * torch.tanh(inputs["x"][t, b] + seen @ p["C"] + (r * state) @ p["W"]) + (1 - z) * state
    if "y_mask" in inputs:
        h = torch.where(inputs["y_mask"][t, b] > 0, h, state)
    return h, seen, probs


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
def test_groundhog(masked):
    shapes = {"A": (6, 5), "B": (5, 5), "D": (5, 1), "W": (5, 5), "G": (5, 5), "R": (5, 5)}
    state = {name: random(*shape) for name, shape in shapes.items()} | {c: random(6, 5) for c in ("C", "C_r", "C_z")}
    inputs = {"memory": random(7, 3, 6), "x": random(4, 3, 5), "x_z": random(4, 3, 5), "x_r": random(4, 3, 5)}
    start = torch.zeros(3, 5, dtype=torch.float64)
    if masked:
        start = inputs["h0"] = random(3, 5)
        inputs["memory_mask"] = (torch.arange(7)[:, None] < torch.tensor(LENS)).double()
        inputs["y_mask"] = (torch.arange(4)[:, None] < torch.tensor((4, 2, 1))).double()
    found = repeated("bahdanau", GROUNDHOG, {"n_hids": 5, "c_dim": 6}, state, inputs, {}, "states")
    for b, h in enumerate(start):
        for t in range(4):
            h, seen, probs = searched(state, inputs, t, b, h)
            assert_close(found["out/states"][t, b], h, rtol=0, atol=1e-12)
            assert_close(found["out/contexts"][t, b], seen, rtol=0, atol=1e-12)
            assert_close(found["out/alignment"][t, :, b], probs, rtol=0, atol=1e-12)


def attended(p, config, query, memory):
    """One query and its real words."""
    kind = config.get("attn_type", "dot")
    if kind == "mlp":
        asks = p["linear_query.weight"] @ query + p["linear_query.bias"]
        scores = torch.tanh(asks + memory @ p["linear_context.weight"].T) @ p["v.weight"][0]
    else:
        scores = memory @ (query if kind == "dot" else p["linear_in.weight"] @ query)
    if config.get("attn_func") == "sparsemax":
        ranked = scores.sort(descending=True).values
        inside = max(k for k in range(1, len(ranked) + 1) if 1 + k * ranked[k - 1] > ranked[:k].sum())
        weights = (scores - (ranked[:inside].sum() - 1) / inside).clamp(min=0)
    else:
        weights = scores.softmax(0)
    y = p["linear_out.weight"] @ torch.cat((weights @ memory, query))
    return y + p["linear_out.bias"] if kind == "mlp" else y.tanh()


@pytest.mark.parametrize("mechanism", ["luong", "bahdanau"])
@pytest.mark.parametrize("kind", [None, "general", "mlp"])
@pytest.mark.parametrize("sparse", [False, True], ids=["softmax", "sparsemax"])
def test_opennmt(mechanism, kind, sparse):
    config = {"dim": 6} | ({"attn_type": kind} if kind else {}) | ({"attn_func": "sparsemax"} if sparse else {})
    state = {"linear_out.weight": random(6, 12)}
    if kind == "general":
        state["linear_in.weight"] = random(6, 6)
    elif kind == "mlp":
        state |= {"linear_context.weight": random(6, 6), "linear_query.weight": random(6, 6), "v.weight": random(1, 6),
                  "linear_query.bias": random(6), "linear_out.bias": random(6)}  # fmt: skip
    query, memory, lens = 2 * random(3, 4, 6), 2 * random(3, 7, 6), torch.tensor(LENS)
    call = {"args": ["query", "memory"], "kwargs": ["src_len"]}
    found = repeated(mechanism, OPENNMT, config, state, {"query": query, "memory": memory, "src_len": lens}, call)
    one = repeated(
        mechanism, OPENNMT, config, state, {"query": query[:, 0], "memory": memory}, {"args": ["query", "memory"]}
    )
    for b, count in enumerate(LENS):
        for t in range(4):
            expected = attended(state, config, query[b, t], memory[b, :count])
            assert_close(found["out/y"][b, t], expected, rtol=0, atol=1e-12)
        assert_close(one["out/y"][b], attended(state, config, query[b, 0], memory[b]), rtol=0, atol=1e-12)


def test_what_is_not_computed_is_refused():
    for source, config, message in (
        (OPENNMT, {"dim": 6, "coverage": True}, "coverage=True"),
        (OPENNMT, {"dim": 6, "attn_type": "cosine"}, "attn_type='cosine'"),
        (OPENNMT, {"dim": 6, "attn_func": "entmax"}, "attn_func='entmax'"),
        (GROUNDHOG, {"n_hids": 5, "c_dim": 6, "activation": "lambda x: TT.nnet.relu(x)"}, "only tanh"),
    ):
        with pytest.raises(UnsupportedError, match=message):
            repeated("bahdanau", source, config, {}, {}, {})
