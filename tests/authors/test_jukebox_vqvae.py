"""The authors' VQ-VAE with other options, against its steps written out by the names of their weights, in float64."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors import load
from regard.authors.jukebox_vqvae import _loss, residual, upsampler_name
from regard.authors.replay import replay
from regard.registry import UnsupportedError

COMMIT = "openai/jukebox@08efbbc1d4ed1a3cef96e08a931944c8b4d63bb3:jukebox/vqvae/"
HPS = {
    "bandwidth": {"l1": 0.5, "l2": 0.3, "spec": 7.0},
    "linf_k": 5,
    "lmix_l1": 0.1,
    "lmix_l2": 0.7,
    "lmix_linf": 0.2,
    "multispec_loss_n_fft": [256, 64],
    "multispec_loss_hop_length": [50, 20],
    "multispec_loss_window_size": [200, 64],
    "use_nonrelative_specloss": True,
}
USUAL = {
    "input_shape": [1088, 1],
    "levels": 2,
    "downs_t": [1, 2],
    "strides_t": [4, 2],
    "emb_width": 3,
    "l_bins": 5,
    "mu": 0.9,
    "commit": 0.1,
    "spectral": 0.2,
    "multispectral": 0.5,
    "multipliers": [2, 1],
    "hps": HPS,
    "loss_fn": "lmix",
    "width": 4,
    "depth": 2,
    "m_conv": 1.5,
    "dilation_growth_rate": 3,
}


class Theirs:
    """Variables come to be where they are asked for."""

    def __init__(self, config):
        self.c, self.state = config, {}

    def variable(self, name, *shape):
        if name not in self.state:
            self.state[name] = (0.4 * torch.randn(shape, dtype=torch.float64)).requires_grad_()
        return self.state[name]

    def conv(self, name, x, out, kernel, **options):
        weight = self.variable(f"{name}.weight", out, x.shape[1], kernel)
        return F.conv1d(x, weight, self.variable(f"{name}.bias", out), **options)

    def resnet(self, name, x, level, reverse):
        c, times = self.c, (self.c["multipliers"] or [1, 1])[level]
        depth, width = c["depth"] * times, c["width"] * times
        for place in range(depth):
            k = depth - 1 - place if reverse else place
            d = c["dilation_growth_rate"] ** (k % c["dilation_cycle"] if c.get("dilation_cycle") else k)
            h = self.conv(f"{name}.{place}.model.1", x.relu(), int(c["m_conv"] * width), 3, padding=d, dilation=d)
            h = self.conv(f"{name}.{place}.model.3", h.relu(), width, 1)
            x = x + h * (1 / math.sqrt(depth) if c.get("res_scale") else 1)
        return x

    def encode(self, x, level):
        c, times = self.c, (self.c["multipliers"] or [1, 1])[level]
        for lower in range(level + 1):
            s, down, name = c["strides_t"][lower], c["downs_t"][lower], f"encoders.{level}.level_blocks.{lower}.model"
            for i in range(down):
                x = self.conv(f"{name}.{i}.0", x, c["width"] * times, 2 * s, stride=s, padding=s // 2)
                x = self.resnet(f"{name}.{i}.1.model", x, level, False)
            x = self.conv(f"{name}.{down}", x, c["emb_width"], 3, padding=1) if down else x
        return x

    def decode(self, x, level):
        c, times = self.c, (self.c["multipliers"] or [1, 1])[level]
        width = c["width"] * times
        for lower in reversed(range(level + 1)):
            s, down, name = c["strides_t"][lower], c["downs_t"][lower], f"decoders.{level}.level_blocks.{lower}.model"
            x = self.conv(f"{name}.0", x, width, 3, padding=1) if down else x
            for i in range(1, down + 1):
                x = self.resnet(f"{name}.{i}.0.model", x, level, c.get("reverse_decoder_dilation", False))
                out = width if i < down else c["emb_width"]
                weight = self.variable(f"{name}.{i}.1.weight", width, out, 2 * s)
                x = F.conv_transpose1d(x, weight, self.variable(f"{name}.{i}.1.bias", out), s, s // 2)
        return self.conv(f"decoders.{level}.out", x, c["input_shape"][-1], 3, padding=1)

    def book(self, level):
        name = f"bottleneck.level_blocks.{level}.k"
        if name not in self.state:
            self.state[name] = torch.randn(self.c["l_bins"], self.c["emb_width"], dtype=torch.float64)
        return self.state[name]

    def run(self, x, draws=None):
        c, training = self.c, draws is not None
        judge, given = _loss(c, c["hps"]), iter(draws or [])
        total, commits = 0.0, 0.0
        outs, codes = [], []
        for level in range(c["levels"]):
            latent, k = self.encode(x.mT, level), self.book(level)
            flat = latent.mT.flatten(0, 1)
            if training:  # the first batch makes the codebook; the second permutation is for its step
                k = flat[next(given)[: c["l_bins"]]].detach()
                next(given)
            z = (flat[:, None] - k[None]).square().sum(-1).argmin(-1)
            e = k[z].view(latent.mT.shape).mT
            commits = commits + (latent - e).square().mean()
            through = latent + (e - latent).detach()
            outs.append(self.decode(through if training else through.detach(), level).mT)
            codes.append(z.view(len(x), -1))
            parts = judge(x, outs[-1][:, None], every=True)
            total = total + parts["loss"]
        return total + c["commit"] * commits, outs, codes


def case(config, x, theirs, call, draws=()):
    tensors = {"in/x": x, "in/cotangent": torch.ones((), dtype=torch.float64)}
    for name, tensor in theirs.state.items():
        tensors[f"{'buffer' if name.endswith('.k') else 'param'}/{name}"] = tensor.detach()
    tensors |= {f"in/draw{number}_perm": order for number, order in enumerate(draws)}
    meta = {"mechanism": "jukebox", "source": f"{COMMIT}vqvae.py:VQVAE", "config": json.dumps(config)}
    return replay(tensors, meta | {"call": json.dumps(call), "main_output": "loss"})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"res_scale": True, "dilation_cycle": 1, "multipliers": None, "reverse_decoder_dilation": True},
        {"loss_fn": "linf", "hps": HPS | {"use_nonrelative_specloss": False}, "input_shape": [1088, 2]},
        {"downs_t": [1, 0, 9], "strides_t": [2, 2, 3], "loss_fn": "l1"},
    ],
)
def test_evaluation(options):
    config = USUAL | options
    theirs, x = Theirs(config), torch.randn(2, 1088, config["input_shape"][-1], dtype=torch.float64).tanh()
    loss, outs, codes = theirs.run(x)
    found = case(config, x, theirs, {})
    assert_close(found["out/loss"], loss.detach())
    assert_close(found["out/x_out"], outs[0].detach())
    assert found["out/z1"].equal(codes[1])
    loss.backward()
    for name, tensor in theirs.state.items():
        if not name.endswith(".k"):
            assert_close(found[f"grad/{name}"], torch.zeros_like(tensor) if tensor.grad is None else tensor.grad)


def test_training_from_the_first_batch():
    theirs, x = Theirs(USUAL), torch.randn(2, 1088, 1, dtype=torch.float64).tanh()
    theirs.book(0), theirs.book(1)
    draws = [torch.randperm(count) for count in (544, 544, 136, 136)]
    loss, _, _ = theirs.run(x, draws)
    found = case(USUAL, x, theirs, {"train": True}, draws)
    assert_close(found["out/loss"], loss.detach())
    assert found["out/usage"] > 0
    assert "out/z0" not in found
    loss.backward()
    for name in ("encoders.1.level_blocks.1.model.2.weight", "decoders.0.level_blocks.0.model.1.1.weight"):
        assert_close(found[f"grad/{name}"], theirs.state[name].grad)


def test_a_codebook_alone_from_the_first_batch_with_few_vectors():
    x, noise = torch.randn(1, 3, 2), torch.randn(6, 3)
    orders = [torch.randperm(6), torch.randperm(6)]
    tensors = {"buffer/k": torch.zeros(5, 3), "in/x0": x, "in/cotangent": torch.randn(1, 3, 2)}
    tensors |= {
        "in/draw0_noise": noise,
        "in/draw1_perm": orders[0],
        "in/draw2_noise": noise,
        "in/draw3_perm": orders[1],
    }
    meta = {"mechanism": "jukebox", "source": f"{COMMIT}bottleneck.py:BottleneckBlock"}
    meta["config"] = json.dumps({"k_bins": 5, "emb_width": 3, "mu": 0.9})
    found = replay(tensors, meta | {"call": json.dumps({"update_k": True})})
    tiled = x[0].T.repeat(3, 1) + 0.01 / 3**0.5 * noise
    k = tiled[orders[0][:5]]
    codes = torch.cdist(x[0].T, k).argmin(-1)
    assert found["out/0/codes"].equal(codes[None])
    counts = 0.9 + 0.1 * torch.bincount(codes, minlength=5)
    assert_close(found["out/0/k_elem_after"], counts)
    pull = 2 * 0.5 * (x - k[codes].T[None]) / x.numel()
    assert_close(found["grad/x0"], tensors["in/cotangent"] + pull)
    assert tensors["buffer/k"].equal(torch.zeros(5, 3)), "what was given stays as it was"


def test_several_codebooks_and_halves_that_are_added():
    k, x = torch.randn(2, 4, 3), torch.randn(2, 6, 5)
    tensors = {f"buffer/level_blocks.{level}.k": k[level] for level in range(2)}
    meta = {"mechanism": "jukebox", "source": f"{COMMIT}bottleneck.py:Bottleneck"}
    meta["config"] = json.dumps({"l_bins": 4, "emb_width": 3, "mu": 0.9, "levels": 2})
    found = replay(tensors | {"in/x0": x, "in/x1": 2 * x}, meta)
    summed = x[:, :3] + x[:, 3:]
    expected = torch.cdist(2 * summed.mT, k[1].expand(2, 4, 3)).argmin(-1)
    assert found["out/1/codes"].equal(expected)
    assert_close(found["out/1/quantised"], k[1][expected].mT)


def test_loaded_weights_go_on_training_and_names_of_a_conditioner():
    theirs = Theirs(USUAL)
    theirs.run(torch.randn(1, 1088, 1, dtype=torch.float64))
    state = {name: tensor.detach() for name, tensor in theirs.state.items()}
    model = load("jukebox", f"{COMMIT}vqvae.py:VQVAE", USUAL, state)
    assert bool(model.codebooks[0].started)
    assert model.codebooks[0].counts.eq(1).all()
    assert upsampler_name("c.model.2.0.blocks.1.model.1.bias") == "c.steps.1.0.blocks.1.dilated.bias"
    assert residual({"width": 4, "depth": 2}).growth == 1


def test_refusals():
    with pytest.raises(UnsupportedError, match="no option colour"):
        load("jukebox", f"{COMMIT}vqvae.py:VQVAE", USUAL | {"colour": 1}, {})
    with pytest.raises(UnsupportedError, match="loss_fn='huber'"):
        load("jukebox", f"{COMMIT}vqvae.py:VQVAE", USUAL | {"loss_fn": "huber"}, {})
    with pytest.raises(UnsupportedError, match="2 levels need"):
        load("jukebox", f"{COMMIT}vqvae.py:VQVAE", USUAL | {"downs_t": [1]}, {})
    with pytest.raises(ValueError, match="even strides"):
        load("jukebox", f"{COMMIT}vqvae.py:VQVAE", USUAL | {"strides_t": [3, 2]}, {})
