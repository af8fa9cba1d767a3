"""Two sequences, or two maps, of any length and padding, for every registered mechanism on pairs."""

import pytest
import torch
from torch.testing import assert_close

from regard.inspect import attention_map
from regard.registry import UnsupportedError
from tests.contract.cases import MAP_PAIRS, PAIRS

WIDTH = 3
"""Of the values that are weighed."""

DROPS = {"x": 4, "context": 3}
"""Tokens of padding in the second pair."""

MASKED = [case for case in PAIRS if "key_mask" not in case.card.refuses]
MASKED_MAPS = [case for case in MAP_PAIRS if "key_mask" not in case.card.refuses]
WEIGHING = [case for case in PAIRS if hasattr(case.build(), "weigh")]


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=str)


def answers(out):
    """The answer of x, and where there is one that of the context."""
    return out if isinstance(out, tuple) else (out,)


def masks(inputs, side="right"):
    """What is real where the second pair is padded; ``inputs`` are sequences."""
    found = {}
    for mask, name in (("query_mask", "x"), ("key_mask", "context")):
        place = torch.arange(inputs[name].shape[1])
        place = place.flip(0) if side == "left" else place
        found[mask] = place < torch.tensor([[len(place)], [len(place) - DROPS[name]]])
    return found


@each(PAIRS)
def test_two_sequences_of_any_length_in_any_dtype(case):
    for dtype in (torch.float32, torch.bfloat16):
        layer = case.build(dtype=dtype)
        given = case.inputs(layer)
        for n, m in ((1, 13), (17, 1), (6, 11)):
            x, context = given["x"][:, :n], given["context"][:, :m]
            for sequence, y in zip((x, context), answers(layer(x, context)), strict=False):
                assert (y.shape[:2], y.dtype) == (sequence.shape[:2], dtype)
                assert y.isfinite().all()


@each(MASKED)
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_of_either_sequence_changes_nothing(case, side):
    if side == "left" and case.card.padding == "end":
        pytest.skip("its card says that padding stands at the end")
    layer = case.build()
    given = case.inputs(layer)
    keep = masks(given, side)
    real = (keep["query_mask"][1], keep["key_mask"][1])
    alone = answers(layer(*(given[name][1:, some] for name, some in zip(("x", "context"), real, strict=True))))
    for mask, name in (("query_mask", "x"), ("key_mask", "context")):
        given[name] = given[name].masked_fill(~keep[mask][..., None], torch.nan)
    found = answers(layer(**given, **keep))
    for some, y, expected in zip(real, found, alone, strict=False):
        assert_close(y[1, some], expected[0], rtol=1e-5, atol=1e-5)
        assert not y[1, ~some].any(), "masked tokens give 0"
    sum(y.square().sum() for y in found).backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), f"padding reaches the gradient of {name}"


@each(MASKED)
def test_nothing_to_look_at_is_no_disaster(case):
    layer = case.build()
    given = {name: value.requires_grad_() for name, value in case.inputs(layer).items()}
    keep = torch.ones(given["context"].shape[:2], dtype=torch.bool)
    keep[0] = False
    y = answers(layer(**given, key_mask=keep))[0]
    slopes = torch.autograd.grad(y.square().sum(), tuple(given.values()))
    assert y.isfinite().all()
    assert all(slope.isfinite().all() for slope in slopes)
    assert not slopes[1][0].any(), "an absent context has no gradient"


@each(WEIGHING)
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
def test_an_exact_map_of_a_pair_is_what_the_layer_does(case, masked):
    layer = case.build().double()
    given = {name: value.double() for name, value in case.inputs(layer).items()}
    keep = masks(given) if masked else {}
    weights = attention_map(layer, **given, **keep, kind="exact").tensor
    values = torch.randn(2, weights.shape[1], weights.shape[3], WIDTH, dtype=torch.float64)
    found = layer.weigh(given["x"], values, given["context"], **keep)
    assert_close(found, weights @ values, rtol=0, atol=1e-10)
    if masked:
        assert not weights[1].mT[:, ~keep["key_mask"][1]].any(), "a masked key has weight 0"
        assert not weights[1][:, ~keep["query_mask"][1]].any(), "a masked query has weights 0"


@each(PAIRS)
def test_a_pair_that_does_not_fit_is_refused(case):
    layer = case.build()
    x, context = case.inputs(layer).values()
    wrong = {
        "context": (x,),
        str(layer.dim): (torch.cat((x, x[..., :1]), -1), context),
        str(layer.context_dim): (x, torch.cat((context, context[..., :1]), -1)),
        "equal": (x, context[:1]),
    }
    for words, pair in wrong.items():
        with pytest.raises(ValueError, match=words):
            layer(*pair)
    with pytest.raises(UnsupportedError, match="segments"):
        layer(x, context, segments=torch.zeros(x.shape[:2], dtype=torch.long))


@each(MASKED)
def test_wrong_masks_of_pairs_are_refused(case):
    layer = case.build()
    given = case.inputs(layer)
    for mask, name in (("query_mask", "x"), ("key_mask", "context")):
        batch, length, _ = given[name].shape
        with pytest.raises(TypeError, match=mask):
            layer(**given, **{mask: torch.ones(batch, length)})
        with pytest.raises(ValueError, match=mask):
            layer(**given, **{mask: torch.ones(batch, length + 1, dtype=torch.bool)})


@each(PAIRS)
def test_aux_of_pairs_is_a_flat_dict_of_named_tensors(case):
    layer = case.build()
    given = case.inputs(layer)
    told, aux = layer(**given, return_aux=True)
    for y, expected in zip(answers(told), answers(layer(**given)), strict=True):
        assert_close(y, expected, rtol=0, atol=0)
    for name, value in aux.items():
        assert name.split("/")[0] in ("loss", "metric", "map"), name
        assert isinstance(value, torch.Tensor)


@each(MAP_PAIRS)
def test_two_maps_of_any_size_in_any_dtype(case):
    for dtype in (torch.float32, torch.bfloat16):
        layer = case.build(dtype=dtype)
        for batch, sides, others in ((2, (5, 8), (3, 4)), (1, (1, 1), (6, 2))):
            x, context = (torch.randn(batch, layer.dim, *some, dtype=dtype) for some in (sides, others))
            for some, y in zip((sides, others), answers(layer(x, context)), strict=False):
                assert (y.shape[2:], y.dtype) == (some, dtype)
                assert y.isfinite().all()


@each(MASKED_MAPS)
def test_padding_of_either_map_changes_nothing(case):
    layer = case.build()
    x, context = case.inputs(layer).values()
    alone = answers(layer(x[1:, :, :-1], context[1:, :, :, :-2]))
    keep, others = (torch.ones(2, *some.shape[2:], dtype=torch.bool) for some in (x, context))
    keep[1, -1], others[1, :, -2:] = False, False
    x, context = (some.masked_fill(~mask[:, None], torch.nan) for some, mask in ((x, keep), (context, others)))
    found = answers(layer(x, context, query_mask=keep, key_mask=others))
    for mask, y, expected in zip((keep, others), found, alone, strict=False):
        assert_close(y[1][:, mask[1]], expected[0].flatten(1), rtol=1e-5, atol=1e-5)
        assert not y[1][:, ~mask[1]].any(), "masked pixels give 0"
