"""Any size, format and padding of a map, for every registered mechanism on maps."""

import pytest
import torch
from torch.testing import assert_close

from regard.registry import UnsupportedError
from tests.contract.cases import MAPS

NORMS = {2: torch.nn.BatchNorm2d, 3: torch.nn.BatchNorm3d}
SIDES = ((5, 8, 3), (9, 4, 6))
"""Odd, and not square; of them the first axes are taken."""


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=str)


def axes(layer):
    return layer.num_axes or 2


def maps(layer, sides, batch=2, **options):
    return torch.randn(batch, layer.dim, *sides[: axes(layer)], **options)


def last(layer):
    return {2: torch.channels_last, 3: torch.channels_last_3d}[axes(layer)]


def refusal(layer, x):
    """What a layer says to a map that it cannot take; empty where it can."""
    try:
        layer(x)
    except ValueError as error:
        return str(error)
    return ""


def shown(x):
    """What is real where the last row and the last two columns of the second map are padding."""
    keep = torch.ones(2, *x.shape[2:], dtype=torch.bool)
    for axis, drop in zip(range(1, keep.ndim), (1, 2, 1), strict=False):
        keep[1].narrow(axis - 1, keep.shape[axis] - drop, drop).fill_(False)
    return keep


MASKED = [case for case in MAPS if "key_mask" not in case.card.refuses]


@each(MAPS)
def test_any_size_in_any_dtype(case):
    for dtype in (torch.float32, torch.bfloat16):
        layer = case.build(dtype=dtype)
        for sides in SIDES:
            for batch in (1, 2):
                x = maps(layer, sides, batch, dtype=dtype)
                y = layer(x)
                assert (y.dtype, len(y)) == (dtype, batch)
                assert y.isfinite().all()
                assert y.is_contiguous()


@each(MAPS)
def test_a_map_of_one_pixel_works_or_is_refused_in_words(case):
    layer = case.build()
    x = maps(layer, (1, 1, 1))
    message = refusal(layer, x)
    assert str(tuple(x.shape)) in message if message else layer(x).isfinite().all()


@each([case for case in MAPS if axes(case.build()) > 1])
def test_channels_last_stays_channels_last(case):
    layer = case.build()
    x = maps(layer, SIDES[0])
    y, again = layer(x), layer(x.contiguous(memory_format=last(layer)))
    assert_close(again, y, rtol=1e-5, atol=1e-5)
    assert again.ndim != x.ndim or again.is_contiguous(memory_format=last(layer))


@each([case for case in MAPS if axes(case.build()) in NORMS])
def test_the_gradient_of_a_single_map_passes_a_norm_before_it(case):
    """Batch norm on the CPU misreads some strides of a single map's gradient, which no layer may leave behind."""
    layer = case.build()
    norm = NORMS[axes(layer)](layer.dim, eps=0.0).eval()  # changes nothing
    x = maps(layer, SIDES[0], 1).requires_grad_()
    plain, behind = (torch.autograd.grad(y.square().sum(), x)[0] for y in (layer(x), layer(norm(x))))
    assert_close(behind, plain, rtol=1e-4, atol=1e-5)


@each(MASKED)
def test_padding_of_maps_may_hold_anything(case):
    layer = case.build()
    x = maps(layer, SIDES[0])
    keep = shown(x)
    y = layer(x.masked_fill(~keep[:, None], torch.nan), key_mask=keep)
    assert y.isfinite().all()
    real = tuple(slice(int(side)) for side in keep[1].nonzero().amax(0) + 1)
    alone = layer(x[(slice(1, 2), slice(None), *real)])[0]
    if y.shape[2:] == x.shape[2:]:
        assert not y[1, :, ~keep[1]].any(), "masked queries give 0"
    assert_close(y[1][tuple(map(slice, alone.shape))], alone, rtol=1e-5, atol=1e-5)
    assert_close(y[:1], layer(x[:1]), rtol=1e-5, atol=1e-5)


@each([case for case in MAPS if "key_mask" in case.card.refuses])
def test_masks_are_refused_where_they_mean_nothing(case):
    layer = case.build()
    x = maps(layer, SIDES[0])
    with pytest.raises(UnsupportedError, match="takes no masks"):
        layer(x, key_mask=torch.ones(2, *x.shape[2:], dtype=torch.bool))


@each(MASKED)
@pytest.mark.parametrize("mask", ["key_mask", "query_mask"])
def test_wrong_masks_of_maps_are_refused(case, mask):
    layer = case.build()
    x = maps(layer, SIDES[0])
    with pytest.raises(TypeError, match=mask):
        layer(x, **{mask: torch.ones(2, *x.shape[2:])})
    for shape in ((1, *x.shape[2:]), x.shape[:2], (2, *(side + 1 for side in x.shape[2:]))):
        with pytest.raises(ValueError, match=mask):
            layer(x, **{mask: torch.ones(shape, dtype=torch.bool)})


@each(MAPS)
def test_what_is_no_map_of_this_width_is_refused(case):
    layer = case.build()
    x = maps(layer, SIDES[0])
    for wrong in (torch.cat((x, x), 1), x[0, 0], x[:, :, :0]):
        with pytest.raises(ValueError, match="shape"):
            layer(wrong)
    with pytest.raises(UnsupportedError, match="segments"):
        layer(x, segments=torch.zeros(2, 5, dtype=torch.long))


@each([case for case in MAPS if not case.card.cross])
def test_a_second_map_is_refused(case):
    layer = case.build()
    x = maps(layer, SIDES[0])
    with pytest.raises(UnsupportedError, match="context"):
        layer(x, x)


@each([case for case in MAPS if case.card.cross])
def test_a_second_map_may_have_another_size(case):
    layer = case.build()
    x, context = maps(layer, SIDES[0]), maps(layer, SIDES[1])
    y = layer(x, context)
    assert y.shape[2:] == x.shape[2:]
    assert not torch.allclose(layer(x, context.flip(0)), y)


@each(MAPS)
def test_maps_start_in_range(case):
    layer = case.build()
    assert 1e-3 < layer(maps(layer, (9, 8, 4), 4)).std() < 20


@each(MAPS)
def test_aux_of_maps_is_a_flat_dict_of_named_tensors(case):
    layer = case.build()
    x = maps(layer, SIDES[0])
    y, aux = layer(x, return_aux=True)
    assert_close(y, layer(x), rtol=0, atol=0)
    for name, value in aux.items():
        assert name.split("/")[0] in ("loss", "metric", "map"), name
        assert isinstance(value, torch.Tensor)
