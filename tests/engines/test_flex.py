"""What only the flex engine has: chunks of queries, and BlockMasks too large to be made whole."""

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.engines import flex
from regard.patterns import Causal, Global, Window, block_mask, from_mask
from regard.scores import Bias, Dot, Relative


@pytest.mark.parametrize("limit", ["scores", "table"])
def test_chunks_of_queries(monkeypatch, limit):
    """Rows, positions, masks and row tensors are those of the chunk."""
    q, k, v = torch.randn(3, 2, 2, 300, 4, dtype=torch.float64)
    if limit == "scores":
        monkeypatch.setattr(flex, "CPU_PAIRS", 2 * 2 * 300 * 70)
    else:
        monkeypatch.setattr(block_mask, "MOST_ENTRIES", 2 * 3)
    made = []
    whole = Window.block_mask
    monkeypatch.setattr(regard.patterns.Pattern, "block_mask", lambda *a, **o: made.append(a[1]) or whole(*a, **o))
    options = {
        "score": [
            Bias(torch.randn(2, 9, dtype=q.dtype), Relative(4)),
            Dot(q, torch.randn(1, 9, 4).double(), Relative(4)),
        ],
        "attn_mask": torch.randn(2, 1, 300, 300, dtype=q.dtype),
        "key_mask": torch.rand(2, 300) < 0.8,
        "return_lse": True,
    }
    pattern = Causal() & (Window(30) | Global(2))
    found = regard.attend(q, k, v, pattern, engine="flex", **options)
    assert made == ([70, 70, 70, 70, 20] if limit == "scores" else [128, 128, 44])
    assert_close(found, regard.attend(q, k, v, pattern, engine="dense", **options))


def test_rectangular_patterns_run_whole(monkeypatch):
    q, k, v = torch.randn(3, 1, 2, 40, 4, dtype=torch.float64)
    monkeypatch.setattr(flex, "CPU_PAIRS", 1)
    pattern = from_mask(torch.rand(40, 40) < 0.5)
    assert_close(regard.attend(q, k, v, pattern, engine="flex"), regard.attend(q, k, v, pattern, engine="dense"))


def test_runs_on_parameters_without_gradients():
    q, k, v = torch.randn(3, 1, 2, 20, 4, requires_grad=True).unbind(0)
    with torch.no_grad():
        found = regard.attend(q, k, v, Window(3), engine="flex")
    assert_close(found, regard.attend(q, k, v, Window(3), engine="dense"))


def test_what_cuda_refuses():
    """Serving is data, so it can be asked for a device that is not there."""
    request = {"device": "cuda", "dtype": torch.float32, "shape": (1, 2, 2, 9, 9, 64, 64), "grad": True}
    assert flex.serves(regard.engines.Request(**request)) == []
    small = regard.engines.Request(**request | {"shape": (1, 2, 2, 9, 9, 8, 64), "dtype": torch.float64})
    assert len(flex.serves(small)) == 2
    assert flex.serves(regard.engines.Request(**request | {"device": "cpu"})) == ["it has no backward on cpu"]
    assert regard.engines.choose("auto", regard.engines.Request(**request, pattern="Window(3, 3)")) == "flex"
    assert regard.engines.choose("auto", regard.engines.Request(**request)) == "sdpa"
    assert regard.engines.choose("auto", small) == "sdpa"
