"""Saving, copying, dropping out and refusing, for every registered mechanism."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.registry import UnsupportedError
from tests.contract.cases import CASES, LAYERS, SEQUENCES

REFUSED = [(case, option) for case in LAYERS for option in case.card.refuses if case.index == 0]
VALUES = {"attn_drop": 0.1, "num_kv_heads": 1}
"""Of refused options that are no switches."""


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=str)


def pickled(module):
    return pickle.loads(pickle.dumps(module))


def saved(module):
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@each(CASES)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
def test_a_copy_computes_the_same(case, duplicate):
    module = case.build()
    inputs = case.inputs(module)
    assert_close(duplicate(module)(**inputs), module(**inputs), rtol=0, atol=0)


@each(LAYERS)
def test_a_state_dict_carries_everything(case):
    layer = case.build()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    inputs = case.inputs(layer)
    other = case.build(seed=1)
    other.load_state_dict(saved(layer))
    assert_close(other(**inputs), layer(**inputs), rtol=0, atol=0)


@each([case for case in SEQUENCES if {"dropout", "noise"} & set(case.card.stochastic)])
def test_a_generator_decides_every_draw(case):
    layer = case.build(**({"attn_drop": 0.5} if "dropout" in case.card.stochastic else {})).train()
    x = torch.randn(2, 9, layer.dim)
    first, second, third = (layer(x, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert_close(first, second, rtol=0, atol=0)
    assert not torch.allclose(first, third)


@each(LAYERS)
def test_unknown_options_are_refused(case):
    with pytest.raises(TypeError, match="no_such_option"):
        case.build(no_such_option=1)


@pytest.mark.parametrize(("case", "option"), REFUSED, ids=[f"{case}-{option}" for case, option in REFUSED])
def test_refusals_say_why(case, option):
    layer = case.build()
    if option in inspect.signature(layer.forward).parameters:
        x = torch.randn(2, 9, layer.dim)
        given = {option: torch.zeros(2, 9, dtype=torch.long) if option == "segments" else x}
        with pytest.raises(UnsupportedError) as caught:
            layer(x, **given)
    else:
        with pytest.raises(UnsupportedError) as caught:
            case.build(**{option: VALUES.get(option, True)})
    assert case.card.refuses[option] in str(caught.value)


@each(SEQUENCES)
@pytest.mark.parametrize("mask", ["key_mask", "query_mask"])
def test_wrong_masks_are_refused(case, mask):
    layer = case.build()
    x = torch.randn(2, 9, layer.dim)
    for wrong in (torch.ones(2, 9), torch.ones(2, 9, dtype=torch.long)):
        with pytest.raises(TypeError, match=mask):
            layer(x, **{mask: wrong})
    for shape in ((2, 8), (1, 9), (9,), (2, 9, 9)):
        with pytest.raises(ValueError, match=mask):
            layer(x, **{mask: torch.ones(shape, dtype=torch.bool)})


@each(SEQUENCES)
def test_wrong_widths_are_refused(case):
    layer = case.build()
    with pytest.raises(ValueError, match=str(layer.dim)):
        layer(torch.randn(2, 9, layer.dim + 1))


@each([case for case in SEQUENCES if case.causal != "strict" or not case.card.streaming])
def test_streaming_is_refused_where_it_would_be_wrong(case):
    with pytest.raises(UnsupportedError, match="stream"):
        case.build().memory(2)


@each(SEQUENCES)
def test_aux_is_a_flat_dict_of_named_tensors(case):
    layer = case.build()
    x = torch.randn(2, 9, layer.dim)
    y, aux = layer(x, return_aux=True)
    assert_close(y, layer(x), rtol=0, atol=0)
    for name, value in aux.items():
        assert name.split("/")[0] in ("loss", "metric", "map"), name
        assert isinstance(value, torch.Tensor)


def test_unknown_names_name_the_nearest():
    with pytest.raises(ValueError, match="linear_transformer"):
        regard.create("linear_transformers", dim=12, num_heads=3)
