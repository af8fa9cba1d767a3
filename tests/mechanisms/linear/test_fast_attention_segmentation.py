"""Fast attention as loops over pairs of pixels, in float64; masks, the stage of FANet, refusals."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.mechanisms.linear.fast_attention_segmentation import FastAttention, FastAttentionFusion, fast_attention


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def equations(q, k, v, normalise, mask):
    out = q.new_zeros(*q.shape[:2], v.shape[-1])
    for b in range(len(q)):
        seen = mask[b].nonzero().flatten().tolist()
        for n in range(q.shape[1]):
            for m in seen:
                cosine = q[b, n] @ k[b, m] / (q[b, n].norm() * k[b, m].norm())
                out[b, n] += cosine * v[b, m] / (len(seen) if normalise else 1)
    return out


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("masked", [False, True])
def test_matches_the_equations(normalise, masked):
    q, k, v = random(3, 5, 4), random(3, 7, 4), random(3, 7, 2)
    mask = torch.rand(3, 7) < 0.6 if masked else torch.ones(3, 7, dtype=torch.bool)
    mask[1] &= not masked
    out = fast_attention(q, k, v, normalise=normalise, key_mask=mask if masked else None)
    assert_close(out, equations(q, k, v, normalise, mask), rtol=0, atol=1e-12)


def normal(norm, t, mask):
    """By the statistics of real pixels in training, else by those that the norm keeps."""
    real = t[mask]
    mean, variance = (real.mean(0), real.var(0, correction=0)) if norm.training else (0.0, 1.0)
    return (t - mean) / (variance + norm.eps) ** 0.5


def layer_equations(layer, x, mask):
    pixels, keep = x.flatten(2).mT, mask.flatten(1)
    q, k, v = (
        normal(norm, pixels @ linear.weight.T, keep)
        for linear, norm in (
            (layer.q_proj, layer.q_norm),
            (layer.k_proj, layer.k_norm),
            (layer.v_proj, layer.v_norm),
        )
    )
    v = torch.where(v > 0, v, 0.01 * v)
    y = normal(layer.out_norm, equations(q, k, v, layer.normalise, keep) @ layer.out_proj.weight.T, keep)
    return ((torch.where(y > 0, y, 0.01 * y) + pixels) * keep[..., None]).mT.view(x.shape)


@pytest.mark.parametrize("sides", [(3, 5), (7,), (2, 3, 2)])
@pytest.mark.parametrize("training", [False, True])
def test_layers(sides, training):
    layer, x = FastAttention(6, 3, normalise=training).double().train(training), random(2, 6, *sides)
    mask = torch.rand(2, *sides) < 0.7
    y = layer(x.masked_fill(~mask[:, None], torch.nan), key_mask=mask)
    assert_close(y, layer_equations(layer, x, mask), rtol=0, atol=1e-10)


def test_long_sums_are_float32():
    """A sum of 10^4 values of 30 is more than float16 holds."""
    q = torch.ones(1, 10_000, 4, dtype=torch.float16)
    out = fast_attention(q, q, torch.full_like(q, 30.0))
    assert_close(out, torch.full_like(out, 30.0), rtol=1e-2, atol=0)


@pytest.mark.parametrize("padding", [0, 1])
def test_a_stage_of_the_network(padding):
    stage = FastAttentionFusion(6, 5, up_padding=padding, head_dim=3).double().eval()
    x, coarse = random(2, 6, 4, 5), random(2, 6, 2, 3)
    fused = layer_equations(stage.attention, x, torch.ones(2, 4, 5, dtype=torch.bool))
    rows, columns = torch.arange(4) / 3, torch.arange(5) / 4 * 2  # corner to corner
    for i in range(4):
        for j in range(5):
            row, column = rows[i].item(), columns[j].item()
            left = min(int(column), 1)
            above, below = (
                coarse[:, :, r, left] * (left + 1 - column) + coarse[:, :, r, left + 1] * (column - left)
                for r in (0, 1)
            )
            fused[:, :, i, j] += above * (1 - row) + below * row
    smooth, up = stage(x, coarse)
    expected = F.conv2d(fused, stage.smooth_conv.weight, padding=1) / (1 + 1e-5) ** 0.5
    assert_close(smooth, F.leaky_relu(expected), rtol=0, atol=1e-6)
    assert up.shape == (2, 3, 4 + 2 * padding, 5 + 2 * padding)
    inside = F.conv2d(fused, stage.up_conv.weight) / (1 + 1e-5) ** 0.5
    assert_close(up[..., padding : padding + 4, padding : padding + 5], F.leaky_relu(inside), rtol=0, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_padding_of_a_stage_changes_nothing(training):
    stage, x = FastAttentionFusion(6, 5, up_padding=1, head_dim=3).double().train(training), random(2, 6, 4, 5)
    mask = torch.arange(7).repeat(2, 4, 1) < 5
    alone = stage(x)
    padded = stage(F.pad(x, (0, 2), value=torch.nan), key_mask=mask)
    assert_close(padded[0][..., :5], alone[0], rtol=0, atol=1e-10)
    assert not padded[0][..., 5:].any()
    if not training:  # else a border of zeros, which a mask leaves out, is in their statistics
        assert_close(padded[1][..., 1:5, 1:6], alone[1][..., 1:5, 1:6], rtol=0, atol=1e-10)


def test_refusals():
    with pytest.raises(ValueError, match="head_dim=0"):
        FastAttention(6, 0)
    with pytest.raises(ValueError, match=r"values has shape \(1, 2, 15, 2\)"):
        FastAttention(6, 3).weigh(torch.randn(1, 6, 3, 5), torch.randn(1, 2, 15, 2))
