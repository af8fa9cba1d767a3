"""Google's SLiMPerformer in other configurations than the one recorded, against a second statement of it."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors import find, load
from regard.authors.replay import replay
from regard.registry import UnsupportedError

SOURCE = "google-research/google-research:performer/models/slim_performer/pytorch/slim_performer_model.py:SLiMPerformer"
SIZES = {"vocab_size": 11, "hidden_dim": 12, "n_layers": 2, "ffn_dim": 10, "n_heads": 3}


def state():
    def linear(name, rows, columns):
        return {f"{name}.weight": torch.randn(rows, columns).double() / 2, f"{name}.bias": torch.randn(rows).double()}

    found = {"input_map.weight": torch.randn(11, 6).double()} | linear("output_logit_map", 11, 12)
    for layer in ("layers.0", "layers.1"):
        for name in ("attention.q_map", "attention.k_map", "attention.v_map"):
            found |= linear(f"{layer}.{name}", 12, 12)
        found |= linear(f"{layer}.U_map", 10, 12) | linear(f"{layer}.V_map", 12, 10)
        for norm in ("layernorm1", "layernorm2"):
            found |= {
                f"{layer}.{norm}.weight": torch.randn(12).double(),
                f"{layer}.{norm}.bias": torch.randn(12).double(),
            }
    return found


def theirs(state, tokens, kind, on_branch, rows):
    """Logits, by all pairs."""

    def linear(name, x):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name, x):
        return F.layer_norm(x, (12,), state[f"{name}.weight"], state[f"{name}.bias"])

    def features(x, w):
        if kind.startswith("favor+"):
            x = x / 4**0.25
            return (torch.einsum("bnhd,hdm->bnhm", x, w) - x.square().sum(-1, keepdim=True) / 2).exp()
        return {"relu": F.relu(x), "elu+1": F.elu(x) + 1, "sqr": x**2}[kind]

    n = tokens.shape[1]
    angles = torch.arange(n)[:, None] * torch.exp(
        torch.arange(0, 6, 2).double() * (-torch.tensor(10000.0).double().log() / 6)
    )
    code = torch.cat((angles.sin(), angles.cos()), -1).expand(len(tokens), -1, -1)
    x = torch.cat((state["input_map.weight"][tokens], code), -1)
    for number, layer in enumerate(("layers.0", "layers.1")):
        inner = x if on_branch else norm(f"{layer}.layernorm1", x)
        q, k, v = (linear(f"{layer}.attention.{name}_map", inner).unflatten(-1, (3, 4)) for name in "qkv")
        weights = torch.einsum("bnhm,bjhm->bhnj", features(q, rows[number]), features(k, rows[number])).tril()
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-16)
        out = torch.einsum("bhnj,bjhd->bnhd", weights, v).flatten(2)
        x = x + (norm(f"{layer}.layernorm1", out) if on_branch else out)
        inner = x if on_branch else norm(f"{layer}.layernorm2", x)
        out = linear(f"{layer}.V_map", F.gelu(linear(f"{layer}.U_map", inner)))
        x = x + (norm(f"{layer}.layernorm2", out) if on_branch else out)
    return linear("output_logit_map", x)


@pytest.mark.parametrize("kind", ["relu", "elu+1", "sqr", "favor+", "favor+_2"])
@pytest.mark.parametrize("on_branch", [False, True])
def test_configurations(kind, on_branch):
    weights, tokens, nonpad = state(), torch.randint(11, (2, 14)), torch.rand(2, 14) < 0.7
    rows = [torch.randn(3, 4, 8 if kind == "favor+_2" else 4).double() for _ in range(2)]
    leaves = {name: t.clone().requires_grad_() for name, t in weights.items()}
    logits = theirs(leaves, tokens[:, :-1], kind, on_branch, rows)
    losses = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    loss = (losses * nonpad[:, 1:]).sum() / (1e-8 + nonpad[:, 1:].sum())
    slopes = torch.autograd.grad(2 * loss, list(leaves.values()))

    tensors = {f"param/{name}": t for name, t in weights.items()}
    tensors |= {"in/tokens": tokens, "in/nonpad": nonpad, "in/cotangent": torch.tensor(2.0).double()}
    tensors |= {f"in/rfs{number}": t for number, t in enumerate(rows)} if kind.startswith("favor") else {}
    config = SIZES | {"feature_type": kind, "on_gptln": on_branch, "compute_type": "iter"}
    meta = {"mechanism": "slim_performer", "source": SOURCE, "config": json.dumps(config), "main_output": "loss"}
    for call in ({"step_size": "any"}, {"step_size": 5}):
        found = replay(tensors, meta | {"call": json.dumps(call)})
        assert_close(found["out/loss"], loss.detach(), rtol=0, atol=1e-7)
        assert_close(found["out/logits"], logits.detach(), rtol=0, atol=1e-5)
        for name, slope in zip(leaves, slopes, strict=True):
            assert_close(found[f"grad/{name}"], slope, rtol=0, atol=1e-5)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(UnsupportedError, match="feature_type='abs'"):
        load("slim_performer", SOURCE, SIZES | {"feature_type": "abs"}, {})
    module = load("slim_performer", SOURCE, SIZES | {"feature_type": "favor+"}, state())
    with pytest.raises(UnsupportedError, match="rfs0"):
        find("slim_performer", SOURCE).call(module, {"tokens": torch.zeros(1, 4, dtype=torch.long)}, {})
