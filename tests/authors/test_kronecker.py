"""Other configurations of the port, and maps of other kinds for the equations."""

import json

import pytest
import torch
from torch.testing import assert_close

from regard.authors import load
from regard.authors.replay import replay
from regard.mechanisms.lowrank.kronecker import kronecker_attention
from regard.registry import UnsupportedError

PORT = "lucidrains/kronecker-attention-pytorch@38c1efe:kronecker_attention_pytorch/x.py:KroneckerSelfAttention"


@pytest.mark.parametrize("config", [{"dim": 6, "heads": 3}, {"dim": 4, "heads": 1, "dim_heads": 5}])
def test_the_port(config):
    width, dim = config["heads"] * config.get("dim_heads", 32), config["dim"]
    state = {"to_qkv.weight": torch.randn(3 * width, dim, 1), "to_out.weight": torch.randn(dim, width, 1)}
    state["to_out.bias"] = torch.randn(dim)
    x = torch.randn(2, dim, 3, 7)
    tokens = torch.cat((x.mean(-1), x.mean(-2)), -1)
    q, k, v = (state["to_qkv.weight"].squeeze(-1) @ tokens).unflatten(1, (3, config["heads"], -1)).unbind(1)
    out = (v @ (q.mT @ k).softmax(-1).mT).flatten(1, 2)
    out = state["to_out.weight"].squeeze(-1) @ out + state["to_out.bias"][:, None]
    expected = out[:, :, :3, None] + out[:, :, None, 3:]
    meta = {"mechanism": "kronecker", "source": PORT, "config": json.dumps(config)}
    tensors = {"in/x": x} | {f"param/{name}": t for name, t in state.items()}
    assert_close(replay(tensors, meta)["out/out"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 2, 2, 3, 4), (2, 3, 7)])
def test_the_equations_take_maps_of_any_kind(shape):
    x = torch.randn(shape)
    found = replay({"in/x": x}, {"mechanism": "kronecker", "source": "equations", "config": '{"projections": null}'})
    assert_close(found["out/out"], kronecker_attention(x))
    assert_close(found["out/out_qkv"], kronecker_attention(x, queries="lines"))


def test_projections_for_the_equations_are_refused():
    with pytest.raises(UnsupportedError, match="projections='1x1'"):
        load("kronecker", "equations", {"projections": "1x1"}, {})
