import pytest
import torch
from torch import nn

import regard
from regard import registry
from regard.layers import MultiHead
from regard.registry import Card, Core, Layer, Sample, UnsupportedError, register


def card(**fields):
    return Card(**{"title": "t", "paper": "p", "year": 1, "family": "fake", "data": "sequence", **fields})


@pytest.fixture(autouse=True)
def _fakes(monkeypatch):
    """One mechanism of each kind, gone after the test."""
    regard.names()  # what is imported registers once, so all of it before the registry is set aside
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    @register("fake_core", samples=[Sample()], aliases=["fake_alias"])
    class FakeCore(Core):
        card = card(refuses={"causal": "all is one", "window": "it has no edges"})

        def __init__(self, num_heads, head_dim, max_length, rank=3, *, attn_drop=0.0, device=None, dtype=None):
            super().__init__()
            self.seen = (num_heads, head_dim, max_length, rank, device, dtype)
            self.attn_drop = attn_drop

    @register("fake_layer", samples=[Sample()])
    class FakeLayer(Layer):
        card = card(causal="strict", family="other")

        def __init__(self, dim, num_heads=2):
            super().__init__()
            self.seen = (dim, num_heads)

    @register("fake_map", samples=[Sample()])
    class FakeMap(Layer):
        card = card(data="map")

        def __init__(self, dim):
            super().__init__()
            self.seen = dim


def test_a_core_gets_what_it_has_and_multi_head_the_rest():
    layer = regard.create(
        "fake_core",
        dim=12,
        num_heads=3,
        causal=False,
        max_length=9,
        rank=5,
        num_kv_heads=1,
        qkv_bias=False,
        qk_norm=True,
        rotary=100.0,
        attn_drop=0.1,
        proj_drop=0.2,
        device="cpu",
        dtype=torch.float64,
    )
    assert isinstance(layer, MultiHead)
    assert layer.core.seen == (3, 4, 9, 5, "cpu", torch.float64)
    assert (layer.core.attn_drop, layer.proj_drop.p, layer.rotary.base) == (0.1, 0.2, 100.0)
    assert (layer.num_kv_heads, layer.head_dim, layer.q_proj.bias) == (1, 4, None)
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.float64}
    assert isinstance(layer.q_norm, nn.RMSNorm)


def test_a_head_width_of_its_own_reaches_both():
    layer = regard.create("fake_core", dim=12, num_heads=5, max_length=9, head_dim=7)
    assert layer.core.seen[:2] == (5, 7)
    assert layer.q_proj.weight.shape == (35, 12)


def test_a_layer_gets_what_it_has():
    assert regard.create("fake_layer", dim=12, num_heads=3, causal=True, max_length=9, device="cpu").seen == (12, 3)
    assert regard.create("fake_layer", dim=12).seen == (12, 2)
    assert regard.create("fake_map", dim=12, num_heads=3).seen == 12


def test_a_core_alone():
    core = regard.core("fake_core", num_heads=3, head_dim=4, max_length=9, causal=False, num_kv_heads=1)
    assert core.seen == (3, 4, 9, 3, None, None)
    assert type(regard.core("linear_transformer", head_dim=64)).__name__ == "LinearTransformer"
    with pytest.raises(UnsupportedError, match=r"fake_layer has no core.*use regard.create"):
        regard.core("fake_layer")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fake_core", {"causal": True}, "^fake_core cannot be causal: all is one$"),
        ("fake_alias", {"causal": True}, "^fake_core cannot be causal: all is one$"),
        ("fake_core", {"window": 5}, "^fake_core cannot honour window=5: it has no edges$"),
        ("fake_layer", {"causal": False}, "^fake_layer is always causal$"),
        ("fake_map", {"causal": True, "num_heads": None}, "^fake_map cannot be causal$"),
        ("linear_transformer", {"attn_drop": 0.1}, "cannot honour attn_drop=0.1: it never forms weights"),
    ],
)
def test_what_a_mechanism_cannot_honour(name, options, message):
    with pytest.raises(UnsupportedError, match=message):
        regard.create(name, **{"dim": 12, "num_heads": 3, **options})


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("heads", "num_heads"),
        ("nhead", "num_heads"),
        ("dim_head", "head_dim"),
        ("embed_dim", "dim"),
        ("dropout", "attn_drop or proj_drop"),
        ("is_causal", "causal"),
        ("max_seq_len", "max_length"),
        ("rnak", "rank"),
        ("qk_nrom", "qk_norm"),
    ],
)
def test_the_wrong_word_names_the_right_one(theirs, ours):
    with pytest.raises(TypeError, match=f"^fake_core has no option '{theirs}': the word is {ours}$"):
        regard.create("fake_core", **{theirs: 1})


def test_unknown_options_list_what_there_is():
    with pytest.raises(TypeError, match=r"fake_core has no option 'zzz': it takes dim, .*rank"):
        regard.create("fake_core", dim=12, num_heads=3, max_length=9, zzz=1)
    with pytest.raises(TypeError, match=r"fake_map has no option 'max_length'"):
        regard.create("fake_map", dim=12, num_heads=3, max_length=9)


def test_what_is_missing_is_named():
    with pytest.raises(TypeError, match="fake_core needs dim and num_heads, got dim=12 and num_heads=None"):
        regard.create("fake_core", dim=12)
    with pytest.raises(TypeError, match=r"fake_core needs max_length$"):
        regard.create("fake_core", dim=12, num_heads=3)
    with pytest.raises(TypeError, match=r"fake_layer needs dim$"):
        regard.create("fake_layer")


@pytest.mark.parametrize("sizes", [{"dim": 12, "num_heads": 5}, {"dim": 0, "num_heads": 1}, {"dim": 4, "num_heads": 0}])
def test_sizes_that_cannot_be(sizes):
    with pytest.raises(ValueError, match=r"dim=\d+.*num_heads=\d"):
        regard.create("fake_core", max_length=9, **sizes)


@pytest.mark.parametrize("wrong", ["liner_transformer", "linear-transformer", "LinearTransformer"])
def test_unknown_names_bring_the_nearest(wrong):
    with pytest.raises(ValueError, match=f"no mechanism is called '{wrong}': did you mean 'linear_transformer'"):
        regard.create(wrong, dim=12, num_heads=3)
    with pytest.raises(ValueError, match=r"no mechanism is called 'qqqq': there are .*linear_transformer"):
        regard.card("qqqq")


def test_names_are_filtered():
    assert {"fake_core", "fake_layer", "fake_map", "linear_transformer", "multi_head"} <= set(regard.names())
    assert regard.names() == sorted(regard.names())
    assert "full" not in regard.names()
    assert "fake_alias" not in regard.names()
    assert regard.names(family="fake") == ["fake_core", "fake_map"]
    assert "fake_core" not in regard.names(data="map")
    assert "fake_map" in regard.names(data="map", causal=False)
    strict = regard.names(causal="strict")
    assert {"fake_layer", "linear_transformer"} <= set(strict)
    assert "fake_core" not in strict
    assert set(strict) <= set(regard.names(causal=True))
    assert not set(regard.names(causal=True)) & set(regard.names(causal=False))


def test_full_is_multi_head():
    assert regard.card("full") is regard.card("multi_head")
    assert regard.create("full", dim=4, num_heads=1).mechanism == "multi_head"
