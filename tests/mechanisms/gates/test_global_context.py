"""Pooling and both fusions as loops over pixels, in float64; masks, the start, refusals."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from regard.mechanisms.gates.global_context import GlobalContext, context_weights


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def transformed(part, c):
    inner = part.inner.weight @ c + part.inner.bias
    normal = (inner - inner.mean()) / (inner.var(correction=0) + 1e-5).sqrt() * part.norm.weight + part.norm.bias
    return part.outer.weight @ torch.relu(normal) + part.outer.bias


def equations(layer, x, mask):
    y = torch.zeros_like(x)
    for b in range(len(x)):
        seen = [m for m in itertools.product(*map(range, x.shape[2:])) if mask[(b, *m)]]
        pixels = [x[(b, slice(None), *m)] for m in seen]
        if layer.scores is None:
            c = sum(pixels) / len(pixels) if seen else x.new_zeros(x.shape[1])
        else:
            scores = [torch.exp(layer.scores.weight[0] @ pixel + layer.scores.bias) for pixel in pixels]
            c = sum((s * pixel / sum(scores) for s, pixel in zip(scores, pixels, strict=True)), x.new_zeros(x.shape[1]))
        for m, pixel in zip(seen, pixels, strict=True):
            if layer.mul is not None:
                pixel = pixel / (1 + torch.exp(-transformed(layer.mul, c)))
            if layer.add is not None:
                pixel = pixel + transformed(layer.add, c)
            y[(b, slice(None), *m)] = pixel
    return y


@pytest.mark.parametrize("sides", [(3, 5), (1, 1), (6,), (2, 3, 2)])
@pytest.mark.parametrize("pooling", ["att", "avg"])
@pytest.mark.parametrize("fusions", [("add",), ("mul",), ("add", "mul")])
def test_matches_the_equations(sides, pooling, fusions):
    layer, x = GlobalContext(8, 0.5, pooling, fusions).double(), random(3, 8, *sides)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    everywhere = torch.ones(3, *sides, dtype=torch.bool)
    assert_close(layer(x), equations(layer, x, everywhere), rtol=0, atol=1e-11)
    mask = torch.rand(3, *sides) < 0.6
    mask[1] = False
    odd = x.masked_fill(~mask[:, None], torch.nan)
    assert_close(layer(odd, key_mask=mask), equations(layer, x, mask), rtol=0, atol=1e-11)


def test_pixels_that_ask_need_not_be_pooled():
    layer, x = GlobalContext(8, 0.5).double(), random(2, 8, 3, 4)
    torch.nn.init.normal_(layer.add.outer.weight)
    keys, queries = torch.rand(2, 3, 4) < 0.6, torch.rand(2, 3, 4) < 0.6
    y = layer(x, key_mask=keys, query_mask=queries)
    context = layer(x, key_mask=keys) - x
    offset = torch.stack([c[:, m][:, 0] for c, m in zip(context, keys, strict=True)])
    assert_close(y, (x + offset[..., None, None]) * queries[:, None], rtol=0, atol=1e-12)


def test_where_no_pixel_counts_none_has_a_weight():
    mask = torch.tensor([[True, False], [False, False]])
    weights = context_weights(random(2, 3, 2), random(3), key_mask=mask)
    assert weights.tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_a_map_with_one_row_of_weights():
    layer, x = GlobalContext(4, 0.5).double(), random(2, 4, 3, 2)
    weights = layer.weigh(x, torch.eye(6, dtype=torch.float64)[None, None])
    expected = (layer.scores.weight[0] @ x.flatten(2)).softmax(-1)
    assert_close(weights, expected[:, None, None].expand(-1, -1, 6, -1), rtol=0, atol=1e-12)


def test_large_maps_in_short_floats():
    x = torch.full((1, 2, 300, 300), 2.0, dtype=torch.float16)
    weights = context_weights(x, torch.ones(2, dtype=torch.float16))
    assert weights.dtype == torch.float32
    assert_close(weights.sum(), torch.tensor(1.0))
    layer = GlobalContext(2, 0.5, pooling="avg", dtype=torch.float16)
    assert_close(layer(x), x, rtol=0, atol=0)


def test_starts_as_the_identity_or_half_of_it():
    x = torch.randn(2, 32, 3, 4)
    assert torch.equal(GlobalContext(32)(x), x)
    assert torch.equal(GlobalContext(32, fusions=("mul",))(x), x / 2)
    assert abs(GlobalContext(4000).scores.weight.std().item() * 2000**0.5 - 1) < 0.1
    assert GlobalContext(40).add.inner.weight.shape == (2, 40)


def test_refusals():
    for options, message in (
        ({"ratio": 0.1}, r"ratio=0\.1 leaves 0 of dim=8 planes"),
        ({"ratio": 0.5, "pooling": "max"}, "pooling='max'"),
        ({"ratio": 0.5, "fusions": ()}, r"fusions=\(\)"),
        ({"ratio": 0.5, "fusions": ("channel_add",)}, "channel_add"),
    ):
        with pytest.raises(ValueError, match=message):
            GlobalContext(8, **options)
    with pytest.raises(ValueError, match=r"values has shape \(1, 2, 15, 2\)"):
        GlobalContext(8, 0.5).weigh(torch.randn(1, 8, 3, 5), torch.randn(1, 2, 15, 2))
