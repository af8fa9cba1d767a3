"""The compact modules of DRANet, and other widths of DANet's, restated on their own weights."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors.replay import replay

SOURCE = "junfu1115/DANet@b0a0fa0:encoding/nn/{}"


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64) * 0.5


def run(source, config, state, inputs, args):
    meta = {"mechanism": "dual_attention", "source": SOURCE.format(source), "config": json.dumps(config)}
    meta["call"] = json.dumps({"args": args})
    kinds = {name: "buffer" if "running" in name or "num_batches" in name else "param" for name in state}
    tensors = {f"{kinds[name]}/{name}": t for name, t in state.items()} | {f"in/{n}": t for n, t in inputs.items()}
    return replay(tensors, meta)["out/out"]


@pytest.mark.parametrize("dim", [8, 17])
def test_position(dim):
    inner = dim // 8
    state = {f"{n}_conv.weight": random(w, dim, 1, 1) for n, w in (("query", inner), ("key", inner), ("value", dim))}
    state |= {f"{n}_conv.bias": random(w) for n, w in (("query", inner), ("key", inner), ("value", dim))}
    state["gamma"] = random(1)
    x = random(2, dim, 3, 4)
    q, k, v = (F.conv2d(x, state[f"{n}_conv.weight"], state[f"{n}_conv.bias"]) for n in ("query", "key", "value"))
    weights = (q.flatten(2).mT @ k.flatten(2)).softmax(-1)
    expected = state["gamma"] * (v.flatten(2) @ weights.mT).view_as(x) + x
    assert_close(run("da_att.py:PAM_Module", {"in_dim": dim}, state, {"x": x}, ["x"]), expected, rtol=0, atol=1e-10)


def channels(x, y, gamma):
    energy = x.flatten(2) @ y.flatten(2).mT
    weights = (energy.amax(-1, keepdim=True) - energy).softmax(-1)
    return gamma * (weights @ y.flatten(2)).view_as(x) + x


def test_channel():
    x, state = random(2, 5, 3, 4), {"gamma": random(1)}
    found = run("da_att.py:CAM_Module", {"in_dim": 5}, state, {"x": x}, ["x"])
    assert_close(found, channels(x, x, state["gamma"]), rtol=0, atol=1e-10)


def test_channels_of_another_map():
    x, y, state = random(2, 5, 3, 4), random(2, 2, 3, 4), {"scale": random(1)}
    found = run("dran_att.py:CCAMDec", {}, state, {"x": x, "y": y}, ["x", "y"])
    assert_close(found, channels(x, y, state["scale"]), rtol=0, atol=1e-10)


def test_centres():
    x, state, expected = random(2, 4, 7, 8), {}, []
    for index, parts in enumerate((1, 2, 3, 6), 1):
        weight = state[f"conv{index}.0.weight"] = random(4, 4, 1, 1)
        norm = {"weight": random(4), "bias": random(4), "running_mean": random(4), "running_var": random(4) ** 2 + 0.5}
        state |= {f"conv{index}.1.{name}": t for name, t in norm.items()}
        state[f"conv{index}.1.num_batches_tracked"] = torch.tensor(1)
        y = F.conv2d(F.adaptive_avg_pool2d(x, parts), weight)
        stats = (norm["running_mean"], norm["running_var"], norm["weight"], norm["bias"])
        expected.append(F.batch_norm(y, *stats).relu().flatten(2))
    config = {"in_channels": 4}
    assert_close(run("dran_att.py:CPAMEnc", config, state, {"x": x}, ["x"]), torch.cat(expected, 2), rtol=0, atol=1e-10)


def test_positions_look_at_centres():
    x, y = random(2, 8, 3, 4), random(2, 5, 8)
    state = {"scale": random(1), "conv_query.weight": random(2, 8, 1, 1), "conv_query.bias": random(2)}
    state |= {"conv_key.weight": random(2, 8), "conv_key.bias": random(2)}
    state |= {"conv_value.weight": random(8, 8), "conv_value.bias": random(8)}
    q = F.conv2d(x, state["conv_query.weight"], state["conv_query.bias"]).flatten(2).mT
    k, v = (F.linear(y, state[f"conv_{n}.weight"], state[f"conv_{n}.bias"]) for n in ("key", "value"))
    expected = state["scale"] * ((q @ k.mT).softmax(-1) @ v).mT.view_as(x) + x
    found = run("dran_att.py:CPAMDec", {"in_channels": 8}, state, {"x": x, "y": y}, ["x", "y"])
    assert_close(found, expected, rtol=0, atol=1e-10)
