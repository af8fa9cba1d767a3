"""Efficient attention between its projections, its equality with dot products, widths, masks and refusals."""

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.linear.efficient_attention import EfficientAttention, efficient_attention
from regard.registry import UnsupportedError
from tests.samples import heads_first


def rows(x):
    return x.flatten(2).mT


def by_pairs(layer, x, context, mask):
    """Head by head over contiguous slices, with all N x M weights."""
    outs = []
    for q, k, v in zip(*(t.chunk(layer.num_heads, -1) for t in projected(layer, x, context)), strict=True):
        if layer.normalisation == "softmax":
            keys = k.masked_fill(~mask[..., None], -torch.inf).softmax(1).nan_to_num()
            weights = q.softmax(-1) @ keys.mT
        else:
            weights = q @ (k * mask[..., None]).mT / mask.sum(1).clamp(min=1)[:, None, None]
        outs.append(weights @ v)
    return layer.out_proj(torch.cat(outs, -1)).mT


def projected(layer, x, context):
    return layer.q_proj(rows(x)), layer.k_proj(rows(context)), layer.v_proj(rows(context))


@pytest.mark.parametrize("normalisation", ["softmax", "scaling"])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(("sides", "others"), [((5,), (7,)), ((3, 4), (2, 5)), ((2, 3, 2), (1, 1, 4))])
def test_is_what_all_pairs_give(normalisation, residual, sides, others):
    layer = EfficientAttention(6, 2, 4, 10, normalisation=normalisation, residual=residual).double()
    x, context = (torch.randn(3, 6, *each, dtype=torch.float64) for each in (sides, others))
    mask = torch.rand(3, *others) < 0.6
    mask[0] = False
    expected = by_pairs(layer, x, context, mask.flatten(1)).unflatten(-1, sides) + (x if residual else 0)
    hidden = context.masked_fill(~mask[:, None], torch.nan)
    assert_close(layer(x, hidden, key_mask=mask), expected, rtol=0, atol=1e-12)
    alone = by_pairs(layer, x, x, torch.ones(3, x[0, 0].numel()).bool()).unflatten(-1, sides) + (x if residual else 0)
    assert_close(layer(x), alone, rtol=0, atol=1e-12)


def test_scaling_is_the_dot_product_of_the_non_local_block():
    q, k, v, mask = heads_first(5, 7, keep=0.6)
    weights = q @ k.mT * mask[:, None, None] / mask.sum(-1)[:, None, None, None]
    assert_close(efficient_attention(q, k, v, "scaling", key_mask=mask), weights @ v, rtol=0, atol=1e-12)


def test_weights_of_the_softmax_form_sum_to_one():
    layer, x = EfficientAttention(8, 2).double(), torch.randn(2, 8, 3, 5, dtype=torch.float64)
    weights = regard.inspect.attention_map(layer, x).tensor
    assert weights.shape == (2, 2, 15, 15)
    assert_close(weights.sum(-1), torch.ones(2, 2, 15, dtype=torch.float64))
    assert (weights > 0).all()


def test_the_bias_of_keys_changes_nothing():
    layer, x = EfficientAttention(8, 2).double(), torch.randn(2, 8, 3, 5, dtype=torch.float64)
    before = layer(x)
    with torch.no_grad():
        layer.k_proj.bias += torch.randn(8)
    assert_close(layer(x), before, rtol=0, atol=1e-12)


def test_refusals():
    with pytest.raises(ValueError, match="key_dim=6 and value_dim=8 must be multiples of num_heads=4"):
        EfficientAttention(8, 4, 6)
    with pytest.raises(ValueError, match="value_dim=0"):
        EfficientAttention(8, value_dim=0)
    with pytest.raises(ValueError, match="normalisation='sum'"):
        EfficientAttention(8, normalisation="sum")
    with pytest.raises(UnsupportedError, match="cannot be causal: the softmax of a key's features"):
        regard.create("efficient_attention", dim=8, causal=True)
