"""The annotated Transformer's attention under every kind of mask, in float64, against its own rule: fill with -1e9."""

import json

import pytest
import torch
from torch.testing import assert_close

from regard.authors.replay import replay

SOURCE = "harvardnlp/annotated-transformer@debc9fd:the_annotated_transformer.py:MultiHeadedAttention"


def theirs(state, h, query, key, value, mask):
    dim = query.shape[-1]
    q, k, v = (
        (x @ state[f"linears.{i}.weight"].T + state[f"linears.{i}.bias"]).unflatten(-1, (h, -1)).transpose(1, 2)
        for i, x in enumerate((query, key, value))
    )
    scores = q @ k.mT / (dim // h) ** 0.5
    if mask is not None:
        scores = scores.masked_fill(mask.unsqueeze(1) == 0, -1e9)
    weights = scores.softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2) @ state["linears.3.weight"].T + state["linears.3.bias"], weights


@pytest.mark.parametrize("h", [1, 2, 4])
@pytest.mark.parametrize("kind", ["none", "keys", "pairs", "empty rows"])
def test_cross_attention_under_masks(h, kind):
    state = {f"linears.{i}.weight": torch.randn(8, 8, dtype=torch.float64) for i in range(4)}
    state |= {f"linears.{i}.bias": torch.randn(8, dtype=torch.float64) for i in range(4)}
    inputs = {name: torch.randn(2, n, 8, dtype=torch.float64) for name, n in (("query", 5), ("key", 7), ("value", 7))}
    mask = {"none": None, "keys": torch.rand(2, 1, 7) < 0.6, "pairs": torch.rand(2, 5, 7) < 0.6}.get(
        kind, torch.rand(1, 5, 7) < 0.2
    )
    if mask is not None and kind != "empty rows":
        mask[..., 0] = True
    elif mask is not None:
        mask[:, 2] = False
    leaves = {name: t.requires_grad_() for name, t in (state | inputs).items()}
    y, weights = theirs(state, h, *inputs.values(), mask)
    cotangent = torch.randn_like(y)
    gradients = torch.autograd.grad((y * cotangent).sum(), list(leaves.values()))

    tensors = {f"param/{name}": t.detach() for name, t in state.items()} | {"in/cotangent": cotangent}
    tensors |= {f"in/{name}": t.detach() for name, t in inputs.items()} | ({} if mask is None else {"in/mask": mask})
    meta = {"mechanism": "multi_head", "source": SOURCE, "config": json.dumps({"h": h, "d_model": 8}),
            "call": '{"args": ["query", "key", "value", "mask"]}', "main_output": "out/y"}  # fmt: skip
    found = replay(tensors, meta)
    assert_close(found["out/y"], y.detach(), rtol=0, atol=1e-12)
    assert_close(found["out/weights"], weights.detach(), rtol=0, atol=1e-12)
    for name, gradient in zip(leaves, gradients, strict=True):
        assert_close(found[f"grad/{name}"], gradient, rtol=0, atol=1e-11)
