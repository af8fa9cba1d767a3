"""What the native engine offers and refuses, in words, and where its results lie."""

import gc
import weakref

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.engines import native_library
from regard.engines.native_plan import native_part
from regard.patterns import Causal, Window
from regard.scores import Bias, Dot, Relative, RelativeGrid, Slope, SoftCap, T5Buckets
from tests.engines.native_library import EXPECTED, ISAS, MISSING, needs_native


@pytest.mark.skipif(not EXPECTED, reason="REGARD_NATIVE does not ask for the library")
def test_the_library_is_there_where_it_is_asked_for():
    assert MISSING is None
    assert "native" in regard.engines("cpu")
    assert ISAS[-1] == "portable"


def test_without_the_library_all_else_runs(monkeypatch):
    monkeypatch.setenv("REGARD_NATIVE", "0")
    q = torch.randn(1, 2, 70, 4)
    assert "native" not in regard.engines("cpu")
    assert regard.explain(q, q, q, Window(3)).engine == "tiles"
    assert regard.attend(q, q, q, Window(3)).shape == q.shape
    with pytest.raises(
        regard.UnsupportedError, match="'native' cannot serve this: REGARD_NATIVE=0 hides regard-native"
    ):
        regard.attend(q, q, q, Window(3), engine="native")


def test_a_library_that_does_not_load_is_told(monkeypatch, tmp_path):
    (tmp_path / "broken.so").write_bytes(b"not a library")
    for name in ("broken.so", "absent.so"):
        monkeypatch.setenv("REGARD_NATIVE", str(tmp_path / name))
        assert native_library.missing().startswith("regard-native does not load: ")
        assert name in native_library.missing()
        assert "native" not in regard.engines("cpu")
        with pytest.raises(RuntimeError, match="does not load"):
            native_library.library()


@needs_native
def test_the_instruction_set_can_be_chosen(isa, monkeypatch):
    assert native_library.isa() == isa
    monkeypatch.delenv("REGARD_ISA")
    best = native_library.isa()
    for other in ("", "sse9"):  # one that there is not is passed over: a setting for another machine does no harm
        monkeypatch.setenv("REGARD_ISA", other)
        assert native_library.isa() == best


@needs_native
@pytest.mark.parametrize("isa_of", ["avx512", "avx2"])
def test_instruction_sets_are_those_of_the_processor(isa_of):
    try:
        with open("/proc/cpuinfo") as file:
            flags = next(line for line in file if line.startswith("flags")).split()
    except (OSError, StopIteration):
        pytest.skip("this system does not tell its processor's flags")
    wanted = {"avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"}, "avx2": {"avx2", "fma", "f16c"}}[isa_of]
    assert (isa_of in ISAS) == (wanted <= set(flags))


@needs_native
def test_native_comes_first_but_for_a_few_queries():
    q = torch.randn(1, 2, 70, 4)
    assert regard.explain(q, q, q).engine == "native"
    assert regard.explain(q[:, :, :4], q, q).engine == "sdpa"
    assert regard.explain(q[:, :, :4], q, q, Window(3)).engine == "native"
    assert regard.explain(q, q, q, Window(3)).engine == "native"
    assert regard.explain(q, q, q, dropout_p=0.1).engine == "native"
    assert regard.explain(q, q, q, score=Dot(q, torch.zeros(1, 5, 4), Relative(2))).engine == "tiles"
    long = torch.empty(1, 2, 1 << 16, 4)
    told = regard.explain(long, long, long, Window(3) & Causal())
    assert told.memory[1] < 4 * (1 << 20)  # a number or two for each query, and nothing like N x M


def own_index(i, j):
    return (i - j).abs() % 5


@needs_native
@pytest.mark.parametrize(
    ("terms", "told"),
    [
        (lambda q: [Dot(q, torch.zeros(1, 5, 4), Relative(2))], r"does not know the score term Dot\(Relative\(2\)\)"),
        (lambda q: [Bias(torch.zeros(1, 5), own_index)], r"does not know the score term Bias\(own_index"),
        (lambda q: [SoftCap(2.0), Slope(), SoftCap(3.0)], "takes one SoftCap only"),
    ],
)
def test_terms_that_it_refuses(terms, told):
    q = torch.randn(1, 2, 7, 4)
    score = terms(q)
    with pytest.raises(regard.UnsupportedError, match=told):
        regard.attend(q, q, q, score=score, engine="native")
    assert regard.explain(q, q, q, score=score).engine == "tiles"


