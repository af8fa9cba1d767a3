"""The importer of the paper's equations in configurations that no fixture has."""

import json

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.authors.replay import replay
from regard.registry import UnsupportedError


def header(config, *args):
    call = {"args": args}
    return {"mechanism": "coda", "source": "equations", "config": json.dumps(config), "call": json.dumps(call)}


def gates(distances, config):
    if config.get("center_N"):
        distances = distances - distances.mean((-2, -1), keepdim=True)
    return torch.sigmoid(distances) * (2 if config.get("scale2") else 1)


@pytest.mark.parametrize(
    "config",
    [
        {"center_E": True, "center_N": True, "scale2": False, "shared_F": False, "alpha": 0.5, "beta": 2.0},
        {"center_E": False, "center_N": False, "scale2": True, "shared_F": True, "alpha": 1.0, "beta": 0.3},
        {"center_E": True, "center_N": False, "scale2": False, "shared_F": False, "alpha": 2.0, "beta": 1.0},
    ],
)
def test_alignments(config):
    torch.manual_seed(0)
    config = {"d": 4, "k": 6, **config}
    names = ("F_E",) if config["shared_F"] else ("F_E", "F_N")
    tensors = {f"param/{name}.weight": torch.randn(6, 4) for name in names}
    tensors |= {f"param/{name}.bias": torch.randn(6) for name in names}
    a, b, cotangent = torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(2, 3, 4)
    found = replay(tensors | {"in/a": a, "in/b": b, "in/cotangent": cotangent}, header(config, "a", "b"))

    def mapped(x, name):
        return x @ tensors[f"param/{name}.weight"].T + tensors[f"param/{name}.bias"]

    similar = config["alpha"] * mapped(a, "F_E") @ mapped(b, "F_E").mT
    if config["center_E"]:
        similar = similar - similar.mean((-2, -1), keepdim=True)
    differences = mapped(a, names[-1])[:, :, None] - mapped(b, names[-1])[:, None]
    weights = similar.tanh() * gates(-config["beta"] * differences.abs().sum(-1), config)
    assert_close(found["out/M"], weights)
    assert_close(found["out/out"], weights @ b)
    assert_close(found["out/b_new"], weights.mT @ a)
    assert {f"grad/{name}" for name in ("a", "b")} < set(found)


@pytest.mark.parametrize("scale2", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_heads(scale2, center):
    torch.manual_seed(0)
    config = {"dim": 6, "heads": 2, "scale2": scale2, "center_N": center, "causal": not center}
    tensors = {f"param/{name}.weight": torch.randn(6, 6) for name in "qkvo"}
    tensors |= {f"param/{name}.bias": torch.randn(6) for name in "qkvo"}
    x = torch.randn(2, 5, 6)
    if center and scale2:
        with pytest.raises(UnsupportedError, match="not both"):
            replay(tensors | {"in/query": x}, header(config, "query"))
        return
    found = replay(tensors | {"in/query": x}, header(config, "query"))
    weight = {name.removeprefix("param/"): t for name, t in tensors.items()}
    q, k, v = ((x @ weight[f"{n}.weight"].T + weight[f"{n}.bias"]).unflatten(-1, (2, 3)).transpose(1, 2) for n in "qkv")
    distances = (q[..., :, None, :] - k[..., None, :, :]).abs().sum(-1) / 3**0.5
    weights = (q @ k.mT / 3**0.5).tanh() * gates(-distances, config)
    weights = weights if center else weights.tril()
    assert_close(found["out/weights"], weights)
    joined = (weights @ v).transpose(1, 2).flatten(2)
    assert_close(found["out/out"], joined @ weight["o.weight"].T + weight["o.bias"], rtol=1e-5, atol=1e-5)


def test_refusals():
    with pytest.raises(UnsupportedError, match="only with heads"):
        regard.authors.load("coda", "equations", {"d": 4, "k": 4, "causal": True}, {})
    with pytest.raises(UnsupportedError, match="has seen the future"):
        regard.authors.load("coda", "equations", {"dim": 4, "heads": 2, "causal": True, "center_N": True}, {})
