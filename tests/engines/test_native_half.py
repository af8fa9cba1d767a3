"""Attention of bfloat16 inputs on units made for it: AVX512-BF16 where there is one, AMX real and emulated.

AMX is tested on any machine with a compiler: the same code is built on tile instructions emulated in C++.
"""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import regard
from regard.engines import native_library
from regard.patterns import Blocks, Causal, Full, Global, PerHead, Strided, Window
from tests.engines.native_library import ISAS, needs_native
from tests.engines.native_problems import in_double, native_problem
from tests.samples import some_daily

SOURCE = Path(__file__).parents[2] / "native"
INF, NAN = float("inf"), float("nan")


@pytest.fixture(scope="session")
def emulated(request):
    """A library with the emulation, built once and kept with pytest's cache."""
    if not (shutil.which("cmake") and shutil.which("c++")):
        pytest.skip("no cmake or no C++ compiler to build the emulation of AMX with")
    fcntl = pytest.importorskip("fcntl")
    folder = request.config.cache.mkdir("regard_native_amx")
    with open(folder / "lock", "w") as lock:  # pytest's workers share the folder
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (["-S", SOURCE, "-B", folder, "-DREGARD_EMULATE_AMX=ON"], ["--build", folder]):
            subprocess.run(["cmake", *command], check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob("libregard_native.*"))


@pytest.fixture(params=["avx512bf16", "amx", "amx_emulated"])
def units(request, monkeypatch):
    """Each way to multiply that can run here."""
    if request.param == "amx_emulated":
        monkeypatch.setenv("REGARD_NATIVE", str(request.getfixturevalue("emulated")))
    elif request.param not in ISAS:
        pytest.skip(f"no {request.param} here")
    monkeypatch.setenv("REGARD_ISA", request.param)
    assert native_library.isa() == request.param
    return request.param


def outputs_and_gradients(engine, leaves, options, slopes):
    """out and lse with 0 for empty rows, and all gradients for these gradients of out and lse, in float64."""
    out, lse = regard.attend(leaves["query"], leaves["key"], leaves["value"], **options, engine=engine, return_lse=True)
    lse = lse.masked_fill(lse == -INF, 0.0)
    ends = [(out * slopes[0].to(out.dtype)).sum(), (lse * slopes[1].to(lse.dtype)).sum()]
    found = [out, lse, *torch.autograd.grad(ends, list(leaves.values()), materialize_grads=True)]
    return [tensor.double() for tensor in found]


def share_of_largest(found, expected):
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-3)).item()


@pytest.mark.parametrize("seed", [*some_daily(range(3000, 3030), 10)])
def test_random_problems(units, seed):
    """Errors as shares of the largest value of out, of lse and of each gradient; measured: 4e-3, 2e-7 and 8.3e-3."""
    torch.set_num_threads(1 + 2 * (seed % 2))
    leaves, options = native_problem(seed, torch.bfloat16)
    shape = (*leaves["query"].shape[:-1], leaves["value"].shape[-1])
    slopes = torch.randn(shape).bfloat16(), torch.randn(shape[:-1])
    found = outputs_and_gradients("native", leaves, options, slopes)
    expected = outputs_and_gradients("dense", *in_double(leaves, options), slopes)
    errors = [share_of_largest(one, other) for one, other in zip(found, expected, strict=True)]
    assert errors[0] <= 8e-3
    assert errors[1] <= 1e-6
    assert max(errors[2:]) <= 1.6e-2


def matrix(*shape):
    return torch.randn(shape).bfloat16()


@pytest.mark.parametrize(
    ("n", "m", "width", "causal"),
    [
        *((64, 64, 64, False), (200, 200, 64, False), (130, 130, 80, False), (70, 333, 128, False)),
        *((64, 64, 64, True), (200, 200, 64, True), (130, 130, 80, True), (90, 90, 24, True)),
    ],
)
def test_as_near_as_torch(units, n, m, width, causal):
    """out and gradients are about as far from float64 as those of torch's own bfloat16; measured: 0.6 to 1.005."""
    leaves = [matrix(2, 3, rows, width).requires_grad_() for rows in (n, m, m)]
    slope = matrix(2, 3, n, width)

    def errors(attend):
        out = attend(*leaves)
        exact = regard.attend(*wide, is_causal=causal, engine="dense")
        pairs = zip(
            (out, *torch.autograd.grad(out, leaves, slope)),
            (exact, *torch.autograd.grad(exact, wide, slope.double())),
            strict=True,
        )
        return torch.stack([(found.double() - expected).norm() for found, expected in pairs])

    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    ours = errors(lambda *qkv: regard.attend(*qkv, is_causal=causal, engine="native"))
    theirs = errors(lambda *qkv: scaled_dot_product_attention(*qkv, is_causal=causal))
    assert (ours <= 1.5 * theirs).all()


