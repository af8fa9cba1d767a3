import math

import pytest
import torch
from torch.testing import assert_close

from regard.models import AxialTransformer

SIZES = {"num_values": 7, "dim": 8, "num_heads": 2, "outer_layers": 2, "inner_layers": 2, "exterior_layers": 2}


def model(channels=None, **options):
    """One that has forgotten its start, at which all branches are 0."""
    made = AxialTransformer(3, 4, channels, **{**SIZES, **options}).double().eval()
    for name, parameter in made.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if "conv" not in name else 0.3)
        else:
            torch.nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.1)
    return made


def images(channels, batch=2):
    return torch.randint(7, (batch, 3, 4) if channels is None else (batch, channels, 3, 4))


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_a_value_depends_on_exactly_those_before_it(channels):
    """In raster order, channel by channel."""
    axial, x = model(channels), images(channels, 1)
    y = axial(x).flatten(1, -2)
    for place in range(x.numel()):
        changed = x.clone()
        changed.view(-1)[place] = (changed.view(-1)[place] + 3) % 7
        moved = (axial(changed).flatten(1, -2) - y).abs().amax((0, 2))
        assert not moved[: place + 1].any()
        assert (moved[place + 1 :] > 1e-9).all()


@pytest.mark.parametrize("channels", [None, 2])
@pytest.mark.parametrize("given", [False, True])
def test_fast_and_slow_sampling_agree(channels, given):
    axial = model(channels)
    cond = torch.randn(2, 3, 4, 8, dtype=torch.float64) if given else None
    noise = axial.gumbel(2)
    slow, fast = (axial.sample(noise, cond, fast=fast) for fast in (False, True))
    assert torch.equal(slow, fast)
    # what was drawn is what the whole image's logits say
    assert torch.equal((axial(slow, cond) + noise).argmax(-1), slow)
    assert len(slow.unique()) > 3


def test_conditioning_reaches_every_pixel():
    axial, x, cond = model(), images(None), torch.randn(2, 3, 4, 8, dtype=torch.float64)
    assert ((axial(x, cond) - axial(x)).abs().amax(-1) > 1e-9).all()


@pytest.mark.parametrize("channels", [None, 3])
def test_it_starts_uniform(channels):
    axial, x = AxialTransformer(3, 4, channels, **SIZES).eval(), images(channels)
    assert_close(axial.bits_per_dim(x).item(), math.log2(7), rtol=0, atol=1e-3)
    blocks = axial.decoder.outer if channels is None else axial.encoder.blocks
    h = torch.randn(2, 3, 4, 8)
    assert_close(blocks[0](h), h, rtol=0, atol=1e-3)
    table = AxialTransformer(8, 8, **{**SIZES, "dim": 64}).decoder.positions.rows.detach()
    assert abs(float(table.std()) - 5 / 8) < 0.08


def test_bits_per_dim():
    axial, x = model(3), images(3)
    p = axial(x).softmax(-1).gather(-1, x[..., None])
    assert_close(axial.bits_per_dim(x), -p.log2().mean())
    axial.train()
    drawn = torch.randint(3, (2,), generator=torch.Generator().manual_seed(5))
    one = -p[torch.arange(2), drawn].log2().mean()
    assert_close(axial.bits_per_dim(x, generator=torch.Generator().manual_seed(5)), one)
    assert_close(axial.channel_logits(x, drawn), axial(x)[torch.arange(2), drawn])


def test_gumbel_noise_draws_from_the_softmax():
    axial, logits = model(), torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, 0.0, -3.0]).double()
    for temperature in (1.0, 0.5):
        noise = axial.gumbel(1000, temperature)
        share = torch.bincount((logits + noise).argmax(-1).flatten(), minlength=7) / 12000
        assert_close(share.double(), (logits / temperature).softmax(0), rtol=0, atol=0.02)


@pytest.mark.parametrize("channels", [None, 3])
def test_every_parameter_learns(channels):
    axial = model(channels, dropout=0.1).train()
    axial(images(channels)).square().sum().backward()
    for name, parameter in axial.named_parameters():
        assert parameter.grad.any() or "k_proj.bias" in name, name  # a bias on all keys cancels in the softmax


def test_refusals():
    with pytest.raises(ValueError, match=r"outer_layers=3.*even"):
        AxialTransformer(3, 4, **{**SIZES, "outer_layers": 3})
    with pytest.raises(ValueError, match=r"\(2, 4, 4\).*\(batch, \*\(3, 4\)\)"):
        model()(torch.zeros(2, 4, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="one plane"):
        model().channel_logits(images(None), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"noise for 5 values.*num_values=7"):
        model().sample(torch.zeros(1, 3, 4, 5))
