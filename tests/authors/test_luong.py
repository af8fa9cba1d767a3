"""Layers and decoders of nmt.matlab for other options, against loops over steps and words."""

import json
import math

import pytest
import torch
from torch.testing import assert_close

from regard.authors.replay import replay
from regard.registry import UnsupportedError

SOURCE = "lmthang/nmt.matlab@32f8564e39d4a3d30fa57038e44f4a3dbdc2068c:code/layers/attnLayerForward.m"
LENS = (8, 5, 2)


def random(*shape):
    return 0.6 * torch.randn(*shape, dtype=torch.float64)


def restated(state, config, h, memory, count, t):
    """Weights, y and mu of one state."""
    mu = None
    words = list(range(count))
    if config["attnFunc"] == "local-m":
        mu = min(t, count - 1)
    elif config["attnFunc"] == "local-p":
        mu = count / (1 + math.exp(-float(state["v_pos"] @ torch.tanh(state["W_pos"] @ h))))
    if mu is not None:
        words = [j for j in words if abs(j - math.floor(mu)) <= config["posWin"]]
    if config["attnOpt"] == "concat":
        scores = [state["v_a"] @ torch.tanh(memory[j] + state["W_a"] @ h) for j in words]
    else:
        asks = h if config["attnOpt"] == "dot" else state["W_a"] @ h
        scores = [(asks @ memory[j])[None] for j in words]
    scores = torch.cat(scores)
    if config["attnFunc"] == "local-p":
        fading = torch.tensor([math.exp(-0.5 * ((j - mu) / config["sigma"]) ** 2) for j in words], dtype=scores.dtype)
        shares = (scores * fading).softmax(0) if config["normLocalAttn"] else scores.softmax(0) * fading
    else:
        shares = scores.softmax(0)
    weights = torch.zeros(len(memory), dtype=scores.dtype)
    weights[words] = shares
    return weights, torch.tanh(state["W_h"] @ torch.cat((weights @ memory, h)))


def unit(matrix, x, h, c):
    i, f, o, a = (matrix @ torch.cat((x, h))).chunk(4)
    c = f.sigmoid() * c + i.sigmoid() * a.tanh()
    return o.sigmoid() * c.tanh(), c


def decoded(state, config, inputs, memory, count):
    """All steps of one sentence: states or words come in."""
    layers = sorted(name for name in state if name.startswith("W_tgt"))
    hidden, cells = ([torch.zeros(6, dtype=torch.float64) for _ in layers] for _ in range(2))
    y, rows = torch.zeros(6, dtype=torch.float64), []
    for t, x in enumerate(inputs):
        h = torch.cat((x, y)) if config["feedInput"] else x
        for layer, name in enumerate(layers):
            h, cells[layer] = unit(state[name], h, hidden[layer], cells[layer])
            hidden[layer] = h
        weights, y = restated(state, config, h, memory, count, t)
        rows.append((weights, y))
    return torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])


def state_of(config):
    state = {"W_h": random(6, 12)}
    if config["attnOpt"] != "dot":
        state["W_a"] = random(6, 6)
    if config["attnOpt"] == "concat":
        state["v_a"] = random(1, 6)
    if config["attnFunc"] == "local-p":
        state |= {"W_pos": random(6, 6), "v_pos": random(1, 6)}
    for layer in range(config["lstm_layers"]):
        width = 12 if layer == 0 and config["feedInput"] else 6
        state[f"W_tgt{layer + 1}"] = random(24, width + 6)
    return state


@pytest.mark.parametrize(
    ("function", "option", "layers", "feeds", "normal"),
    [
        ("global", "dot", 0, 0, 0),
        ("global", "concat", 0, 0, 0),
        ("local-m", "general", 0, 0, 0),
        ("local-p", "dot", 0, 0, 1),
        ("local-p", "concat", 0, 0, 0),
        ("global", "general", 2, 1, 0),
        ("global", "dot", 2, 0, 0),
        ("local-p", "general", 1, 1, 0),
        ("local-m", "dot", 1, 1, 0),
    ],
)
def test_layers_and_decoders(function, option, layers, feeds, normal):
    config = {"attnFunc": function, "attnOpt": option, "posWin": 2, "sigma": 0.7, "normLocalAttn": normal}
    config |= {"lstm_layers": layers, "feedInput": feeds, "dim": 6}
    state, memory, x = state_of(config), random(3, 8, 6), random(3, 4, 6)
    name = "emb" if layers else "query"
    tensors = {f"param/{key}": t for key, t in state.items()}
    tensors |= {"in/memory": memory, f"in/{name}": x, "in/lens": torch.tensor(LENS), "in/cotangent": random(3, 4, 6)}
    call = {"args": ["memory", "query or emb", "lens"]}
    meta = {"mechanism": "luong", "source": SOURCE, "config": json.dumps(config), "call": json.dumps(call)}
    found = replay(tensors, meta | {"main_output": "out/attentional"})
    for b, count in enumerate(LENS):
        weights, y = decoded(state, config, x[b], memory[b], count)
        assert_close(found["out/weights"][b], weights, rtol=0, atol=1e-12)
        assert_close(found["out/attentional"][b], y, rtol=0, atol=1e-12)
    assert {f"grad/{key}" for key in state} <= found.keys()
    assert all(found[f"grad/{key}"].abs().max() > 0 for key in state)


def test_what_the_released_code_cannot_do_is_refused():
    usual = {"attnFunc": "global", "attnOpt": "general", "dim": 6}
    for change, message in (
        ({"attnFunc": "location"}, "attnFunc='location'"),
        ({"attnOpt": "location"}, "attnOpt='location'"),
        ({"feedInput": 1}, "feedInput=1"),
        ({"lstm_layers": 1, "lstmOpt": 1}, "lstmOpt=1"),
    ):
        meta = {"mechanism": "luong", "source": SOURCE, "config": json.dumps(usual | change), "call": "{}"}
        with pytest.raises(UnsupportedError, match=message):
            replay({"param/W_a": random(6, 6), "param/W_h": random(6, 12)}, meta)
