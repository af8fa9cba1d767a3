"""Other configurations of the equations: grouped projections, stems with relative tables; what cannot be loaded."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors import load
from regard.authors.replay import replay
from regard.registry import UnsupportedError


def unfolded(x, state, config):
    """By unfolded copies of keys and values, zeros outside."""
    count, kernel, mixtures = config["heads"], config["kernel_size"], config.get("mixtures", 0)
    groups = count if config["grouped_projection"] else 1
    before, after = kernel // 2, kernel - 1 - kernel // 2

    def windows(t):
        t = F.pad(t, (before, after, before, after)).unfold(2, kernel, 1).unfold(3, kernel, 1)
        return t.unflatten(1, (count, -1))  # (B, H, D, Y, X, k, k)

    q = F.conv2d(x, state["q.weight"], groups=groups).unflatten(1, (count, -1))
    logits = torch.einsum("bhdyx,bhdyxac->bhyxac", q, windows(F.conv2d(x, state["kk.weight"], groups=groups)))
    if config["rel"]:
        half = q.shape[2] // 2
        logits = logits + torch.einsum("bhdyx,had->bhyxa", q[:, :, :half], state["rel_row"])[..., None]
        logits = logits + torch.einsum("bhdyx,had->bhyxa", q[:, :, half:], state["rel_col"])[..., None, :]
    if config["edge"] == "mask":
        logits = logits.masked_fill(
            windows(torch.ones_like(x[:1, :1]).repeat(1, count, 1, 1))[:, :, 0] == 0, -torch.inf
        )
    weights = logits.flatten(-2).softmax(-1).unflatten(-1, (kernel, kernel))
    if not mixtures:
        v = windows(F.conv2d(x, state["v.weight"], groups=groups))
        return torch.einsum("bhyxac,bhdyxac->bhdyx", weights, v).flatten(1, 2)
    p = ((state["emb_row"][:, None] + state["emb_col"]) @ state["mix"].T).softmax(-1)
    v = torch.stack([windows(F.conv2d(x, state[f"v.{m}.weight"], groups=groups)) for m in range(mixtures)], -1)
    return torch.einsum("bhyxac,acm,bhdyxacm->bhdyx", weights, p, v).flatten(1, 2)


LAYER = {"in_channels": 4, "out_channels": 8, "heads": 2, "scale": 1.0}


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "grouped_projection": True, "edge": "zeros", "rel": True},
        {"kernel_size": 4, "grouped_projection": False, "edge": "mask", "rel": True},
        {"kernel_size": 5, "grouped_projection": False, "edge": "zeros", "rel": False},
        {"kernel_size": 3, "grouped_projection": True, "edge": "zeros", "rel": True, "mixtures": 11, "emb_dim": 3},
    ],
)
def test_the_equations(options):
    config = LAYER | options
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    names = ["q", "kk", *(f"v.{m}" for m in range(options["mixtures"]))] if "mixtures" in options else ["q", "kk", "v"]
    seen, kernel = 2 if options["grouped_projection"] else 4, options["kernel_size"]
    state = {f"{name}.weight": draw(8, seen, 1, 1) for name in names}
    if options["rel"]:
        state |= {"rel_row": draw(2, kernel, 2), "rel_col": draw(2, kernel, 2)}
    if "mixtures" in options:
        state |= {"emb_row": draw(kernel, 3), "emb_col": draw(kernel, 3), "mix": draw(options["mixtures"], 3)}
    x = draw(2, 4, 5, 6)
    meta = {"mechanism": "sasa", "source": "equations: by hand", "config": json.dumps(config)}
    found = replay({"in/x": x} | {f"param/{name}": t for name, t in state.items()}, meta)["out/out"]
    assert_close(found, unfolded(x, state, config), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_loaded():
    with pytest.raises(UnsupportedError, match=r"scale=0\.5"):
        load("sasa", "equations", LAYER | {"kernel_size": 3, "scale": 0.5}, {})
    with pytest.raises(UnsupportedError, match="stride=2"):
        load("sasa", "equations", LAYER | {"kernel_size": 3, "mixtures": 2, "stride": 2}, {})
    with pytest.raises(UnsupportedError, match="sasa cannot load"):
        load("sasa", "leaderj1001/Stand-Alone-Self-Attention:attention.py:AttentionConv", {}, {})
