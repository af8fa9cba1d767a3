"""The VQ-VAE: residual stacks as loops, hops, levels that are independent, gradients, and refusals."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.models.sound_blocks import Downsampler, Residual, ResidualStack, Upsampler
from regard.models.vqvae import VQVAE
from regard.registry import UnsupportedError

SMALL = Residual(6, 2)


def small(**options):
    return VQVAE((2, 1), (2, 4), SMALL, **{"codes": 8, "code_width": 5, "dtype": torch.float64, **options})


@pytest.mark.parametrize("reverse", [False, True])
def test_a_stack_is_its_blocks_written_out(reverse):
    residual = Residual(4, 4, expansion=1.5, growth=2, cycle=3, scaled=True)
    stack = ResidualStack(residual, reverse=reverse, dtype=torch.float64)
    x = torch.randn(2, 4, 13, dtype=torch.float64)
    expected = x
    for number, block in enumerate(stack.blocks):
        dilation = 2 ** ((3 - number if reverse else number) % 3)
        wide = torch.zeros(2, 6, 13, dtype=torch.float64)
        for t in range(13):
            for tap in (-1, 0, 1):
                if 0 <= t + tap * dilation < 13:
                    wide[:, :, t] += expected[:, :, t + tap * dilation].relu() @ block.dilated.weight[:, :, tap + 1].T
        wide = (wide + block.dilated.bias[:, None]).relu()
        expected = expected + (block.mix.weight[:, :, 0] @ wide + block.mix.bias[:, None]) / 4**0.5
    assert_close(stack(x), expected)


def test_zeroed_stacks_begin_as_nothing():
    stack, x = ResidualStack(Residual(4, 3, zeroed=True)), torch.randn(1, 4, 9)
    assert stack(x).equal(x)


@pytest.mark.parametrize("stride", [2, 4])
def test_steps_divide_and_multiply_the_length(stride):
    x = torch.randn(2, 3, 3 * stride**2)
    down, up = Downsampler(3, 5, 2, stride, SMALL), Upsampler(5, 3, 2, stride, SMALL, reverse=True)
    assert down(x).shape == (2, 5, 3)
    assert up(down(x)).shape == x.shape
    assert Downsampler(3, 3, 0, 2, SMALL)(x).equal(x)
    assert Upsampler(3, 3, 0, 2, SMALL)(x).equal(x)


def test_a_step_down_is_its_convolutions():
    down, x = Downsampler(1, 2, 1, 4, Residual(3, 1)), torch.randn(1, 1, 16)
    conv, stack = down.steps[0]
    inner = stack(F.conv1d(x, conv.weight, conv.bias, stride=4, padding=2))
    assert conv.weight.shape == (3, 1, 8)
    assert_close(down(x), F.conv1d(inner, down.leave.weight, down.leave.bias, padding=1))


def test_levels_code_at_their_hops_and_decode_alone():
    model, x = small().eval(), torch.randn(3, 48, 1, dtype=torch.float64)
    for book in model.codebooks:
        book.table.normal_()
    codes, y = model.encode(x), model(x)
    assert model.hops == (4, 16)
    assert [tuple(level.shape) for level in codes] == [(3, 12), (3, 3)]
    for level in range(2):
        assert_close(model.decode(codes[level], level), y[:, level])
    with torch.no_grad():
        for parameter in (*model.encoders[1].parameters(), *model.decoders[1].parameters()):
            parameter.add_(1.0)
    assert model.encode(x)[0].equal(codes[0])
    assert not model(x)[:, 1].allclose(y[:, 1])
    assert model(x)[:, 0].equal(y[:, 0])


def test_multipliers_scale_width_and_depth():
    model = small(multipliers=(2, 1))
    stacks = [encoder[0].steps[0][1].blocks for encoder in model.encoders]
    assert [(len(blocks), blocks[0].mix.out_channels) for blocks in stacks] == [(4, 12), (2, 6)]


def test_training_moves_codebooks_and_gives_every_parameter_a_gradient():
    model, x = small(), torch.randn(2, 64, 1, dtype=torch.float64)
    y, told = model(x, return_aux=True)
    assert told["loss/commit"] > 0
    assert {"metric/0/entropy", "metric/1/alive"} <= told.keys()
    y.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.encoders.parameters())
    assert all(parameter.grad is not None for parameter in model.parameters())
    before = model.codebooks[0].table.clone()
    model(x)
    assert not model.codebooks[0].table.equal(before)


def test_in_eval_mode_only_the_commitment_reaches_the_encoder():
    model, x = small(), torch.randn(2, 64, 1, dtype=torch.float64)
    model(x)
    y, told = model.eval()(x, return_aux=True)
    assert all(g is None for g in torch.autograd.grad(y.sum(), list(model.encoders.parameters()), allow_unused=True))
    assert torch.autograd.grad(told["loss/commit"], list(model.encoders.parameters()))[0].any()


def test_a_generator_repeats_a_step_and_what_is_saved_is_whole():
    x = torch.randn(2, 64, 1, dtype=torch.float64)
    model = small()
    twin = copy.deepcopy(model)
    for each in (model, twin):
        each(x, generator=torch.Generator().manual_seed(1))
    assert all(a.equal(b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    fresh = small()
    fresh.load_state_dict(model.state_dict())
    assert bool(fresh.codebooks[0].started)
    assert fresh.eval()(x).equal(model.eval()(x))
    model.reset_parameters()
    assert not model.codebooks[0].started


def test_without_codebooks_it_is_a_plain_autoencoder():
    model, x = small(quantise=False), torch.randn(1, 32, 1, dtype=torch.float64)
    y, told = model(x, return_aux=True)
    assert_close(model.decode(model.encode(x)[1], 1), y[:, 1])
    assert told == {"loss/commit": torch.zeros((), dtype=torch.float64)}
    y.sum().backward()
    assert model.encoders[0][0].steps[0][0].weight.grad.any()


def test_refusals():
    model = small().eval()
    with pytest.raises(ValueError, match=r"30 samples.*multiple of 4"):
        model(torch.zeros(1, 30, 1, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"20 samples.*level 1 stands for 16"):
        model(torch.zeros(1, 20, 1, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"\(1, 32\).*\(B, T, 1\)"):
        model.latents(torch.zeros(1, 32), 0)
    with pytest.raises(TypeError, match="int64"):
        model.latents(torch.zeros(1, 32, 1, dtype=torch.long), 0)
    with pytest.raises(ValueError, match=r"level 2.*0 to 1"):
        model.decode(torch.zeros(1, 2, dtype=torch.long), 2)
    with pytest.raises(UnsupportedError, match="no mask"):
        model(torch.zeros(1, 32, 1, dtype=torch.float64), key_mask=torch.ones(1, 32, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"stride 3.*even strides"):
        VQVAE((1,), (3,), SMALL)
    with pytest.raises(ValueError, match="2 downs, 1 strides"):
        VQVAE((1, 1), (2,), SMALL)
    with pytest.raises(ValueError, match="leaves 1 channels"):
        VQVAE((0,), (2,), SMALL)
    with pytest.raises(ValueError, match="leaves none"):
        Residual(2, expansion=0.1)
