"""Other configurations of the port, and of the authors' Caffe2 code, restated on their own weights."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors import load
from regard.authors.replay import replay
from regard.registry import UnsupportedError

PORT = "AlexHex7/Non-local_pytorch@ec15789:lib/non_local_{}.py:NONLocalBlock{}D"
CAFFE2 = "equations (transcribed from facebookresearch/video-nonlocal-net@c253ed5:lib/models/nonlocal_helper.py:x)"


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64) * 0.5


def conv(state, name, x):
    return (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3](x, state[f"{name}.weight"], state[f"{name}.bias"])


def pool(x):
    return (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.ndim - 3](x, {3: 2, 4: 2, 5: (1, 2, 2)}[x.ndim])


def weights(names, dim, inner, axes):
    ones = (1,) * axes
    state = {}
    for name in names:
        out, into = (dim, inner) if name.startswith(("W", "out")) else (inner, dim)
        state |= {f"{name}.weight": random(out, into, *ones), f"{name}.bias": random(out)}
    return state


def norm_state(name, dim):
    return {
        f"{name}.weight": random(dim), f"{name}.bias": random(dim), f"{name}.running_mean": random(dim),
        f"{name}.running_var": random(dim).square() + 0.5, f"{name}.num_batches_tracked": torch.tensor(3),
    }  # fmt: skip


def normalised(state, name, y, eps=1e-5):
    read = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(y, *read, eps=eps)


def run(source, config, state, x, call="{}"):
    meta = {"mechanism": "non_local", "source": source, "config": json.dumps(config), "call": call}
    kinds = {name: "buffer" if "running" in name or "num_batches" in name else "param" for name in state}
    return replay({f"{kinds[name]}/{name}": t for name, t in state.items()} | {"in/x": x}, meta)


def restated(form, state, x, sub_sample, bn):
    phi_name, g_name = ("phi.0", "g.0") if sub_sample else ("phi", "g")
    after = pool if sub_sample else (lambda x: x)
    g = after(conv(state, g_name, x)).flatten(2)
    theta = x.flatten(2) if form == "gaussian" else conv(state, "theta", x).flatten(2)
    phi = after(x if form == "gaussian" else conv(state, phi_name, x)).flatten(2)
    f = theta.mT @ phi
    if "gaussian" in form:
        f = f.softmax(-1)
    elif form == "dot_product":
        f = f / f.shape[-1]
    else:
        pairs = torch.cat(torch.broadcast_tensors(theta[..., None], phi[:, :, None]), 1)
        f = torch.einsum("c,bcnm->bnm", state["concat_project.0.weight"].flatten(), pairs).relu() / phi.shape[-1]
    y = (g @ f.mT).unflatten(-1, x.shape[2:])
    y = normalised(state, "W.1", conv(state, "W.0", y)) if bn else conv(state, "W", y)
    return y + x, f


@pytest.mark.parametrize("form", ["embedded_gaussian", "gaussian", "dot_product", "concatenation"])
@pytest.mark.parametrize(("axes", "sub_sample", "bn"), [(1, True, False), (2, False, True), (3, True, True)])
def test_the_port(form, axes, sub_sample, bn):
    names = ["g.0" if sub_sample else "g", "W.0" if bn else "W"]
    if form != "gaussian":
        names += ["theta", "phi.0" if sub_sample else "phi"]
    state = weights(names, 5, 2, axes) | (norm_state("W.1", 5) if bn else {})
    if form == "concatenation":
        state["concat_project.0.weight"] = random(1, 4, 1, 1)
    x = random(2, 5, *(2, 5, 4)[-axes:])
    config = {"in_channels": 5, "inter_channels": None, "sub_sample": sub_sample, "bn_layer": bn}
    found = run(PORT.format(form, axes), config, state, x)
    z, f = restated(form, state, x, sub_sample, bn)
    assert_close(found["out/out"], z, rtol=0, atol=1e-10)
    assert ("out/map" in found) is not sub_sample
    if not sub_sample:
        assert_close(found["out/map"], f, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "config",
    [
        {"use_softmax": True, "use_scale": False, "use_maxpool": False, "use_bn": False},
        {"use_softmax": False, "use_scale": True, "use_maxpool": True, "use_bn": True, "bn_eps": 0.1},
        {"use_softmax": True, "use_scale": True, "use_maxpool": True, "use_bn": True, "group_size": 2},
    ],
)
def test_the_authors(config):
    state = weights(("theta", "phi", "g", "out"), 6, 3, 3) | (norm_state("bn", 6) if config["use_bn"] else {})
    x = random(2, 6, 4, 5, 4)
    groups = []
    for part in x.split(config.get("group_size", 4), 2):
        pooled = pool(part) if config["use_maxpool"] else part
        theta, phi, g = (conv(state, n, t).flatten(2) for n, t in (("theta", part), ("phi", pooled), ("g", pooled)))
        f = theta.mT @ phi
        scale = 3**-0.5 if config["use_scale"] else 1
        f = (f * scale).softmax(-1) if config["use_softmax"] else f / f.shape[-1]
        groups.append((g @ f.mT).unflatten(-1, part.shape[2:]))
    y = conv(state, "out", torch.cat(groups, 2))
    y = normalised(state, "bn", y, config.get("bn_eps", 1e-5)) if config["use_bn"] else y
    found = run(CAFFE2, {"dim_in": 6, "dim_inner": 3, **config}, state, x)
    assert_close(found["out/out"], x + y, rtol=0, atol=1e-10)


def test_what_the_authors_can_and_we_cannot_is_refused():
    config = {"dim_in": 6, "dim_inner": 3}
    for name, value in (("max_pool_stride", 4), ("use_affine", True), ("no_bias", True), ("dim_out", 8)):
        with pytest.raises(UnsupportedError, match=f"{name}={value}"):
            load("non_local", CAFFE2, {**config, name: value}, {})
