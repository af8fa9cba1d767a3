"""The paper's equations with unequal widths and numbers of heads, and another memory."""

import json

import pytest
import torch
from torch.testing import assert_close

from regard.authors.replay import replay

CONFIG = {"dim_q": 5, "dim_m": 7, "dim_out": 6, "dk": 3, "dv": 4, "hk": 2, "h": 5, "hv": 3}


def parameters():
    shapes = {"q": (2, 5, 3), "k": (2, 7, 3), "v": (3, 7, 4), "o": (3, 4, 6), "pl": (2, 5), "pw": (5, 3)}
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


@pytest.mark.parametrize("allow", [None, (8,), (6, 8), (2, 6, 8)])
def test_unequal_heads_and_another_memory(allow):
    p = parameters()
    x, memory = torch.randn(2, 6, 5, dtype=torch.float64), torch.randn(2, 8, 7, dtype=torch.float64)
    given = {"x": x, "memory": memory}
    keep = torch.ones(2, 6, 8, dtype=torch.bool)
    if allow is not None:
        given["allow"] = torch.rand(allow) < 0.7
        given["allow"][..., 0] = True
        keep = given["allow"].expand(2, 6, 8)
    logits = torch.einsum("bnc,hcd,bme,hed->bhnm", x, p["q"], memory, p["k"]) / 3**0.5
    logits = torch.einsum("bhnm,hs->bsnm", logits, p["pl"]).masked_fill(~keep[:, None], -torch.inf)
    weights = torch.einsum("bsnm,sg->bgnm", logits.softmax(-1), p["pw"])
    y = torch.einsum("bgnm,bmc,gcd,gdo->bno", weights, memory, p["v"], p["o"])
    tensors = {f"in/{name}": t for name, t in given.items()} | {f"param/{name}": t for name, t in p.items()}
    meta = {"mechanism": "talking_heads", "source": "equations", "config": json.dumps(CONFIG), "main_output": "y"}
    found = replay(tensors, meta)
    assert_close(found["out/y"], y, rtol=0, atol=1e-10)
    assert_close(found["out/mixed_weights"], weights, rtol=0, atol=1e-10)
