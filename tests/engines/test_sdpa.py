"""What only the sdpa engine has: keys cut where torch's causality differs, and torch's public function elsewhere."""

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.engines import Request, recompute, sdpa
from regard.engines.packing import pack, unpack


@pytest.mark.parametrize("offset", range(-9, 14, 2))
@pytest.mark.parametrize(("n", "m"), [(6, 9), (9, 6), (1, 5)])
def test_any_offset(n, m, offset):
    leaves = [torch.randn(1, 2, size, 4, dtype=torch.float64, requires_grad=True) for size in (n, m, m)]
    options = {"is_causal": True, "q_offset": offset, "attn_mask": torch.rand(2, n, m) < 0.6, "return_lse": True}
    results = []
    for engine in ("sdpa", "dense"):
        out, lse = regard.attend(*leaves, **options, engine=engine)
        loss = out.sin().sum() + lse.masked_fill(lse == -torch.inf, 0.0).sin().sum()
        results.append([out, lse, *torch.autograd.grad(loss, leaves)])
    assert_close(*results)


def test_no_score_matrix_for_other_value_widths():
    """torch itself would form it; 16 heads of 3000 x 3000 scores are 576 MB."""
    q, k, v = (torch.randn(1, 16, 3000, width) for width in (8, 8, 12))
    with torch.profiler.profile(profile_memory=True) as profile:
        regard.attend(q, k, v, engine="sdpa")
    assert max(event.self_cpu_memory_usage for event in profile.events()) < 50e6


@pytest.mark.parametrize("pattern", ["Full()", "Causal()"])
def test_the_way_of_other_devices(pattern):
    """Their forward and backward are device-independent, so they can be run here."""
    leaves = [torch.randn(2, heads, 7, 4, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    spec, tensors = pack(pattern, (), None, None, (), None)
    problem = unpack(*leaves, tensors, spec, None, 0.3, 0.0)
    expected = regard.attend(*leaves, is_causal=pattern == "Causal()", scale=0.3, enable_gqa=True, engine="dense")
    assert_close(sdpa._public(problem)[0], expected)
    grad = torch.randn_like(expected)
    found = recompute.gradients(sdpa._public, problem, grad, None, [True, True, True, False])
    assert_close(list(found[:3]), list(torch.autograd.grad(expected, leaves, grad)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pattern": "Window(3, 3)"}, "full and the causal pattern only"),
        ({"terms": ("Bias",)}, "score terms Bias"),
        ({"dropout": True}, "no dropout"),
        ({"attn_mask": torch.float32, "mask_grad": True}, "no gradient"),
        ({"attn_mask": torch.float64}, "float64"),
        ({"attn_mask": torch.bool, "mask_rows": True, "key_mask": True}, "joint mask"),
        ({"attn_mask": torch.bool, "mask_groups": True}, "expanded"),
        ({"device": "cuda", "key_mask": True}, "NaN"),
        ({"device": "cuda", "lse": True}, "lse"),
        ({"device": "cuda", "pattern": "Causal()", "shifted": True}, "as many queries as keys"),
    ],
)
def test_reasons(change, words):
    request = {"device": "cpu", "dtype": torch.float32, "shape": (1, 2, 2, 9, 9, 64, 64)}
    assert sdpa.serves(Request(**request)) == []
    reasons = sdpa.serves(Request(**request | change))
    assert len(reasons) == 1
    assert words in reasons[0]
