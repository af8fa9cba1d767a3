"""fast-transformers' linear attention by its formula in float64: all keys, causal, recurrent, in its AttentionLayer."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors import load
from regard.authors.replay import replay
from regard.registry import UnsupportedError

PATH = "idiap/fast-transformers@2ad36b9:fast_transformers"
ALL = f"{PATH}/attention/linear_attention.py:LinearAttention"
CAUSAL = f"{PATH}/attention/causal_linear_attention.py:CausalLinearAttention"
RECURRENT = f"{PATH}/recurrent/attention/self_attention/linear_attention.py:RecurrentLinearAttention"


def formula(q, k, v, keep, eps, causal):
    q, k, v = (x.transpose(1, 2) for x in (F.elu(q) + 1, F.elu(k) + 1, v))
    weights = q @ k.mT * keep[:, None, None]
    weights = weights.tril() if causal else weights
    return (weights @ v / (weights.sum(-1, keepdim=True) + eps)).transpose(1, 2)


def run(source, config, tensors):
    meta = {"mechanism": "linear_transformer", "source": source, "config": json.dumps(config), "main_output": "out"}
    return replay({f"in/{name}": t for name, t in tensors.items()}, meta)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n", "m"), [(7, 7), (5, 9)])
@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_both_forms(causal, n, m, eps):
    q, k, v = (torch.randn(2, length, 3, d, dtype=torch.float64) for length, d in ((n, 4), (m, 4), (m, 6)))
    lengths = torch.tensor([m, 4])
    config = {"query_dimensions": 4, "eps": eps}
    found = run(CAUSAL if causal else ALL, config, {"queries": q, "keys": k, "values": v, "key_lengths": lengths})
    keep = torch.arange(m) < lengths[:, None]
    cut = n if causal else m  # theirs drops what lies after the last query
    expected = formula(q, k[:, :cut], v[:, :cut], keep[:, :cut], eps, causal)
    assert_close(found["out/out"], expected, rtol=0, atol=1e-12)


def test_causal_with_fewer_keys_than_queries_sees_those_that_exist():
    q, k, v = (torch.randn(1, length, 2, 4, dtype=torch.float64) for length in (6, 4, 4))
    found = run(CAUSAL, {"eps": 1e-6}, {"queries": q, "keys": k, "values": v})["out/out"]
    k, v = (F.pad(x, (0, 0, 0, 0, 0, 2)) for x in (k, v))
    keep = torch.tensor([[True] * 4 + [False] * 2])
    assert_close(found, formula(q, k, v, keep, 1e-6, causal=True), rtol=0, atol=1e-12)


def test_one_recurrent_step_continues_from_its_state():
    names = {"query": (2, 3, 4), "key": (2, 3, 4), "value": (2, 3, 6), "Si": (2, 3, 4, 6), "Zi": (2, 3, 4)}
    inputs = {name: torch.rand(*shape, dtype=torch.float64) for name, shape in names.items()}
    before = {name: t.clone() for name, t in inputs.items()}
    cotangent = torch.randn(2, 3, 6, dtype=torch.float64)
    found = run(RECURRENT, {}, {**inputs, "cotangent": cotangent})
    assert all(torch.equal(before[name], inputs[name]) for name in names)

    q, k, v, s, z = (t.requires_grad_() for t in inputs.values())
    phi_q, phi_k = F.elu(q) + 1, F.elu(k) + 1
    s, z = s + phi_k[..., None] * v[..., None, :], z + phi_k
    out = (phi_q[..., None, :] @ s).squeeze(-2) / ((phi_q * z).sum(-1, keepdim=True) + 1e-6)
    assert_close(found["out/out"], out.detach(), rtol=0, atol=1e-12)
    assert_close((found["out/Si"], found["out/Zi"]), (s.detach(), z.detach()), rtol=0, atol=1e-12)
    for name, slope in zip(names, torch.autograd.grad((out * cotangent).sum(), list(inputs.values())), strict=True):
        assert_close(found[f"grad/{name}"], slope, rtol=0, atol=1e-11)


def test_a_sequence_of_recurrent_steps_is_the_causal_form():
    q, k, v = (torch.randn(2, 5, 3, d, dtype=torch.float64) for d in (4, 4, 6))
    found = run(RECURRENT, {}, {"queries": q, "keys": k, "values": v})["out/out"]
    assert_close(found, formula(q, k, v, torch.ones(2, 5), 1e-6, causal=True), rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_their_layer_loads_into_ours(causal):
    shapes = (("weight", (8, 8)), ("bias", (8,)))
    names = [
        (f"{name}_projection.{kind}", shape) for name in ("query", "key", "value", "out") for kind, shape in shapes
    ]
    state = {name: torch.randn(*shape, dtype=torch.float64) for name, shape in names}
    config = {"d_model": 8, "n_heads": 2, "attention": "causal-linear" if causal else "linear"}
    layer = load("linear_transformer", f"{PATH}/attention/attention_layer.py:AttentionLayer", config, state)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    q, k, v = (
        (x @ state[f"{name}_projection.weight"].T + state[f"{name}_projection.bias"]).unflatten(-1, (2, 4))
        for name in ("query", "key", "value")
    )
    y = formula(q, k, v, torch.ones(2, 5), 1e-6, causal).flatten(2)
    expected = y @ state["out_projection.weight"].T + state["out_projection.bias"]
    assert_close(layer(x), expected, rtol=0, atol=1e-12)


def test_another_feature_map_is_refused():
    with pytest.raises(UnsupportedError, match=r"linear_transformer has elu\(x\) \+ 1"):
        run(ALL, {"feature_map": "favor"}, {})
