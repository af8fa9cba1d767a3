"""ONNX files in onnxruntime: every option of attend at other sizes, names of axes, refusals, whole files or none."""

import sys

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import regard
from regard.integrations import onnx
from regard.patterns import Causal, Global, PerHead, Segments, Window, from_mask
from regard.registry import UnsupportedError
from regard.scores import Bias, Dot, Relative, Slope, SoftCap, T5Buckets

onnxruntime = pytest.importorskip("onnxruntime")


class Attention(torch.nn.Module):
    """One call of attend, with a pattern and terms of its own."""

    def __init__(self, *patterns, **options):
        super().__init__()
        self.patterns, self.options = patterns, options
        self.table = torch.nn.Parameter(torch.randn(4, 8))

    def forward(self, q, k, v, key_mask):
        options = {"key_mask": key_mask, "enable_gqa": True, "return_lse": True} | self.options
        return regard.attend(q, k, v, *self.patterns, **options)


class Terms(Attention):
    def forward(self, q, k, v, key_mask):
        terms = [
            Bias(self.table, T5Buckets(8, 16)),
            Dot(q, self.table.mT[None, :7], Relative(3)),
            Slope(),
            SoftCap(5.0),
        ]
        bias = (q[:, :1] @ k[:, :1].mT) * 0.1
        return regard.attend(q, k, v, Causal(), score=terms, key_mask=key_mask, attn_mask=bias, enable_gqa=True)


class Packed(torch.nn.Module):
    def forward(self, x, ids):
        q = x[:, None]
        return regard.attend(q, q, q, Segments(ids), is_causal=True)


def inputs(n=9, m=12, batch=2):
    q, k, v = (torch.randn(batch, heads, size, 4) for heads, size in ((4, n), (2, m), (2, m)))
    mask = torch.rand(batch, m) < 0.8
    mask[0] = False  # rows that may look at nothing
    return {"q": q, "k": k, "v": v, "key_mask": mask}


AXES = {"q": {0: "batch", 2: "queries"}, "k": {0: "batch", 2: "keys"}, "v": {0: "batch", 2: "keys"}}
AXES["key_mask"] = {0: "batch", 1: "keys"}


def run(path, given):
    session = onnxruntime.InferenceSession(path.read_bytes())
    return [torch.from_numpy(out) for out in session.run(None, {name: value.numpy() for name, value in given.items()})]


MODULES = {
    "a pattern, empty rows, lse": Attention((Window(4) | Global(2)) & ~Window(1)),
    "fewer queries than keys": Attention(is_causal=True, scale=0.3),
    "an offset": Attention(Window(3, 1), q_offset=1),
    "heads of their own": Attention(PerHead(Window(1), Causal(), Window(5), Global(1))),
    "terms and a bias": Terms(),
}


@pytest.mark.parametrize("module", [*MODULES.values()], ids=[*MODULES])
def test_attention_holds_for_every_size(module, tmp_path):
    path = onnx.export(module.eval(), inputs(), tmp_path / "attention.onnx", dynamic=AXES)
    for given in (inputs(5, 17), inputs(14, 14, batch=3)):
        expected = module(**given)
        for found, right in zip(run(path, given), expected if isinstance(expected, tuple) else [expected], strict=True):
            assert found.isfinite().any()
            assert_close(found, right.detach(), rtol=1e-5, atol=1e-5)


