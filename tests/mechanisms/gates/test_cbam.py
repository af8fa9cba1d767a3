"""CBAM and squeeze-and-excitation as loops over pixels, in float64; pools under masks, start, refusals."""

import math

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.gates.cbam import CBAM, SqueezeExcitation
from regard.ops.pixel_pools import POOLS, pool_pixels
from regard.registry import UnsupportedError

POOLED = {
    "avg": lambda values: sum(values) / len(values),
    "max": max,
    "lp": lambda values: math.sqrt(sum(v * v for v in values)),
    "lse": lambda values: math.log(sum(math.exp(v) for v in values)),
}


def drawn(layer):
    """In evaluation with norms that do something."""
    for name, tensor in layer.state_dict().items():
        if tensor.is_floating_point():
            torch.nn.init.uniform_(tensor, 0.3, 1.5) if "norm" in name else torch.nn.init.normal_(tensor)
    return layer.double().eval()


def channel_gate(layer, x, mask):
    y = torch.zeros_like(x)
    for b in range(len(x)):
        z = torch.zeros(x.shape[1], dtype=x.dtype)
        for pool in layer.channel.pools:
            pooled = torch.tensor([POOLED[pool](channel[mask[b]].tolist()) for channel in x[b]], dtype=x.dtype)
            z += layer.channel.second(layer.channel.first(pooled).clamp(min=0))
        y[b] = x[b] * (1 / (1 + torch.exp(-z)))[:, None, None]
    return y


def spatial_gate(layer, x, mask):
    y, kernel = torch.zeros_like(x), layer.spatial.conv.weight[0]
    half, norm = kernel.shape[-1] // 2, layer.spatial.norm
    batch, _, height, width = x.shape
    for b, i, j in torch.cartesian_prod(*map(torch.arange, (batch, height, width))).tolist():
        s = 0.0
        for di, dj in torch.cartesian_prod(*[torch.arange(-half, half + 1)] * 2).tolist():
            r, c = i + di, j + dj
            if 0 <= r < height and 0 <= c < width and mask[b, r, c]:
                seen = torch.stack((x[b, :, r, c].max(), x[b, :, r, c].mean()))
                s = s + kernel[:, di + half, dj + half] @ seen
        if norm is not None:
            s = (s - norm.running_mean) / torch.sqrt(norm.running_var + 1e-5) * norm.weight + norm.bias
        y[b, :, i, j] = x[b, :, i, j] * torch.sigmoid(torch.as_tensor(s))
    return y


@pytest.mark.parametrize("pools", [("avg", "max"), ("lp",), ("lse", "avg", "max", "lp")])
@pytest.mark.parametrize("gates", [("channel", "spatial"), ("spatial", "channel"), ("channel",), ("spatial",)])
@pytest.mark.parametrize("masked", [False, True])
def test_matches_the_equations(pools, gates, masked):
    layer = drawn(CBAM(6, 2, pools, gates, kernel_size=3, norm=gates[0] == "channel", mlp_bias=not masked))
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    mask = torch.rand(2, 3, 4) < (0.6 if masked else 2.0)
    mask[:, 1, 1] = True
    expected = x
    for gate in gates:
        expected = {"channel": channel_gate, "spatial": spatial_gate}[gate](layer, expected, mask)
    found = layer(x.masked_fill(~mask[:, None], torch.nan), key_mask=mask if masked else None)
    assert_close(found, expected * mask[:, None], rtol=0, atol=1e-12)


def test_the_published_sizes():
    """2 C h + h + C of the MLP, 98 of the convolution and 2 of its norm."""
    layer = CBAM(64)
    assert sum(p.numel() for p in layer.parameters()) == 2 * 64 * 4 + 4 + 64 + 98 + 2
    assert sum(p.numel() for p in SqueezeExcitation(64).parameters()) == 2 * 64 * 4 + 4 + 64
    assert sum(p.numel() for p in SqueezeExcitation(64, bias=False).parameters()) == 2 * 64 * 4
    assert CBAM(8).channel.first.out_features == 1, "one hidden unit at least"


