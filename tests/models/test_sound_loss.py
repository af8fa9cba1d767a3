"""Losses of sound: the STFT as a loop of sums, every part by its formula, levels, silence, and refusals."""

import math

import pytest
import torch
from torch.testing import assert_close

from regard.models.sound_loss import Bandwidth, Resolution, SoundLoss, bandwidth, magnitudes, spectral_distance

SMALL = (Resolution(16, 5, 12), Resolution(8, 3, 8))


def slow_magnitudes(x, n_fft, hop, window):
    """|sum_n w_n x_n e^(-2 pi i f n / n_fft)| of frames centred on every hop, ends reflected."""
    half = n_fft // 2
    padded = [*x[1 : half + 1].flip(0).tolist(), *x.tolist(), *x[-half - 1 : -1].flip(0).tolist()]
    left = (n_fft - window) // 2
    hann = [0.0] * n_fft
    for n in range(window):
        hann[left + n] = 0.5 - 0.5 * math.cos(2 * math.pi * n / window)
    out = torch.zeros(half + 1, 1 + len(x) // hop, dtype=torch.float64)
    for frame in range(out.shape[1]):
        for f in range(half + 1):
            terms = [(hann[n] * padded[frame * hop + n], 2 * math.pi * f * n / n_fft) for n in range(n_fft)]
            real, imaginary = (sum(v * turn(a) for v, a in terms) for turn in (math.cos, math.sin))
            out[f, frame] = math.hypot(real, imaginary)
    return out


@pytest.mark.parametrize("resolution", SMALL)
def test_magnitudes_are_the_sums(resolution):
    x = torch.randn(31, dtype=torch.float64)
    expected = slow_magnitudes(x, resolution.n_fft, resolution.hop, resolution.window)
    assert_close(magnitudes(x[None], resolution)[0], expected)


def test_every_part_by_its_formula():
    scale = Bandwidth(0.5, 0.25, 3.0)
    weights = {"l1": 0.3, "l2": 0.7, "linf": 0.2, "spectral": 0.4, "multispectral": 0.6}
    judge = SoundLoss(**weights, peaks=3, bandwidth=scale, alone=SMALL[0], several=SMALL)
    x, y = torch.randn(2, 24, 1, dtype=torch.float64), torch.randn(2, 2, 24, 1, dtype=torch.float64)
    parts = judge(x, y)
    expected = dict.fromkeys(weights, 0.0)
    for b in range(2):
        for level in range(2):
            apart = (x[b] - y[b, level]).flatten()
            expected["l1"] += apart.abs().mean() / 0.5 / 2
            expected["l2"] += apart.square().mean() / 0.25 / 2
            expected["linf"] += apart.square().sort().values[-3:].mean() / 0.25 / 2
            gaps = [
                (slow_magnitudes(x[b, :, 0], *sizes) - slow_magnitudes(y[b, level, :, 0], *sizes)).square().sum().sqrt()
                for sizes in ((r.n_fft, r.hop, r.window) for r in SMALL)
            ]
            expected["spectral"] += gaps[0] / 3 / 2
            expected["multispectral"] += sum(gaps) / 2 / 3 / 2
    for name, value in expected.items():
        assert_close(parts[name], value)
    assert_close(parts["loss"], sum(weights[name] * value for name, value in expected.items()))


def test_two_channels_meet_in_their_mean_and_parts_without_weight_are_told_when_asked_for():
    judge = SoundLoss(l2=1.0, linf=0.0, multispectral=0.0, relative=True, alone=SMALL[0], several=SMALL, peaks=4)
    x = torch.randn(1, 24, 2, dtype=torch.float64)
    swapped = x.flip(-1)[:, None]
    assert judge(x, swapped).keys() == {"loss", "l2"}
    parts = judge(x, swapped, every=True)
    assert parts.keys() == {"loss", "l1", "l2", "linf", "spectral", "multispectral"}
    assert parts["l2"] > 0
    assert parts["spectral"] < 1e-12
    assert parts["loss"] == parts["l2"]


def test_relative_distance_of_silence_is_zero_and_its_gradient_is_no_nan():
    y = torch.zeros(1, 24, dtype=torch.float64, requires_grad=True)
    distance = spectral_distance(torch.zeros(1, 24, dtype=torch.float64), y, SMALL[0], relative=True)
    assert distance == 0
    x = torch.randn(1, 24, dtype=torch.float64)
    assert_close(spectral_distance(x, torch.zeros_like(x), SMALL[0], relative=True), torch.ones(1, dtype=torch.float64))
    half = SoundLoss(l2=0.0, linf=0.0, spectral=1.0, multispectral=0.0, relative=True, alone=SMALL[0])
    assert_close(half(x[..., None], 0.5 * x[:, None, :, None])["loss"], torch.tensor(0.5, dtype=torch.float64))
    judge = SoundLoss(peaks=2, several=SMALL)
    judge(torch.zeros(1, 24, 1, dtype=torch.float64), y[:, None, :, None])["loss"].backward()
    assert y.grad.isfinite().all()


def test_bandwidth_of_pieces():
    pieces = [torch.randn(1500), 0.1 + torch.randn(2000)]
    found, joined = bandwidth(pieces), torch.cat(pieces).double()
    assert_close(found.l1, float(joined.abs().mean()))
    assert_close(found.l2, float(joined.var(correction=0)))
    norms = [magnitudes(piece.double()[None], Resolution(2048, 256, 1536)).square().sum().sqrt() for piece in pieces]
    assert_close(found.spec, float(sum(norms)) / 2)
    with pytest.raises(ValueError, match="silence has no bandwidth"):
        bandwidth([torch.zeros(1500)])


def test_half_precision_is_measured_in_float32():
    x = torch.randn(1, 600, dtype=torch.bfloat16)
    assert magnitudes(x, SMALL[0]).dtype == torch.float32


def test_refusals():
    with pytest.raises(ValueError, match=r"1024 samples.*1025 at least"):
        SoundLoss(peaks=9)(torch.zeros(1, 1024, 1), torch.zeros(1, 1, 1024, 1))
    with pytest.raises(ValueError, match="peaks=2048 of 1100"):
        SoundLoss()(torch.zeros(1, 1100, 1), torch.zeros(1, 1, 1100, 1))
    with pytest.raises(ValueError, match=r"\(1, 1100, 1\).*\(1, 1, 1000, 1\)"):
        SoundLoss()(torch.zeros(1, 1100, 1), torch.zeros(1, 1, 1000, 1))