def test_documents_are_an_input_like_any_other(tmp_path):
    def given(n):
        return {"x": torch.randn(2, n, 4), "ids": torch.arange(n).expand(2, n) // 3}

    axes = {name: {1: "length"} for name in ("x", "ids")}
    path = onnx.export(Packed().eval(), given(8), tmp_path / "packed.onnx", dynamic=axes)
    fresh = given(13)
    assert_close(run(path, fresh)[0], Packed()(**fresh))


def test_a_file_of_a_layer_names_its_axes_and_takes_any_batch(tmp_path):
    layer = regard.create("local", dim=8, num_heads=2, window=3, causal=True).eval()
    given = {"x": torch.randn(2, 11, 8), "key_mask": torch.ones(2, 11, dtype=torch.bool)}
    path = onnx.export(layer, given, str(tmp_path / "local.onnx"))
    session = onnxruntime.InferenceSession(path.read_bytes())
    assert [(value.name, value.shape) for value in session.get_inputs()] == [
        ("x", ["batch", "length", 8]),
        ("key_mask", ["batch", "length"]),
    ]
    longer = {"x": torch.randn(5, 30, 8), "key_mask": torch.rand(5, 30) < 0.7}
    assert_close(run(path, longer)[0], layer(**longer).detach(), rtol=1e-5, atol=1e-5)


def test_a_model_around_our_layers(tmp_path):
    model = torch.nn.Sequential(
        torch.nn.Embedding(20, 8), regard.create("full", dim=8, num_heads=2, causal=True), torch.nn.Linear(8, 20)
    ).eval()
    words = torch.randint(20, (2, 9))
    path = onnx.export(model, words, tmp_path / "model.onnx", dynamic={"input": [0, 1]}, opset=20)
    session = onnxruntime.InferenceSession(path.read_bytes())
    more = torch.randint(20, (3, 16))
    (found,) = session.run(None, {"input": more.numpy()})
    assert_close(torch.from_numpy(found), model(more).detach(), rtol=1e-5, atol=1e-5)


def test_a_graph_of_one_size(tmp_path):
    layer = regard.create("criss_cross", dim=8).eval()
    x = torch.randn(1, 8, 5, 6)
    with pytest.raises(UnsupportedError, match="one size only: pass dynamic=False"):
        onnx.export(layer, x, tmp_path / "map.onnx")
    assert_close(run(onnx.export(layer, x, tmp_path / "map.onnx", dynamic=False), {"x": x})[0], layer(x).detach())


@pytest.mark.slow
def test_a_loop_over_the_length_is_refused_unless_the_length_is_fixed(tmp_path):
    layer, x = regard.create("bpt", dim=8, num_heads=2, step=2).eval(), torch.randn(2, 9, 8)
    with pytest.raises(UnsupportedError, match="one graph cannot hold for all: pass dynamic=False"):
        onnx.export(layer, x, tmp_path / "tree.onnx")
    onnx.export(layer, x, tmp_path / "tree.onnx", dynamic=False)


def test_a_pattern_that_holds_tensors_of_one_size_is_refused(tmp_path):
    module = Attention(from_mask(torch.rand(9, 12) < 0.7)).eval()
    with pytest.raises(UnsupportedError, match="made for one size"):
        onnx.export(module, inputs(), tmp_path / "attention.onnx", dynamic=AXES)
    assert not [*tmp_path.iterdir()]


def test_refusals(tmp_path):
    layer, x, path = regard.create("full", dim=8, num_heads=2), torch.randn(2, 9, 8), tmp_path / "layer.onnx"
    with pytest.raises(ValueError, match=r"training mode.*eval\(\)"):
        onnx.export(layer, x, path)
    layer.eval()
    with pytest.raises(ValueError, match="dynamic names y; the inputs are x"):
        onnx.export(layer, x, path, dynamic={"y": [1]})
    with pytest.raises(TypeError, match="a tensor, a tuple or a mapping"):
        onnx.export(layer, 3, path)
    with pytest.raises(UnsupportedError, match=r"dropout_p=0.5.*eval\(\)"):
        onnx.export(Attention(dropout_p=0.5).eval(), inputs(), path, dynamic=False)
    assert not path.exists()


def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    layer, x, path = regard.create("full", dim=8, num_heads=2).eval(), torch.randn(2, 9, 8), tmp_path / "layer.onnx"
    onnx.export(layer, x, path)
    before, translate = path.read_bytes(), onnx.translate
    other = regard.create("full", dim=8, num_heads=2).eval()
    graph = onnx.trace(other, {"x": x}, {})
    monkeypatch.setattr(onnx, "translate", lambda program, *rest: translate(graph, {"x": x}, {}))
    with pytest.raises(RuntimeError, match=r"differs from the module by .* output 0 for x \(2, 9, 8\)"):
        onnx.export(layer, x, path, dynamic=False)
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]
    onnx.export(layer, x, path, dynamic=False, verify=False)
    assert path.read_bytes() != before


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    layer, x = regard.create("full", dim=8, num_heads=2).eval(), torch.randn(2, 9, 8)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime is missing: pip install regard\[onnx\], or say verify=False"):
        onnx.export(layer, x, tmp_path / "layer.onnx")


def test_which_axes_are_dynamic():
    pair = regard.create("luong", dim=8).eval()
    given = {"x": torch.randn(2, 5, 8), "context": torch.randn(2, 7, 8), "key_mask": torch.ones(2, 7) > 0}
    assert onnx.lengths(pair, given) == {
        "x": {0: "batch", 1: "length"},
        "context": {0: "batch", 1: "context_length"},
        "key_mask": {0: "batch", 1: "key_mask_1"},
    }
    one = regard.create("dual_attention", dim=8).eval()
    assert onnx.lengths(one, {"x": torch.randn(1, 8, 5, 6)}) == {"x": {2: "height", 3: "width"}}


def test_translations_of_operators_that_torch_lacks():
    class Operators(torch.nn.Module):
        def forward(self, x):
            whole, n = x.long(), x.shape[1]
            up = torch.full((2,), -(-n // 4)) + torch.full((2,), (n - 20) // 3)  # rounded up, and below 0
            rows = x.sort(-1).values
            return (
                up,
                whole.argsort(stable=True),
                whole.argsort(descending=True, stable=True),
                whole.amax(),
                x.amax(-1),
                x.cummax(-1).values,
                whole.cummax(-1).indices,
                torch.searchsorted(rows, x),
                torch.searchsorted(rows, x, right=True),
                (x[:, :0] > 0).any(-1),
                x.mT @ x[:, 0],
                x[:, 0] @ x,
                x[0].reshape(1, -1).mT @ x[0, :1],
                x[0] @ x[1],
            )

    module, axes = Operators().eval(), {"x": {1: "length"}}
    x = (torch.randn(2, 9) * 2).round()
    written = onnx.translate(onnx.trace(module, {"x": x}, axes), {"x": x}, axes)
    session = onnxruntime.InferenceSession(written)
    for size in (9, 14):
        given = (torch.randn(2, size) * 2).round()
        for found, right in zip(session.run(None, {"x": given.numpy()}), module(given), strict=True):
            assert np.allclose(found, right.numpy(), rtol=1e-6)