def test_spatial_gates_start_at_a_half():
    layer = CBAM(8, 2).eval()
    assert not any(part.bias.any() for part in (layer.channel.first, layer.channel.second))
    _, told = layer(torch.randn(2, 8, 5, 3), return_aux=True)
    assert (told["map/spatial"] == 0.5).all()
    assert told["map/channel"].shape == (2, 8)


def test_squeeze_and_excitation_weighs_means():
    layer, x = SqueezeExcitation(6, 2).double(), torch.randn(3, 6, 4, 5, dtype=torch.float64)
    gate = layer.channel.second(layer.channel.first(x.mean((2, 3))).relu()).sigmoid()
    assert_close(layer(x), x * gate[:, :, None, None], rtol=0, atol=1e-12)
    assert layer.card.paper == "arXiv:1709.01507"


@pytest.mark.parametrize("pool", POOLS)
def test_maps_without_pixels_have_no_slope(pool):
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False, True, True], [False] * 4])
    out = pool_pixels(x, mask, pool)
    assert not out[1].any()
    (slope,) = torch.autograd.grad(out.sum(), x)
    assert slope.isfinite().all()
    assert not slope.masked_select(~mask[:, None]).any()
    zero = torch.zeros(1, 2, 3, requires_grad=True)
    assert torch.autograd.grad(pool_pixels(zero, None, pool).sum(), zero)[0].isfinite().all()


def test_short_floats_are_summed_in_float32():
    """4096 pixels of 20 are more than float16 holds."""
    x, mask = torch.full((1, 1, 4096), 20.0, dtype=torch.float16), torch.ones(1, 4096, dtype=torch.bool)
    for kwargs in ({}, {"mask": mask}):
        assert pool_pixels(x, **kwargs).item() == 20
        assert pool_pixels(x, pool="lp", **kwargs).item() == 1280


def test_pixels_that_only_ask_are_seen_by_no_other():
    layer = drawn(CBAM(4, 2, kernel_size=3))
    x, keys = torch.randn(1, 4, 5, 5, dtype=torch.float64), torch.ones(1, 5, 5, dtype=torch.bool)
    keys[0, 2, 2] = False
    asking = torch.ones_like(keys)
    first, again = (layer(x + shift * ~keys[:, None], key_mask=keys, query_mask=asking) for shift in (0.0, 5.0))
    assert_close(first * keys[:, None], again * keys[:, None], rtol=0, atol=0)
    assert not torch.allclose(first[..., 2, 2], again[..., 2, 2])


def test_padding_is_in_no_statistic_of_training():
    layer, alone = CBAM(4, 2).train(), CBAM(4, 2).train()
    alone.load_state_dict(layer.state_dict())
    torch.nn.init.ones_(layer.spatial.norm.weight), torch.nn.init.ones_(alone.spatial.norm.weight)
    x = torch.randn(2, 4, 5, 6)
    mask = torch.zeros(2, 5, 6, dtype=torch.bool)
    mask[:, :4, :3] = True
    y = layer(x.masked_fill(~mask[:, None], torch.nan), key_mask=mask)
    assert_close(y[:, :, :4, :3], alone(x[:, :, :4, :3]))
    assert_close(layer.spatial.norm.running_var, alone.spatial.norm.running_var)


def test_refusals():
    with pytest.raises(ValueError, match=r"pools=\('mean',\): name one or more of avg, max, lp, lse"):
        CBAM(8, pools=("mean",))
    with pytest.raises(ValueError, match=r"pools=\(\)"):
        CBAM(8, pools=())
    for gates in ((), ("channel", "channel"), ("pixel",)):
        with pytest.raises(ValueError, match="each once"):
            CBAM(8, gates=gates)
    with pytest.raises(ValueError, match="reduction=0 must be positive"):
        CBAM(8, reduction=0)
    with pytest.raises(ValueError, match="kernel_size=4"):
        CBAM(8, kernel_size=4)
    with pytest.raises(UnsupportedError, match="cannot be causal: each gate has seen the whole map"):
        regard.create("cbam", dim=8, causal=True)
