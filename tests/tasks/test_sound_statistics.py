"""Figures of sound: tones, noise and silence have those that they must have; codes are counted."""

import io
import json
import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from regard.tasks.codes import Coded, Stream
from regard.tasks.documents import InputError
from regard.tasks.music import RATE, build_vqvae
from regard.tasks.sound_picture import draw_sounds
from regard.tasks.sound_statistics import Reference, code_figures, compare, mean_power, powers, spectral_figures
from tests.tasks.music_here import tune


def tone(frequency, seconds=1.0, peak=0.5):
    return peak * torch.sin(2 * torch.pi * frequency * torch.arange(round(seconds * RATE)) / RATE)


def test_powers_add_up_to_the_mean_square():
    noise = 0.1 * torch.randn(4 * RATE)
    assert_close(float(powers(noise).sum(0).mean()), float(noise.square().mean()), rtol=0.05, atol=0)
    assert_close(float(powers(tone(1000)).sum(0)[8:-8].mean()), 0.125, rtol=0.01, atol=0)
    assert int(powers(tone(1000)).mean(-1).argmax()) == 64
    with pytest.raises(InputError, match="500 samples are shorter"):
        powers(torch.zeros(500))


def test_figures_of_a_tone_of_noise_and_of_silence():
    noise = torch.randn(4 * RATE)
    flat = mean_power([noise])
    of_tone, of_noise = spectral_figures(tone(1000), flat), spectral_figures(0.1 * noise, flat)
    assert abs(of_tone["centroid (Hz)"] - 1000) < 20
    assert abs(of_noise["centroid (Hz)"] - 2000) < 50
    assert of_tone["flatness"] < 0.01 < 0.5 < of_noise["flatness"] < 0.65
    assert abs(of_tone["loudness (dB)"] - 10 * math.log10(0.125)) < 0.2
    assert of_noise["distance of mean spectra (dB)"] < 0.01 < 10 < of_tone["distance of mean spectra (dB)"]
    silence = spectral_figures(torch.zeros(RATE), flat)
    assert silence["loudness (dB)"] == -100
    assert math.isnan(silence["flatness"])
    loud_then_soft = torch.cat((tone(500), 0.1 * tone(500)))
    assert abs(spectral_figures(loud_then_soft, flat)["loudness range (dB)"] - 20) < 0.5


def test_figures_of_codes():
    codes = torch.tensor([0, 1, 0, 0, 1, 1, 0])
    told = code_figures(codes, torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64), 1)
    assert_close(told["distance of codes, level 1"], 0.5)
    assert told["codes used, level 1"] == 2
    shares = (4 / 7, 3 / 7)
    assert_close(
        told["perplexity of codes, level 1"], math.exp(-sum(p * math.log(p) for p in shares)), rtol=1e-6, atol=0
    )
    pairs = Counter(pairwise(codes.tolist()))
    bits = -sum(n / 6 * math.log2(n / 6) for n in pairs.values())
    assert_close(told["entropy of code pairs (bits), level 1"], bits, rtol=1e-6, atol=0)
    assert_close(code_figures(codes, torch.tensor([4.0, 3.0]).double(), 0)["distance of codes, level 0"], 0.0)


@pytest.fixture(scope="module")
def known():
    model = build_vqvae(8, 1, codes=16, code_width=4)
    songs = [tune("a", 5)]
    model(songs[0].waveform[None, : 64 * 400, None])
    stream = Stream("a", tuple(level[0] for level in model.eval().encode(songs[0].waveform[None, : 64 * 625, None])))
    coded = Coded((stream,), (stream,), (stream,), model.hops, (16, 16))
    return model, Reference.of(songs, coded)


def test_sounds_stand_beside_silence_and_noise_and_long_ones_are_means_of_pieces(known):
    model, reference = known
    waves = [tune("a", 4, seed).waveform for seed in (0, 7)]
    found = compare(reference, model, {"both": [torch.cat(waves)], "none": []}, torch.Generator().manual_seed(0))
    assert found.keys() == {"both", "silence", "noise"}
    alone = [reference.figures(model, [wave]) for wave in waves]
    for name, value in found["both"].items():
        assert_close(value, sum(told[name] for told in alone) / 2)
    assert found["both"]["distance of mean spectra (dB)"] < found["noise"]["distance of mean spectra (dB)"]
    assert abs(found["noise"]["loudness (dB)"] - found["both"]["loudness (dB)"]) < 1


def test_a_reference_is_kept_as_json(known):
    _, reference = known
    again = Reference.read(json.loads(json.dumps(reference.told())))
    assert again == reference
    assert sum(reference.codes[0]) == 2500
    assert sum(reference.codes[1]) == 625


def test_a_picture_has_a_row_for_each_sound_and_one_for_spectra(known):
    image = pytest.importorskip("PIL.Image")
    sounds = {"one": tune("a", 2).waveform, "other": tone(440)}
    sizes = []
    for given in ({"one": sounds["one"]}, sounds):
        with image.open(io.BytesIO(draw_sounds(given, torch.tensor(known[1].power)))) as picture:
            sizes.append(picture.size)
    assert sizes[0][0] == sizes[1][0]
    assert sizes[1][1] > sizes[0][1]
