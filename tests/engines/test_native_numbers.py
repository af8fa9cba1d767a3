"""The native kernels compute what the definition does: every instruction set, dtype, layout, mask and term."""

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.patterns import Causal, Window
from regard.scores import SoftCap
from tests.engines.native_library import needs_native
from tests.engines.native_problems import in_double, native_problem
from tests.engines.problems import attend_and_gradients
from tests.samples import some_daily

pytestmark = needs_native
INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("seed", [*some_daily(range(60), 20)])
def test_float64(isa, seed):
    leaves, options = native_problem(seed)
    found, expected = (attend_and_gradients(name, leaves, options) for name in ("native", "dense"))
    assert_close(found, expected, rtol=1e-9, atol=1e-9)


def outputs_and_gradients(engine, leaves, options, slopes):
    """out and lse with 0 for empty rows, and all gradients for these gradients of out and lse, in float64."""
    options = {**options, "engine": engine, "return_lse": True}
    out, lse = regard.attend(leaves["query"], leaves["key"], leaves["value"], **options)
    lse = lse.masked_fill(lse == -INF, 0.0)
    ends = [(out * slopes[0].to(out.dtype)).sum(), (lse * slopes[1].to(lse.dtype)).sum()]
    found = [out, lse, *torch.autograd.grad(ends, list(leaves.values()), materialize_grads=True)]
    return [tensor.double() for tensor in found]