@needs_native
def test_other_refusals():
    q = torch.randn(1, 2, 7, 4, device="meta")
    with pytest.raises(regard.UnsupportedError, match="meta"):
        regard.attend(q, q, q, engine="native")


@needs_native
@pytest.mark.parametrize("value_width", [8, 5])
def test_results_lie_as_the_inputs_do(value_width):
    """A layer's heads stand behind each other in a row: it joins them without a copy, forward and backward."""
    q, k = (torch.randn(2, 70, 3, 8).transpose(1, 2).requires_grad_() for _ in range(2))
    v = torch.randn(2, 70, 3, value_width).transpose(1, 2).requires_grad_()
    out = regard.attend(q, k, v, Window(3), engine="native")
    if value_width == 8:
        assert out.transpose(1, 2).is_contiguous()
    for grad in torch.autograd.grad(out.sum(), (q, k, v)):
        assert grad.transpose(1, 2).is_contiguous()


@needs_native
def test_inputs_are_not_written_to():
    q, k, v = torch.randn(3, 2, 3, 70, 8).unbind(0)
    mask, bias, table = torch.rand(2, 70) < 0.5, torch.randn(70, 70), torch.randn(3, 9)
    tensors = [q, k, v, mask, bias, table]
    before = [tensor.clone() for tensor in tensors]
    leaves = [tensor.requires_grad_() for tensor in (q, k, v, bias, table)]
    out, lse = regard.attend(
        q, k, v, attn_mask=bias, key_mask=mask, score=Bias(table, Relative(4)), engine="native", return_lse=True
    )
    (out.sin().sum() + lse[lse.isfinite()].sum()).backward()
    assert_close(tensors, before, rtol=0, atol=0)
    assert all(leaf.grad is not None for leaf in leaves)


@needs_native
def test_only_what_is_wanted_has_a_gradient():
    """Any choice of the inputs gets the gradients that it gets among all."""
    q, k, v = torch.randn(3, 2, 3, 70, 8).unbind(0)
    inputs = [q, k, v, torch.randn(3, 70, 1), torch.randn(3, 32), torch.rand(3)]

    def gradients(chosen):
        leaves = [tensor.detach().requires_grad_(number in chosen) for number, tensor in enumerate(inputs)]
        q, k, v, bias, table, slopes = leaves
        terms = [Bias(table, T5Buckets(32, 50)), Slope(slopes)]
        out = regard.attend(q, k, v, Window(20), attn_mask=bias, score=terms, engine="native")
        return torch.autograd.grad(out.sin().sum(), [leaves[number] for number in chosen])

    whole = gradients(range(6))
    for number in range(6):
        assert_close(gradients([number]), (whole[number],), rtol=0, atol=0)


@needs_native
@pytest.mark.parametrize("grid", [(70,), (7, 10), (2, 5, 7)])
@pytest.mark.parametrize("offset", [0, 3])
def test_tables_over_grids(isa, grid, offset):
    q, k, v = torch.randn(3, 1, 2, 70, 4, dtype=torch.float64).requires_grad_().unbind(0)
    index = RelativeGrid(grid, tuple(max(1, side - 1) for side in grid))
    table = torch.randn(2, index.size, dtype=torch.float64, requires_grad=True)
    results = []
    for engine in ("native", "dense"):
        out = regard.attend(q, k, v, score=Bias(table, index), q_offset=offset, engine=engine)
        results.append([out, *torch.autograd.grad(out.sin().sum(), (q, k, v, table))])
    assert_close(*results)


@needs_native
def test_a_plan_goes_with_all_that_the_kernels_read_of_it():
    part = Window(3).plan(200, 200, None, None, 64).parts[0]
    watched = weakref.ref(part), weakref.ref(native_part(part))
    assert native_part(part) is watched[1]()
    del part
    gc.collect()
    assert [found() for found in watched] == [None, None]
