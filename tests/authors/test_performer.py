"""performer-pytorch and fast-transformers' Favor by their formulas in float64, with the constants that they add."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors import load
from regard.authors.replay import replay
from regard.registry import UnsupportedError

PORT = "lucidrains/performer-pytorch@fc8b784 (1.1.4):performer_pytorch/performer_pytorch.py"
IDIAP = "idiap/fast-transformers@2ad36b9:fast_transformers"
FAVOR = f"{IDIAP}/feature_maps/fourier_features.py:Favor"


def run(source, config, tensors):
    meta = {"mechanism": "performer", "source": source, "config": json.dumps(config), "main_output": "out"}
    return replay({f"buffer/{n}" if "omega" in n or "matrix" in n else f"in/{n}": t for n, t in tensors.items()}, meta)


def weighted(phi_q, phi_k, v, causal, spread=0.0, eps=0.0):
    """``spread`` is added to every component of the sum of keys, ``eps`` to the denominator."""
    weights = phi_q @ phi_k.mT
    weights = weights.tril() if causal else weights
    return weights @ v / (weights.sum(-1, keepdim=True) + spread * phi_q.sum(-1, keepdim=True) + eps)


def port_features(x, w, over, kernel=None):
    x = x / x.shape[-1] ** 0.25
    u = x @ w.T
    if kernel is not None:
        return kernel(u) + 1e-3
    return ((u - (x**2).sum(-1, keepdim=True) / 2 - u.amax(over, keepdim=True)).exp() + 1e-4) / len(w) ** 0.5


def port(q, k, v, w, causal=False, kernel=None, projected=True):
    if projected:
        phi_q, phi_k = port_features(q, w, -1, kernel), port_features(k, w, (-1, -2), kernel)
    else:
        phi_q, phi_k = q.softmax(-1), k.exp() if causal else k.softmax(-2)
    return weighted(phi_q, phi_k, v, causal, spread=1e-6 * causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"nb_features": 20, "ortho_scaling": 1}, {}),
        ({"generalized_attention": True}, {"kernel": F.relu}),
        ({"generalized_attention": True, "kernel_fn": "nn.Softplus()"}, {"kernel": F.softplus}),
        ({"generalized_attention": True, "kernel_fn": "torch.exp"}, {"kernel": torch.exp}),
        ({"no_projection": True, "generalized_attention": True}, {"projected": False}),
    ],
)
def test_fast_attention(causal, options, expected):
    n, m = (9, 9) if causal else (9, 13)
    q, k, v = (torch.randn(2, 3, length, 8, dtype=torch.float64) for length in (n, m, m))
    w = torch.randn(options.get("nb_features", int(8 * math.log(8))), 8, dtype=torch.float64)
    config = {"dim_heads": 8, "causal": causal, **options}
    found = run(f"{PORT}:FastAttention", config, {"q": q, "k": k, "v": v, "projection_matrix": w})
    assert_close(found["out/out"], port(q, k, v, w, causal, **expected), rtol=0, atol=1e-11)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("qkv_bias", "out_bias"), [(True, False), (False, True)])
def test_their_layer_masks_the_values_alone(causal, qkv_bias, out_bias):
    names = [f"to_{name}.weight" for name in "qkv"] + [f"to_{name}.bias" for name in "qkv"] * qkv_bias
    shapes = {name: (10, 12) if name.endswith("weight") else (10,) for name in names}
    shapes |= {"to_out.weight": (12, 10)} | ({"to_out.bias": (12,)} if out_bias else {})
    state = {name: torch.randn(*shape, dtype=torch.float64) for name, shape in shapes.items()}
    w = torch.randn(7, 5, dtype=torch.float64)
    x, mask = torch.randn(2, 6, 12, dtype=torch.float64), torch.arange(6) < torch.tensor([[6], [4]])
    config = {"dim": 12, "heads": 2, "dim_head": 5, "nb_features": 7, "causal": causal}
    config |= {"qkv_bias": qkv_bias, "attn_out_bias": out_bias}
    tensors = {f"param/{name}": t for name, t in state.items()} | {"buffer/fast_attention.projection_matrix": w}
    meta = {"mechanism": "performer", "source": f"{PORT}:SelfAttention", "config": json.dumps(config)}
    found = replay(tensors | {"in/x": x, "in/mask": mask}, meta)["out/out"]

    q, k, v = (
        F.linear(x, state[f"to_{name}.weight"], state.get(f"to_{name}.bias")).unflatten(-1, (2, 5)).transpose(1, 2)
        for name in "qkv"
    )
    y = port(q, k, v * mask[:, None, :, None], w, causal).transpose(1, 2).flatten(2)
    assert_close(found, F.linear(y, state["to_out.weight"], state.get("to_out.bias")), rtol=0, atol=1e-10)


def test_cross_attention_has_a_mask_of_its_own():
    state = {f"to_{name}.weight": torch.randn(12, 12) for name in ("q", "k", "v", "out")}
    state |= {"to_out.bias": torch.zeros(12), "fast_attention.projection_matrix": torch.randn(7, 4)}
    config = {"dim": 12, "heads": 3, "dim_head": 4, "nb_features": 7}
    x, context, mask = torch.randn(2, 5, 12), torch.randn(2, 8, 12), torch.ones(2, 5, dtype=torch.bool)
    keep = torch.arange(8) < torch.tensor([[8], [3]])
    meta = {"mechanism": "performer", "source": f"{PORT}:CrossAttention", "config": json.dumps(config)}
    tensors = {("buffer/" if "matrix" in name else "param/") + name: t for name, t in state.items()}
    given = {"in/x": x, "in/context": context, "in/mask": mask}
    whole, some = (replay(tensors | given | more, meta)["out/out"] for more in ({}, {"in/context_mask": keep}))
    assert_close(some[0], whole[0])
    assert not torch.allclose(some[1], whole[1])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"n_dims": 20, "stabilize": True, "eps": 0.1}, {"n_dims": 21, "softmax_temp": 0.3, "orthogonal": False}],
)
def test_favor(causal, options):
    q, k, v = (torch.randn(2, 7, 3, d, dtype=torch.float64) for d in (8, 8, 6))
    n_dims, lengths = options.get("n_dims", 8), torch.tensor([7, 4])
    omega = torch.randn(8, n_dims // 2, dtype=torch.float64)

    def phi(x):
        x = x.transpose(1, 2) * options.get("softmax_temp", 8**-0.5) ** 0.5
        norm = (x**2).sum(-1, keepdim=True)
        offset = norm / 2 + math.log(n_dims) / 2 + options.get("stabilize", False) * norm.amax(-2, keepdim=True)
        return torch.cat(((x @ omega - offset).exp(), (-x @ omega - offset).exp()), -1)

    inside = "causal_linear_attention.py:CausalLinearAttention" if causal else "linear_attention.py:LinearAttention"
    tensors = {"queries": q, "keys": k, "values": v, "key_lengths": lengths, "feature_map.omega": omega}
    found = run(f"{FAVOR} inside attention/{inside}", {"query_dimensions": 8, **options}, tensors)
    keep = (torch.arange(7) < lengths[:, None])[:, None, :, None]
    expected = weighted(phi(q), phi(k) * keep, v.transpose(1, 2), causal, eps=options.get("eps", 1e-6))
    assert_close(found["out/out"], expected.transpose(1, 2), rtol=0, atol=1e-12)


def test_what_is_not_computed_is_refused():
    with pytest.raises(UnsupportedError, match="local_heads=2"):
        load("performer", f"{PORT}:SelfAttention", {"dim": 8, "local_heads": 2}, {})
    with pytest.raises(UnsupportedError, match="kernel_fn='lambda x: x'"):
        load(
            "performer",
            f"{PORT}:FastAttention",
            {"dim_heads": 8, "generalized_attention": 1, "kernel_fn": "lambda x: x"},
            {},
        )
    with pytest.raises(UnsupportedError, match="performer has Favor's"):
        load("performer", FAVOR, {"query_dimensions": 8, "feature_map": "elu"}, {})
