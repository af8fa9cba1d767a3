"""Names and layouts of haiku, and modules that wait for their weights."""

import torch
from torch import nn
from torch.testing import assert_close

from regard.authors.haiku import linear, made_for_weights, named, of_module, projection_in, projection_out, within

STATE = {
    "root/block/left//weights": torch.randn(3, 2),
    "root/block/left//bias": torch.randn(2),
    "root/block//b": torch.ones(1),
}


def test_paths():
    state = of_module(STATE)
    assert list(state) == ["left//weights", "left//bias", "//b"]
    assert list(within(state, "left")) == ["//weights", "//bias"]
    assert not within(state, "lef")
    assert list(of_module({"alone//w": torch.ones(1)})) == ["//w"]
    assert list(named({"part": {"weight": torch.ones(1)}, "": {"bias": torch.ones(1)}})) == ["part.weight", "bias"]


def test_layouts():
    x, found = torch.randn(5, 3), linear(of_module(STATE), "left")
    weights, bias = STATE["root/block/left//weights"], STATE["root/block/left//bias"]
    assert_close(nn.functional.linear(x, **found), x @ weights + bias)
    query, out = torch.randn(3, 2, 4), torch.randn(2, 4, 6)
    assert_close((x @ projection_in(query).T).unflatten(-1, (2, 4)), torch.einsum("na,ahc->nhc", x, query))
    mixed = torch.randn(5, 2, 4)
    assert_close(mixed.flatten(1) @ projection_out(out).T, torch.einsum("nhc,hco->no", mixed, out))


def test_a_module_comes_with_its_weights_and_loads_others_later():
    module = made_for_weights(lambda state: nn.Linear(*state["weight"].T.shape))
    for state in (nn.Linear(3, 2, dtype=torch.float64).state_dict(), nn.Linear(3, 2).state_dict()):
        module.load_state_dict(state)
        assert type(module) is nn.Linear
        assert module.weight.dtype == torch.float64
        assert_close(module.weight.detach(), state["weight"].double(), rtol=0, atol=0)
