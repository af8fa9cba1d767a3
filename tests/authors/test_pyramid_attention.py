"""What no fixture shows: maps of the same size, the other decoder's upsample, other widths, other ways to stretch."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from regard.authors import load
from regard.authors.replay import replay
from regard.registry import UnsupportedError

JAVEY = "JaveyWang/Pyramid-Attention-Networks-pytorch@f719365:networks.py"
DECODER = "qubvel/segmentation_models.pytorch@bd7f877:segmentation_models_pytorch/decoders/pan/decoder.py"


def recorded(module, **inputs):
    """The tensors of a fixture: a module's state under its own names, with norms that do something."""
    for t in module.state_dict().values():
        if t.is_floating_point() and t.ndim == 1:
            nn.init.uniform_(t, 0.5, 1.5)
    module.double().eval()
    buffers = dict(module.named_buffers())
    tensors = {f"{'buffer' if name in buffers else 'param'}/{name}": t for name, t in module.state_dict().items()}
    return tensors | {f"in/{name}": t for name, t in inputs.items()}


def cbr(dim, out, k, relu=True):
    """Their ConvBnRelu."""
    part = nn.Sequential()
    part.add_module("conv", nn.Conv2d(dim, out, k, padding=k // 2))
    part.add_module("bn", nn.BatchNorm2d(out))
    if relu:
        part.add_module("activation", nn.ReLU())
    return part


def meta(source, config, call="{}"):
    return {"mechanism": "pyramid_attention", "source": source, "config": json.dumps(config), "call": call}


class SameSize(nn.Module):
    """JaveyWang's GAU without upsampling."""

    def __init__(self, high, low):
        super().__init__()
        self.conv3x3, self.bn_low = nn.Conv2d(low, low, 3, padding=1, bias=False), nn.BatchNorm2d(low)
        self.conv1x1, self.bn_high = nn.Conv2d(high, low, 1, bias=False), nn.BatchNorm2d(low)
        self.conv_reduction, self.bn_reduction = nn.Conv2d(high, low, 1, bias=False), nn.BatchNorm2d(low)

    def forward(self, high, low):
        gate = self.bn_high(self.conv1x1(high.mean((2, 3), keepdim=True))).relu()
        return (self.bn_reduction(self.conv_reduction(high)) + self.bn_low(self.conv3x3(low)) * gate).relu()


@pytest.mark.parametrize("call", ['{"args": ["high", "low"]}', "{}"])
def test_the_upsample_of_maps_of_the_same_size(call):
    theirs = SameSize(6, 4)
    high, low = torch.randn(2, 6, 5, 7, dtype=torch.float64), torch.randn(2, 4, 5, 7, dtype=torch.float64)
    tensors = recorded(theirs, high=high, low=low)
    config = {"channels_high": 6, "channels_low": 4, "upsample": False}
    assert_close(replay(tensors, meta(f"{JAVEY}:GAU", config, call))["out/out"], theirs(high, low))


class Block(nn.Module):
    """GAUBlock of segmentation_models.pytorch."""

    def __init__(self, low, high):
        super().__init__()
        self.conv1 = nn.Sequential(nn.AdaptiveAvgPool2d(1), cbr(high, high, 1, relu=False), nn.Sigmoid())
        self.conv2 = cbr(low, high, 3)

    def forward(self, x, y, mode):
        corners = {"align_corners": True} if mode == "bilinear" else {}
        return F.interpolate(y, x.shape[2:], mode=mode, **corners) + self.conv2(x) * self.conv1(y)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
def test_the_decoders_upsample(mode):
    theirs = Block(5, 4)
    x, y = torch.randn(2, 5, 9, 6, dtype=torch.float64), torch.randn(2, 4, 4, 3, dtype=torch.float64)
    config = {"in_channels": 5, "out_channels": 4, "interpolation_mode": mode}
    found = replay(recorded(theirs, x=x, y=y), meta(f"{DECODER}:GAUBlock", config, '{"args": ["x", "y"]}'))
    assert_close(found["out/out"], theirs(x, y, mode))


class Pyramid(nn.Module):
    """FPABlock of segmentation_models.pytorch."""

    def __init__(self, dim, out):
        super().__init__()
        pool = nn.MaxPool2d(2)
        self.branch1 = nn.Sequential(nn.AdaptiveAvgPool2d(1), cbr(dim, out, 1))
        self.mid = nn.Sequential(cbr(dim, out, 1))
        self.down1, self.down2 = nn.Sequential(pool, cbr(dim, 1, 7)), nn.Sequential(pool, cbr(1, 1, 5))
        self.down3 = nn.Sequential(pool, cbr(1, 1, 3), cbr(1, 1, 3))
        self.conv2, self.conv1 = cbr(1, 1, 5), cbr(1, 1, 7)

    def forward(self, x, mode):
        def up(t, parts):
            size = [side // parts for side in x.shape[2:]]
            return F.interpolate(t, size, mode=mode, align_corners=mode == "bilinear")

        x1 = self.down1(x)
        x2 = self.down2(x1)
        t = self.conv2(x2) + up(self.down3(x2), 4)
        return up(self.conv1(x1) + up(t, 2), 1) * self.mid(x) + self.branch1(x)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_the_decoders_pyramid(mode):
    theirs, x = Pyramid(5, 4), torch.randn(2, 5, 19, 9, dtype=torch.float64)
    config = {"in_channels": 5, "out_channels": 4, "upscale_mode": mode}
    found = replay(recorded(theirs, x=x), meta(f"{DECODER}:FPABlock", config))
    assert_close(found["out/out"], theirs(x, mode))


def test_what_cannot_be_had_is_refused():
    with pytest.raises(UnsupportedError, match="channels=3"):
        load("pyramid_attention", f"{JAVEY}:FPA", {"channels": 3}, {})
    with pytest.raises(UnsupportedError, match="upsampling by 'area'"):
        load(
            "pyramid_attention",
            f"{DECODER}:FPABlock",
            {"in_channels": 4, "out_channels": 4, "upscale_mode": "area"},
            {},
        )
