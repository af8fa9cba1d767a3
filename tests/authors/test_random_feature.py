"""Noahs-ARK/RFA in other configurations than those recorded, against a second statement of what it computes."""

import json

import pytest
import torch
from torch.testing import assert_close

from regard.authors import find, load
from regard.authors.replay import replay
from regard.registry import UnsupportedError

CAUSAL = "Noahs-ARK/RFA@b075fa8:random_feature_attention/causal_attention.py:CausalAttention"
CROSS = "Noahs-ARK/RFA:random_feature_attention/cross_attention.py:CrossAttentionProjectLayer + CrossAttention"


def waves(x, w):
    """Theirs, (N, B, H, D) -> (N, B, H, 2 R)."""
    u = torch.einsum("nbhd,hrd->nbhr", x / (x.norm(dim=-1, keepdim=True) + 1e-3), w)
    return 0.1 * torch.cat((u.sin(), u.cos()), -1)


def projected(x, state, name):
    return torch.nn.functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def states(names, dim=12, heads=3, reparam=True, prefix=""):
    state = {}
    for name in names:
        state |= {f"{name}.weight": torch.randn(dim, dim).double(), f"{name}.bias": torch.randn(dim).double()}
    return state | ({f"{prefix}sigma": torch.randn(heads, 1, dim // heads).double()} if reparam else {})


def config(**changes):
    return {"embed_dim": 12, "num_heads": 3, "head_dim": 4, "proj_dim": 10, "tau": 0.8, "reparam_proj": True} | changes


@pytest.mark.parametrize("reparam", [True, False])
@pytest.mark.parametrize("cuda", [True, False])
def test_causal(reparam, cuda):
    state = states([f"{n}_proj" for n in ("q", "k", "v", "out")], reparam=reparam)
    x, rows = torch.randn(9, 2, 12).double(), torch.randn(3, 10, 4).double()
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[1, 6:] = True
    w = rows / 0.8 * (state["sigma"] if reparam else 1.0)
    q, k, v = (projected(x, state, f"{name}_proj").unflatten(-1, (3, 4)) for name in "qkv")
    weights = torch.einsum("nbhr,mbhr->bhnm", waves(q, w), waves(k, w)).tril()
    weights = weights.masked_fill(padding[:, None, None], 0.0)
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1.0)
    expected = projected(torch.einsum("bhnm,mbhd->nbhd", weights, v).flatten(2), state, "out_proj")

    tensors = {f"param/{name}": t for name, t in state.items()}
    tensors |= {"in/x": x, "in/random_matrices": rows, "in/key_padding_mask": padding, "in/cotangent": x}
    tensors["in/attn_mask"] = torch.full((9, 9), -torch.inf).triu(1)
    meta = {"mechanism": "random_feature", "source": CAUSAL, "call": "{}", "main_output": "out"}
    meta["config"] = json.dumps(config(reparam_proj=reparam, cuda_causal_rfa=cuda))
    found = replay(tensors, meta)
    assert_close(found["out/out"], expected, rtol=0, atol=1e-11)
    assert found["grad/k_proj.weight"].abs().max() > 0


def test_one_step_of_decoding():
    state = states([f"{n}_proj" for n in ("q", "k", "v", "out")])
    module = load("random_feature", CAUSAL, config(), state).double()
    x, rows = torch.randn(5, 2, 12).double(), torch.randn(3, 10, 4).double()
    run = find("random_feature", CAUSAL).call
    whole, prompt = (run(module, {"x": part, "random_matrices": rows}, {}) for part in (x, x[:4]))
    assert prompt["prev_s"].shape == (2, 3, 20, 4)
    key = waves(projected(x[:4], state, "k_proj").unflatten(-1, (3, 4)), state["sigma"] * rows / 0.8)
    assert_close(prompt["prev_z"], key.sum(0), rtol=0, atol=1e-12)
    inputs = {"x": x[4:], "random_matrices": rows, "prev_s": prompt["prev_s"], "prev_z": prompt["prev_z"]}
    assert_close(run(module, inputs, {})["out"], whole["out"][4:], rtol=0, atol=1e-11)


def test_cross_takes_the_mask_of_the_inner_layer():
    names = ["project.k_proj", "project.v_proj", "attend.q_proj", "attend.out_proj"]
    state = states(names, prefix="project.")
    module = load("random_feature", CROSS, config(), state).double()
    x, context, rows = torch.randn(4, 2, 12).double(), torch.randn(7, 2, 12).double(), torch.randn(3, 10, 4).double()
    padding = torch.rand(2, 7) < 0.5
    w = rows / 0.8 * state["project.sigma"]
    q, k, v = (
        projected(t, state, name).unflatten(-1, (3, 4))
        for t, name in ((x, "attend.q_proj"), (context, "project.k_proj"), (context, "project.v_proj"))
    )
    phi = waves(k, w).masked_fill(padding.T[..., None, None], 0.0)
    weights = torch.einsum("nbhr,mbhr->bhnm", waves(q, w), phi)
    weights = weights / weights.sum(-1, keepdim=True).abs().clamp(min=1.0)
    expected = projected(torch.einsum("bhnm,mbhd->nbhd", weights, v).flatten(2), state, "attend.out_proj")
    inputs = {"query": x, "encoder_output": context, "random_matrices": rows}
    run = find("random_feature", CROSS).call
    for mask in ({"key_padding_mask": padding}, {"mask": padding.T[..., None, None]}):
        assert_close(run(module, inputs | mask, {})["out"], expected, rtol=0, atol=1e-11)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(UnsupportedError, match="num_heads=3 times head_dim=5"):
        load("random_feature", CAUSAL, config(head_dim=5), {})
    state = states([f"{n}_proj" for n in ("q", "k", "v", "out")])
    module = load("random_feature", CAUSAL, config(), state)
    inputs = {"x": torch.randn(5, 2, 12), "random_matrices": torch.randn(3, 10, 4), "attn_mask": torch.zeros(5, 5)}
    with pytest.raises(UnsupportedError, match="no other mask"):
        find("random_feature", CAUSAL).call(module, inputs, {})
