"""lucidrains' layer restated with a table of all pairs of pixels, over its configurations."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors.replay import replay

SOURCE = "lucidrains/lambda-networks@8116ff3:lambda_networks/lambda_networks.py:LambdaLayer"


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def restated(state, config, x):
    heads, width, depth = config.get("heads", 4), config["dim_k"], config.get("dim_u", 1)
    q, k, v = (F.conv2d(x, state[f"to_{name}.weight"]) for name in "qkv")
    q, v = (
        F.batch_norm(t, *(state[f"norm_{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))
        for name, t in (("q", q), ("v", v))
    )
    q = q.flatten(2).unflatten(1, (heads, width))
    k, v = (t.flatten(2).unflatten(1, (depth, -1)) for t in (k, v))
    content = torch.einsum("bukm,buvm->bkv", k.softmax(-1), v)
    y = torch.einsum("bhkn,bkv->bhvn", q, content)
    if "r" in config:
        maps, weight, bias = v.unflatten(-1, x.shape[2:]), state["pos_conv.weight"], state["pos_conv.bias"]
        lambdas = F.conv3d(maps, weight, bias, padding=(0, config["r"] // 2, config["r"] // 2)).flatten(3)
        y = y + torch.einsum("bhkn,bkvn->bhvn", q, lambdas)
    else:
        n = config["n"]
        at = torch.cartesian_prod(torch.arange(n), torch.arange(n))
        at = at - at[:, None] + n - 1  # of query and context
        table = state["rel_pos_emb"][at[..., 0], at[..., 1]]
        y = y + torch.einsum("bhkn,nmku,buvm->bhvn", q, table, v)
    return y.flatten(1, 2).unflatten(-1, x.shape[2:])


@pytest.mark.parametrize(
    "config",
    [
        {"dim": 8, "dim_k": 3, "r": 3},
        {"dim": 8, "dim_k": 3, "r": 7, "heads": 2, "dim_out": 6, "dim_u": 2},
        {"dim": 8, "dim_k": 2, "n": 4, "heads": 1},
        {"dim": 8, "dim_k": 2, "n": 5, "r": None, "heads": 2, "dim_out": 10, "dim_u": 3},
    ],
)
def test_lucidrains(config):
    heads, width, depth = config.get("heads", 4), config["dim_k"], config.get("dim_u", 1)
    inner = (config.get("dim_out") or 8) // heads * depth
    state = {f"to_{name}.weight": random(rows, 8, 1, 1) for name, rows in
             (("q", heads * width), ("k", depth * width), ("v", inner))}  # fmt: skip
    for name, rows in (("q", heads * width), ("v", inner)):
        state |= {f"norm_{name}.{part}": random(rows) for part in ("weight", "bias", "running_mean")}
        state[f"norm_{name}.running_var"] = random(rows).square() + 0.5
    side = config.get("n") or 6
    if config.get("r"):
        state |= {"pos_conv.weight": random(width, depth, 1, config["r"], config["r"]), "pos_conv.bias": random(width)}
    else:
        state["rel_pos_emb"] = random(2 * side - 1, 2 * side - 1, width, depth)
    x = random(2, 8, side, side)
    tensors = {f"{'buffer' if 'running' in name else 'param'}/{name}": t for name, t in state.items()} | {"in/x": x}
    tensors |= {f"buffer/norm_{name}.num_batches_tracked": torch.tensor(3) for name in "qv"}
    meta = {"mechanism": "lambda_networks", "source": SOURCE, "config": json.dumps(config), "call": '{"args": ["x"]}'}
    expected = restated(state, {name: value for name, value in config.items() if value is not None}, x)
    assert_close(replay(tensors, meta)["out/out"], expected, rtol=0, atol=1e-10)
