"""local-attention's blocks, and its options that belong elsewhere."""

import json

import pytest
import torch
from torch.testing import assert_close

from regard.authors.replay import replay
from regard.registry import UnsupportedError

SOURCE = "lucidrains/local-attention@1.11.2:local_attention/local_attention.py:LocalAttention"


def run(config, tensors):
    meta = {"mechanism": "local", "source": SOURCE, "config": json.dumps(config)}
    return replay({f"in/{name}": t for name, t in tensors.items()}, meta)


@pytest.mark.parametrize("ndim", [3, 4])
@pytest.mark.parametrize(("causal", "exact", "scale"), [(False, False, None), (True, False, 0.3), (True, True, None)])
def test_blocks(ndim, causal, exact, scale):
    shape = (2, 10, 4) if ndim == 3 else (2, 3, 10, 4)
    q, k, v = (torch.randn(*shape, dtype=torch.float64) for _ in range(3))
    config = {"window_size": 4, "causal": causal, "exact_windowsize": exact, "scale": scale, "autopad": True}
    mask = torch.arange(10) < torch.tensor([[10], [7]])
    i, j = torch.arange(10)[:, None], torch.arange(10)
    allowed = (j // 4 - i // 4 >= -1) & (j // 4 - i // 4 <= (0 if causal else 1))
    allowed &= (j <= i) if causal else True
    allowed = allowed & (i - j <= 4) if exact else allowed
    keep = allowed & (mask[:, None] if ndim == 3 else mask[:, None, None])
    scores = q @ k.mT * (scale or 0.5)
    out = scores.masked_fill(~keep, -torch.inf).softmax(-1) @ v
    found = run(config, {"q": q, "k": k, "v": v, "mask": mask})["out/out"]
    real = mask[..., None] if ndim == 3 else mask[:, None, :, None]
    assert_close(found, out.masked_fill(~real, 0.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("option", [{"dim": 8}, {"shared_qk": True}])
def test_options_of_their_projections_are_refused(option):
    with pytest.raises(UnsupportedError, match="belongs to their projections"):
        run({"window_size": 4, **option}, {})
