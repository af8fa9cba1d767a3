"""Other configurations of the authors' module and of the equations, restated on their own weights."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors import load
from regard.authors.replay import replay
from regard.registry import UnsupportedError

SOURCE = "cmsflash/efficient-attention@46a5f9e:efficient_attention.py:EfficientAttention"


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def run(source, config, state, inputs, args):
    meta = {"mechanism": "efficient_attention", "source": source, "config": json.dumps(config), "main_output": "y"}
    meta["call"] = json.dumps({"args": args})
    tensors = {f"param/{name}": t for name, t in state.items()} | {f"in/{name}": t for name, t in inputs.items()}
    return replay(tensors, meta)["out/y"]


@pytest.mark.parametrize(("heads", "keys", "values"), [(1, 3, 2), (2, 4, 6), (3, 6, 3)])
def test_the_authors_module(heads, keys, values):
    widths = {"keys": (keys, 5), "queries": (keys, 5), "values": (values, 5), "reprojection": (5, values)}
    state = {f"{name}.weight": random(*shape, 1, 1) for name, shape in widths.items()}
    state |= {f"{name}.bias": random(shape[0]) for name, shape in widths.items()}
    x = random(2, 5, 3, 4)

    def conv(name, x):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"])

    k, q, v = (conv(name, x).flatten(2).unflatten(1, (heads, -1)) for name in ("keys", "queries", "values"))
    context = k.softmax(3) @ v.mT
    expected = conv("reprojection", (context.mT @ q.softmax(2)).reshape(2, values, 3, 4)) + x
    config = {"in_channels": 5, "key_channels": keys, "head_count": heads, "value_channels": values}
    assert_close(run(SOURCE, config, state, {"x": x}, ["x"]), expected, rtol=0, atol=1e-10)
    assert_close(run(SOURCE, config, state, {"input_": x}, ["input_"]), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("normalisation", ["softmax", "scaling"])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_equations_on_sequences(normalisation, cross, masked):
    widths = {"q": (4, 6), "k": (4, 6), "v": (2, 6), "o": (6, 2)}
    state = {f"{name}.weight": random(*shape) for name, shape in widths.items()}
    state |= {f"{name}.bias": random(shape[0]) for name, shape in widths.items()}
    inputs = {"x": random(2, 7, 6)} | ({"ctx": random(2, 5, 6)} if cross else {})
    source = inputs.get("ctx", inputs["x"])
    mask = torch.arange(source.shape[1]) < torch.tensor([[3], [source.shape[1]]])
    q, k, v = (
        F.linear(t, state[f"{n}.weight"], state[f"{n}.bias"])
        for n, t in (("q", inputs["x"]), ("k", source), ("v", source))
    )
    q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (q, k, v))
    keep = (mask if masked else torch.ones_like(mask))[:, None, :, None]
    if normalisation == "softmax":
        q, k = q.softmax(-1), k.masked_fill(~keep, -torch.inf).softmax(-2)
    else:
        k = k * keep / keep.sum(2, keepdim=True)
    out = (q @ (k.mT @ v)).transpose(1, 2).flatten(2)
    expected = F.linear(out, state["o.weight"], state["o.bias"])
    config = {"channels": 6, "key_channels": 4, "value_channels": 2, "heads": 2, "normalisation": normalisation}
    inputs |= {"mask": mask} if masked else {}
    args = ["x", "ctx" if cross else None, "mask" if masked else None]
    assert_close(run("equations: Shen et al.", config, state, inputs, args), expected, rtol=0, atol=1e-10)


def test_heads_that_do_not_divide_are_refused():
    config = {"in_channels": 5, "key_channels": 5, "head_count": 2, "value_channels": 4}
    with pytest.raises(UnsupportedError, match="no multiples of 2 heads"):
        load("efficient_attention", SOURCE, config, {})
