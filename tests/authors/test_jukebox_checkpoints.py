import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close

from regard.authors.jukebox_checkpoints import PUBLISHED, build_prior, load_prior, load_vqvae, read_state

FIXTURE = Path(__file__).parents[1] / "parity" / "data" / "jukebox" / "prior_lyrics_encoder.safetensors"


def recorded():
    """The settings, weights and numbers of the authors' small prior."""
    with safe_open(FIXTURE, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
        return json.loads(file.metadata()["config"]), tensors


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "legacy"])
def test_a_released_prior_is_loaded(tmp_path, legacy):
    settings, tensors = recorded()
    weights = {f"module.{name[6:]}": tensor for name, tensor in tensors.items() if name.startswith("param/")}
    path = tmp_path / "prior_level_2.pth.tar"
    torch.save({"model": weights, "step": 7, "opt": None}, path, _use_new_zipfile_serialization=not legacy)
    prior = load_prior(path, settings)
    assert not prior.training
    told = prior.bits(tensors["in/z"], labels=tensors["in/y"])
    assert_close(told.total, tensors["out/loss"])
    assert_close(prior.joint_logits(tensors["in/z"], labels=tensors["in/y"]), tensors["out/preds"])
    half = load_prior(path, settings, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("name", "billions", "window", "hop"),
    [
        ("upsampler_level_0", 0.98, 8192, 8),
        ("upsampler_level_1", 0.98, 8192, 32),
        ("prior_5b", 5.06, 8192, 128),
        ("prior_5b_lyrics", 5.64, 8192, 128),
        ("prior_1b_lyrics", 0.94, 6144, 128),
    ],
)
def test_settings_have_the_published_sizes(name, billions, window, hop):
    prior = build_prior(name)
    assert round(sum(tensor.numel() for tensor in prior.parameters()) / 1e9, 2) == billions
    assert (prior.max_length, prior.num_codes, prior.hop) == (window, 2048, hop)
    assert {tensor.device.type for tensor in prior.parameters()} == {"meta"}
    lyrics = PUBLISHED[name]["prime_kwargs"]["n_tokens"]
    assert (prior.lyrics is not None or prior.lyric_vocabulary > 0) == bool(lyrics)
    assert (prior.upper is None) == name.startswith("prior")


def released_vqvae():
    """Weights of the shapes and names of ``vqvae.pth.tar``."""
    state = {}

    def convolution(name, *shape, turned=False):
        state[f"{name}.weight"] = 0.1 * torch.randn(shape)
        state[f"{name}.bias"] = torch.zeros(shape[1 if turned else 0])

    def stack(name, width, depth):
        for number in range(depth):
            convolution(f"{name}.model.{number}.model.1", width, width, 3)
            convolution(f"{name}.model.{number}.model.3", width, width, 1)

    for level, times in enumerate((2, 1, 1)):
        width, depth = 32 * times, 4 * times
        for number, down in enumerate((3, 2, 2)[: level + 1]):
            encoder, decoder = (f"{part}coders.{level}.level_blocks.{number}.model" for part in ("en", "de"))
            convolution(f"{decoder}.0", width, 64, 3)
            for step in range(down):
                convolution(f"{encoder}.{step}.0", width, width if step else 64 if number else 1, 4)
                stack(f"{encoder}.{step}.1", width, depth)
                stack(f"{decoder}.{step + 1}.0", width, depth)
                convolution(f"{decoder}.{step + 1}.1", width, width if step < down - 1 else 64, 4, turned=True)
            convolution(f"{encoder}.{down}", 64, width, 3)
        convolution(f"decoders.{level}.out", 1, 64, 3)
        state[f"bottleneck.level_blocks.{level}.k"] = torch.randn(2048, 64)
    return state


def test_the_released_autoencoder_is_loaded(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "vqvae.pth.tar"
    state = released_vqvae()
    torch.save({"model": state}, path)
    model = load_vqvae(path)
    codes = model.encode(torch.randn(1, 1280, 1).clamp(-1, 1))
    assert [tuple(level.shape) for level in codes] == [(1, 160), (1, 40), (1, 10)]
    assert torch.equal(model.codebooks[1].table, state["bottleneck.level_blocks.1.k"])


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="settings='5b': released are upsampler_level_0"):
        build_prior("5b")
    path = tmp_path / "other.pth.tar"
    torch.save({"weights": {}}, path)
    with pytest.raises(ValueError, match="no weights under 'model'"):
        read_state(path)
    torch.save({"model": {}, "hook": Path}, path)
    with pytest.raises(ValueError, match="tensors and plain values only"):
        read_state(path)
    path.write_text("nothing")
    with pytest.raises(ValueError, match=r"other\.pth\.tar"):
        load_vqvae(path)
    torch.save({"model": {"prior.x_emb.weight": torch.zeros(2, 3)}}, path)
    with pytest.raises(RuntimeError, match="Missing key"):
        load_prior(path, recorded()[0])