PATTERNS = [
    *(Full(), Causal(), Window(20) | Global(3), Strided(32) | Window(3), Blocks(20)),
    PerHead(Window(5), Strided(7), Window(9), Strided(5)),
]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize("n", [64, 301])
def test_parts_and_draws_are_those_of_float32(units, n, pattern, dropout):
    """Forward and backward, in one part, in two that are joined, in one for each kind of head; the same pairs go."""
    leaves = [matrix(2, heads, n, 33).requires_grad_() for heads in (4, 2, 2)]
    slope = matrix(2, 4, n, 33)

    def results(leaves):
        generator = torch.Generator().manual_seed(1)
        options = {"dropout_p": dropout, "enable_gqa": True, "generator": generator, "engine": "native"}
        out = regard.attend(*leaves, pattern, **options)
        return [out, *torch.autograd.grad(out, leaves, slope.to(out.dtype))]

    expected = results([leaf.detach().float().requires_grad_() for leaf in leaves])
    for found, exact in zip(results(leaves), expected, strict=True):
        assert share_of_largest(found.float(), exact) <= 2e-2


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 31, 33, 47, 63, 65])
def test_every_remainder(units, count):
    """Rows, keys and widths that do not fill a product: what is read beyond them counts as zeros."""
    for n, m, width, value_width in (
        (count, 64, 64, 64),
        (64, count, 64, 64),
        (64, 64, count, 64),
        (64, 64, 64, count),
    ):
        leaves = [matrix(1, 2, *shape).requires_grad_() for shape in ((n, width), (m, width), (m, value_width))]
        slope = matrix(1, 2, n, value_width)
        wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
        out, exact = regard.attend(*leaves, engine="native"), regard.attend(*wide, engine="dense")
        found = [out, *torch.autograd.grad(out, leaves, slope)]
        expected = [exact, *torch.autograd.grad(exact, wide, slope.double())]
        for one, other in zip(found, expected, strict=True):
            assert share_of_largest(one.double(), other) <= 1.2e-2


def test_empty_rows_and_very_negative_scores(units):
    """A row without keys is 0; where all scores are far below 0, a key that does not exist must not count."""
    q, k, v = matrix(1, 1, 70, 64), matrix(1, 1, 70, 64), matrix(1, 1, 70, 64).requires_grad_()
    q[..., 0], k[..., 0] = -400.0, 400.0
    mask = torch.ones(70, 70, dtype=torch.bool)
    mask[5], mask[66] = False, False
    leaves = [q.requires_grad_(), k.requires_grad_(), v]
    out, lse = regard.attend(*leaves, attn_mask=mask, engine="native", return_lse=True)
    grads = torch.autograd.grad(out, leaves, matrix(*out.shape))
    assert lse.max() < -1000
    assert (lse == -INF).flatten().nonzero().flatten().tolist() == [5, 66]
    assert not out[0, 0, [5, 66]].any()
    assert not grads[0][0, 0, [5, 66]].any()
    assert all(tensor.isfinite().all() for tensor in (out, *grads))


@pytest.mark.parametrize("wrong", [NAN, INF])
def test_broken_numbers(units, wrong):
    """Keys that are hidden reach nobody; tiles that nobody sees are not read."""
    mask = torch.ones(150, dtype=torch.bool)
    mask[[3, 63, 149]] = False
    q, k, v = matrix(1, 1, 150, 64), matrix(1, 1, 150, 64), matrix(1, 1, 150, 64)
    k[..., ~mask, :] = wrong
    assert regard.attend(q, k, v, key_mask=mask, engine="native").isfinite().all()
    k, v = matrix(1, 1, 300, 64), matrix(1, 1, 300, 64)
    k[..., 200:, :], v[..., 200:, :] = wrong, wrong
    leaves = [t.requires_grad_() for t in (q[..., :100, :], k, v)]
    out = regard.attend(*leaves, Window(3), q_offset=0, engine="native")
    assert all(t.isfinite().all() for t in (out, *torch.autograd.grad(out.float().sum(), leaves)))


@needs_native
def test_the_choice(monkeypatch):
    """Matrix units where there are any, dot products where they beat float32, and what REGARD_ISA names before all."""
    monkeypatch.delenv("REGARD_ISA", raising=False)
    told = Path("/proc/cpuinfo")
    amd = told.exists() and "AuthenticAMD" in told.read_text()
    assert native_library.isa() == next(name for name in ISAS if amd or name != "avx512bf16")
    for name in ISAS:
        monkeypatch.setenv("REGARD_ISA", name)
        assert native_library.isa() == name
