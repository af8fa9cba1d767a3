"""Finding an importer by its source, and loading weights into a module of ours."""

import pytest
import torch
from torch.testing import assert_close

from regard.authors import bind, find, load, normalise
from regard.layers import MultiHead
from regard.registry import UnsupportedError

ANNOTATED = "harvardnlp/annotated-transformer:the_annotated_transformer.py:MultiHeadedAttention"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("a/b@c0ffee:x/y.py:Class", "a/b:x/y.py:Class"),
        ("a/b@c0ffee:x/y.py:Class for the layout; attention = something else", "a/b:x/y.py:Class"),
        ("pypi transformers==5.23.0:models/z.py:Class", "transformers:models/z.py:Class"),
        ("equations: Child et al. 2019, float64 loop", "equations"),
        ("equations (arXiv 1706.03762 sec. 3; torch float64)", "equations"),
    ],
)
def test_only_what_names_the_code_counts(source, name):
    assert normalise(source) == name


@pytest.mark.parametrize(
    "source",
    [
        "torch 2.13 nn.MultiheadAttention",
        "torch.nn.MultiheadAttention",
        "pytorch/pytorch@v2.13.0:torch/nn/modules/activation.py:MultiheadAttention",
        "pypi torch==2.13.0:torch/nn/modules/activation.py:MultiheadAttention",
    ],
)
def test_a_class_is_found_under_any_spelling_of_its_home(source):
    assert find("multi_head", source) is find("multi_head", "torch:torch/nn/modules/activation.py:MultiheadAttention")


def test_unknown_sources_are_refused_with_those_that_are_known():
    with pytest.raises(UnsupportedError, match="MultiHeadedAttention"):
        find("multi_head", "someone/else:file.py:Thing")
    for name in ("nonsense", "replay"):
        with pytest.raises(UnsupportedError, match=f"no authors' weights can be loaded for '{name}'"):
            find(name, ANNOTATED)


def annotated_state(dim, dtype=torch.float32):
    return {
        f"linears.{i}.{kind}": torch.randn(*shape, dtype=dtype)
        for i in range(4)
        for kind, shape in (("weight", (dim, dim)), ("bias", (dim,)))
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loaded_layer_is_ours_with_their_weights_and_dtype(dtype):
    state = annotated_state(8, dtype)
    layer = load("multi_head", ANNOTATED, '{"h": 2, "d_model": 8}', state)
    assert isinstance(layer, MultiHead)
    assert layer.q_proj.weight.dtype == dtype
    assert_close(layer.v_proj.bias, state["linears.2.bias"])
    assert layer(torch.randn(2, 5, 8, dtype=dtype)).shape == (2, 5, 8)


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(RuntimeError, match="size mismatch"):
        load("multi_head", ANNOTATED, {"h": 2, "d_model": 16}, annotated_state(8))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        load("multi_head", ANNOTATED, {"h": 2, "d_model": 8}, annotated_state(8) | {"other": torch.zeros(1)})


def test_inputs_are_bound_by_place_by_keyword_and_by_name():
    x, y, m = torch.zeros(1), torch.ones(1), torch.ones(2)
    bound = bind(
        {"x": x, "y": y, "mask": m}, {"args": ["x", "y"], "kwargs": {"value": "x"}}, "query", "key", "value", "mask"
    )
    assert [bound[name] is t for name, t in (("query", x), ("key", y), ("value", x), ("mask", m))] == [True] * 4
    assert bind({"x": x}, {"args": ["some remark"]}, "x") == {"x": x}
