"""Both styles, written out with plain convolutions in float64; any size, masks, gated upsampling, refusals."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import regard
from regard.mechanisms.gates.pyramid_attention import GlobalAttentionUpsample, PyramidAttention
from regard.registry import UnsupportedError


def drawn(layer):
    """In evaluation, with norms that do something."""
    for name, tensor in layer.state_dict().items():
        if tensor.is_floating_point() and ("norm" in name or "bias" in name):
            torch.nn.init.uniform_(tensor, 0.5, 1.5)
    return layer.double().eval()


def conv(x, part, relu, stride=1):
    """Convolution, transposed or not, and norm."""
    weight, bias, norm = part.conv.weight, part.conv.bias, part.norm
    if isinstance(part.conv, torch.nn.ConvTranspose2d):
        x = F.conv_transpose2d(x, weight, bias, stride=2, padding=1)
    else:
        x = F.conv2d(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2)
    mean, var, scale, shift = (t.view(-1, 1, 1) for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    x = (x - mean) / torch.sqrt(var + 1e-5) * scale + shift
    return x.clamp(min=0) if relu else x


def strided(layer, x):
    height, width = x.shape[2:]
    d, q, up = layer.downs, layer.levels, layer.ups
    p1 = conv(x, d[0], True, 2)
    p2 = conv(p1, d[1], True, 2)
    p3 = conv(p2, d[2], True, 2)
    t = (conv(p2, q[1], False) + conv(conv(p3, q[2], False), up[2], True)[:, :, : p2.shape[2], : p2.shape[3]]).relu()
    t = (conv(p1, q[0], False) + conv(t, up[1], True)[:, :, : p1.shape[2], : p1.shape[3]]).relu()
    a = conv(t, up[0], True)[:, :, :height, :width]
    return (a * conv(x, layer.main, False) + conv(x.mean((2, 3), keepdim=True), layer.whole, False)).relu()


def pooled(layer, x):
    def up(t, like):
        return F.interpolate(t, like.shape[2:], mode="bilinear", align_corners=True)

    d, q = layer.downs, layer.levels
    p1 = conv(F.max_pool2d(x, 2), d[0], True)
    p2 = conv(F.max_pool2d(p1, 2), d[1], True)
    p3 = conv(conv(F.max_pool2d(p2, 2), d[2], True), q[2], True)
    t = conv(p2, q[1], True) + up(p3, p2)
    t = conv(p1, q[0], True) + up(t, p1)
    return up(t, x) * conv(x, layer.main, True) + conv(x.mean((2, 3), keepdim=True), layer.whole, True)


@pytest.mark.parametrize(("style", "width"), [("strided", 2), ("maxpool", None), ("maxpool", 5)])
@pytest.mark.parametrize("sides", [(8, 16), (9, 8), (15, 11)])
def test_matches_the_equations(style, width, sides):
    layer = drawn(PyramidAttention(6, 5, style, width=width))
    x = torch.randn(2, 6, *sides, dtype=torch.float64)
    expected = {"strided": strided, "maxpool": pooled}[style](layer, x)
    assert expected.shape == (2, 5, *sides)
    assert_close(layer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("style", ["strided", "maxpool"])
@pytest.mark.parametrize("sides", [(1, 1), (3, 1), (2, 9), (7, 5)])
def test_small_maps_work(style, sides):
    layer = drawn(PyramidAttention(6, style=style))
    y = layer(torch.randn(1, 6, *sides, dtype=torch.float64))
    assert y.shape == (1, 6, *sides)
    assert y.isfinite().all()


def test_padding_changes_nothing_in_training_either():
    layer, alone = PyramidAttention(4).train(), PyramidAttention(4).train()
    alone.load_state_dict(layer.state_dict())
    x = torch.randn(3, 4, 13, 12)
    mask = torch.zeros(3, 13, 12, dtype=torch.bool)
    mask[:2, :9, :7] = True
    y = layer(x.masked_fill(~mask[:, None], torch.nan), key_mask=mask)
    assert_close(y[:2, :, :9, :7], alone(x[:2, :, :9, :7]), rtol=1e-4, atol=1e-5)
    assert not y[2].any()
    for name, buffer in alone.named_buffers():
        assert_close(dict(layer.named_buffers())[name], buffer, rtol=1e-4, atol=1e-5, msg=name)


def test_pixels_that_are_masked_within_a_map_do_not_count():
    layer = drawn(PyramidAttention(4))
    x, mask = torch.randn(1, 4, 9, 9, dtype=torch.float64), torch.rand(1, 9, 9) < 0.5
    first, second = (layer(x.masked_fill(~mask[:, None], fill), key_mask=mask) for fill in (torch.nan, 7.0))
    assert_close(first, second, rtol=0, atol=0)
    assert not torch.allclose(first, layer(x.masked_fill(~mask[:, None], 7.0)) * mask[:, None])


@pytest.mark.parametrize("sides", [(6, 5), (1, 4)])
@pytest.mark.parametrize("same_size", [False, True])
@pytest.mark.parametrize("odd", [0, 1])
def test_the_strided_upsample(sides, same_size, odd):
    gau = drawn(GlobalAttentionUpsample(3, 4, same_size=same_size))
    high = torch.randn(2, 4, *sides, dtype=torch.float64)
    height, width = sides if same_size else (2 * side - odd for side in sides)
    low = torch.randn(2, 3, height, width, dtype=torch.float64)
    gate = conv(high.mean((2, 3), keepdim=True), gau.gate, True)
    expected = (conv(high, gau.up, False)[:, :, :height, :width] + conv(low, gau.low, False) * gate).relu()
    assert_close(gau(low, high), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stretch", ["bilinear", "bicubic", "nearest"])
def test_the_upsample_of_any_size(stretch):
    gau = drawn(GlobalAttentionUpsample(3, 4, "maxpool", stretch=stretch))
    low, high = torch.randn(2, 3, 7, 9, dtype=torch.float64), torch.randn(2, 4, 5, 2, dtype=torch.float64)
    gate = conv(high.mean((2, 3), keepdim=True), gau.gate, False).sigmoid()
    corners = {"align_corners": True} if stretch == "bilinear" else {}
    expected = F.interpolate(high, (7, 9), mode=stretch, **corners) + conv(low, gau.low, True) * gate
    assert_close(gau(low, high), expected, rtol=0, atol=1e-12)


def test_the_upsample_leaves_padding_out():
    gau = drawn(GlobalAttentionUpsample(3, 4))
    low, high = torch.randn(2, 3, 9, 8, dtype=torch.float64), torch.randn(2, 4, 5, 4, dtype=torch.float64)
    low_mask, high_mask = (torch.zeros(2, *t.shape[2:], dtype=torch.bool) for t in (low, high))
    low_mask[:, :7, :4], high_mask[:, :4, :2] = True, True
    masks = {"low_mask": low_mask, "high_mask": high_mask}
    y = gau(low.masked_fill(~low_mask[:, None], torch.nan), high.masked_fill(~high_mask[:, None], torch.nan), **masks)
    assert_close(y[:, :, :7, :4], gau(low[:, :, :7, :4], high[:, :, :4, :2]), rtol=0, atol=1e-12)
    assert not y[:, :, 7:].any()
    assert not y[..., 4:].any()


def test_the_published_size():
    """The first convolution of 7 x 7 from 2048 channels to 512 alone has 51 million weights, that to one 100352."""
    strided, pooled = (PyramidAttention(2048, style=style, device="meta") for style in ("strided", "maxpool"))
    assert strided.downs[0].conv.weight.numel() == 49 * 2048 * 512
    assert pooled.downs[0].conv.weight.numel() == 49 * 2048


def test_refusals():
    x, mask = torch.randn(2, 8, 8, 8), torch.ones(2, 8, 8, dtype=torch.bool)
    with pytest.raises(ValueError, match="style='avgpool'"):
        PyramidAttention(8, style="avgpool")
    with pytest.raises(ValueError, match=r"width=3: .* weighs 8 channels by 1"):
        PyramidAttention(8, style="maxpool", width=3)
    with pytest.raises(ValueError, match="stretch='linear'"):
        PyramidAttention(8, style="maxpool", stretch="linear")
    with pytest.raises(ValueError, match="stretch='bicubic', but"):
        GlobalAttentionUpsample(8, 8, stretch="bicubic")
    with pytest.raises(ValueError, match="same_size=True, but"):
        GlobalAttentionUpsample(8, 8, "maxpool", same_size=True)
    with pytest.raises(ValueError, match=r"shape \(1, 8, 1, 1\) .* train with two maps or more"):
        PyramidAttention(8).train()(x[:1])
    with pytest.raises(UnsupportedError, match=r"takes no masks: .* take style="):
        PyramidAttention(8, style="maxpool").eval()(x, key_mask=mask)
    with pytest.raises(UnsupportedError, match="takes no masks"):
        GlobalAttentionUpsample(8, 8, "maxpool")(x, x, low_mask=mask)
    with pytest.raises(ValueError, match=r"low has shape \(2, 8, 8, 8\) and high \(2, 8, 8, 8\).* sides \(4, 4\)"):
        GlobalAttentionUpsample(8, 8)(x, x)
    with pytest.raises(UnsupportedError, match="cannot be causal"):
        regard.create("pyramid_attention", dim=8, causal=True)