# Measured on 60 seeds: (6e-7, 3e-7, 6e-6), (3.4e-3, 3e-7, 3.1e-2), (3.9e-4, 3e-7, 4.4e-3); tiles is no nearer.
@pytest.mark.parametrize(
    ("dtype", "limits"),
    [
        (torch.float32, (2e-6, 2e-6, 2e-5)),
        (
            torch.bfloat16,
            (4e-3, 2e-6, 6e-2),
        ),  # the inputs are exact; out is rounded once, and the gradients start there
        (torch.float16, (5e-4, 2e-6, 8e-3)),
    ],
)
@pytest.mark.parametrize("seed", range(1000, 1012))
def test_other_dtypes(isa, seed, dtype, limits):
    """Errors as shares of the largest value: of out, of lse, of each gradient."""
    leaves, options = native_problem(seed, dtype)
    shape = (*leaves["query"].shape[:-1], leaves["value"].shape[-1])
    slopes = torch.randn(shape).to(dtype), torch.randn(shape[:-1])
    found = outputs_and_gradients("native", leaves, options, slopes)
    expected = outputs_and_gradients("dense", *in_double(leaves, options), slopes)
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        error = (one - other).abs().max() / other.abs().max().clamp(min=1e-3)
        assert error <= limits[min(number, 2)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_numbers_are_read_and_written_exactly(isa, dtype):
    """All 65536 of them: a query that sees one key returns its value. Below 2^-126 the kernels may take it for 0."""
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    value = bits.view(dtype).view(1, 1, 256, 256)
    finite = value.isfinite().all(-1)[0, 0]
    assert finite.sum() > 200
    value = value[:, :, finite]
    query = torch.zeros(1, 1, value.shape[2], 3, dtype=dtype)
    found = regard.attend(query, query, value, Window(0), engine="native")
    tiny = value.float().abs() < torch.finfo(torch.float32).tiny
    assert_close(found.masked_fill(tiny, 0), value.masked_fill(tiny, 0), rtol=0, atol=0)


def test_numbers_are_rounded_to_the_nearest_half(isa):
    """Two values and their mean, which stands exactly between two halves or not: torch rounds the same way."""
    value = torch.randn(1, 1, 2, 200).abs() * 2.0 ** torch.randint(-30, 16, (200,))
    for dtype in (torch.bfloat16, torch.float16):
        pair = value.to(dtype)
        query = torch.zeros(1, 1, 2, 1, dtype=dtype)
        found = regard.attend(query, query, pair, engine="native")
        mean = (pair.float().mean(-2, keepdim=True)).to(dtype).expand(pair.shape)
        assert_close(found, mean, rtol=0, atol=0)


# --- huge, infinite and missing numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constant", [-1e4, -1e9, -1e30, torch.finfo(torch.float32).min, 1e30])
def test_masks_of_huge_constants(isa, dtype, constant):
    """A row that is hidden by a finite number everywhere is uniform where the number swallows the scores."""
    q, k, v = torch.randn(3, 1, 2, 150, 16, dtype=dtype).unbind(0)
    mask = torch.zeros(150, 150, dtype=dtype)
    mask[3], mask[:, 70:] = constant, constant
    found, expected = (
        regard.attend(q, k, v, attn_mask=mask, engine=name, return_lse=True) for name in ("native", "dense")
    )
    tolerance = 1e-3 if abs(constant) == 1e4 and dtype == torch.float32 else 1e-5
    assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_scores(isa, dtype):
    q, k, v = torch.randn(3, 1, 2, 150, 16, dtype=dtype).unbind(0)
    for size in (1e3, 1e30):
        found, expected = (regard.attend(q * size, k, v, engine=name, return_lse=True) for name in ("native", "dense"))
        assert_close(found, expected, rtol=1e-3, atol=1e-3)


def touched(engine, edit, pattern=None, **options):
    """Which rows of out and of lse are NaN, after an edit of random q, k, v."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 150, 8).unbind(0)
    edit(q, k, v)
    out, lse = regard.attend(q, k, v, pattern, engine=engine, return_lse=True, **options)
    return out.isnan().any(-1), lse.isnan()


@pytest.mark.parametrize("wrong", [NAN, INF])
@pytest.mark.parametrize("options", [{}, {"pattern": Causal()}, {"score": SoftCap(2.0)}])
@pytest.mark.parametrize("row", [5, 70, 149])
def test_broken_numbers_reach_those_who_see_them(isa, wrong, options, row):
    for edit in (lambda q, k, v: q[..., row, :].fill_(wrong), lambda q, k, v: k[..., row, :].fill_(wrong)):
        found, expected = (touched(name, edit, **options) for name in ("native", "dense"))
        assert_close(found, expected)
        assert expected[0].any()


@pytest.mark.parametrize("wrong", [NAN, INF])
def test_broken_numbers_of_hidden_keys_reach_nobody(isa, wrong):
    mask = torch.ones(150, dtype=torch.bool)
    mask[[3, 63, 149]] = False
    for options in ({"key_mask": mask}, {"attn_mask": mask}):
        out, lse = touched("native", lambda q, k, v: k[..., ~mask, :].fill_(wrong), **options)
        assert not out.any()
        assert not lse.any()


def test_broken_numbers_out_of_sight_of_everybody(isa):
    """Whole tiles beyond the window: neither keys nor values, forward or backward."""
    q, k, v = (t.clone() for t in torch.randn(3, 1, 2, 300, 8).unbind(0))
    k[..., 200:, :], v[..., 200:, :] = NAN, NAN
    q, k, v = (t.requires_grad_() for t in (q[..., :100, :], k, v))
    out = regard.attend(q, k, v, Window(3), q_offset=0, engine="native")
    grads = torch.autograd.grad(out.sum(), (q, k, v))
    assert not any(tensor.isnan().any() for tensor in (out, *grads))


def test_a_view_that_negates():
    """torch keeps the sign of such a view apart from its numbers."""
    q, mask = (torch.randn(*shape, dtype=torch.complex128).conj().imag for shape in ((1, 2, 20, 4), (20, 20)))
    assert q.is_neg()
    assert mask.is_neg()
    results = []
    for name in ("native", "dense"):
        leaf = q.detach().requires_grad_()
        out, lse = regard.attend(leaf, leaf, leaf, attn_mask=mask, engine=name, return_lse=True)
        grads = torch.autograd.grad([out, lse], leaf, [q, mask.sum(0).expand(1, 2, 20)])
        results.append([out, lse, *grads])
    assert_close(*results)
