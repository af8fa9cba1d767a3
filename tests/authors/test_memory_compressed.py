"""Other configurations of lucidrains' layer, restated, and its mask, which is refused."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors.replay import replay
from regard.registry import UnsupportedError

SOURCE = "lucidrains/memory-compressed-attention@a806696:memory_compressed_attention/memory_compressed_attention.py"


def run(config, tensors):
    meta = {"mechanism": "memory_compressed", "source": f"{SOURCE}:MemoryCompressedAttention", "main_output": "y"}
    return replay(tensors, meta | {"config": json.dumps(config), "call": json.dumps({"input_mask": None})})


def parameters(dim, heads, factor):
    shapes = {
        "to_qkv.weight": (3 * dim, dim),
        "to_out.weight": (dim, dim),
        "to_out.bias": (dim,),
        "null_k": (1, 1, dim),
        "null_v": (1, 1, dim),
        "compress_fn.conv.weight": (dim, dim // heads, factor),
        "compress_fn.conv.bias": (dim,),
    }
    return {name: torch.randn(shape, dtype=torch.float64) / 3 for name, shape in shapes.items()}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "factor", "n"), [(2, 3, 9), (4, 2, 7), (8, 4, 10), (1, 5, 3)])
def test_other_configurations(causal, heads, factor, n):
    dim, x = 8, torch.randn(2, n, 8, dtype=torch.float64)
    p = parameters(dim, heads, factor)
    q, k, v = (x @ p["to_qkv.weight"].T).chunk(3, -1)
    pad = -n % factor
    k, v = (
        F.conv1d(
            F.pad(t, (0, 0, pad, 0)).mT,
            p["compress_fn.conv.weight"],
            p["compress_fn.conv.bias"],
            stride=factor,
            groups=heads,
        ).mT
        for t in (k, v)
    )
    k, v = torch.cat((p["null_k"].expand(2, -1, -1), k), 1), torch.cat((p["null_v"].expand(2, -1, -1), v), 1)
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.mT * dim**-0.5
    if causal:
        last = torch.arange(k.shape[2]) * factor - pad - 1
        scores = scores.masked_fill(last > torch.arange(n)[:, None], -torch.inf)
    y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2) @ p["to_out.weight"].T + p["to_out.bias"]
    tensors = {"in/x": x} | {f"param/{name}": t for name, t in p.items()}
    config = {"dim": dim, "heads": heads, "causal": causal, "compression_factor": factor}
    assert_close(run(config, tensors)["out/y"], y, rtol=0, atol=1e-12)


def test_their_mask_is_refused():
    tensors = {"in/x": torch.randn(1, 6, 8), "in/input_mask": torch.ones(1, 6, dtype=torch.bool)}
    tensors |= {f"param/{name}": t.float() for name, t in parameters(8, 8, 3).items()}
    with pytest.raises(UnsupportedError, match="null key alone"):
        run({"dim": 8}, tensors)
