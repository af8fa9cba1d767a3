"""Does it sound like the music that it was learned from? Figures of spectra, of loudness and of codes.

A composed sound cannot be compared with a right answer. It is compared in distribution: with the mean spectrum and the
code counts of the training part, beside the same figures of held-out music, of silence and of white noise as loud as
the music. All figures are means over pieces of ``PIECE`` seconds, so that long and short sounds have the same footing;
what is left at the end is no piece.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regard.models.sound_loss import Resolution, magnitudes
from regard.models.vqvae import VQVAE
from regard.ops.codebook import entropy
from regard.tasks.codes import Coded, encode_songs
from regard.tasks.documents import InputError
from regard.tasks.music import RATE, Song

PIECE = 4.0
"""Seconds."""

FRAMES = Resolution(512, 128, 512)
"""64 ms each, every 16 ms."""

FLOOR = 1e-10
"""Of powers, before their logarithm: -100 decibels."""

FIGURES = {
    "distance of mean spectra (dB)": "to that of training, in decibels: standard deviation over frequencies, so that "
    "loudness, which is told apart, makes no difference",
    "flatness": "geometric by arithmetic mean of the power of a frame: 1 is white noise, 0 a single tone",
    "centroid (Hz)": "mean frequency, weighted by power",
    "loudness (dB)": "mean power of a frame, full scale is 0",
    "loudness range (dB)": "between the 10th and the 90th percentile of frames",
    "distance of codes, level 0": "half the sum of |share here - share in training|: 0 the same, 1 none in common",
}
"""What they mean; those of codes are told for each level."""


def decibels(power: Tensor) -> Tensor:
    """10 log10, from -100 on."""
    return 10 * power.clamp(min=FLOOR).log10()


def powers(waveform: Float[Tensor, " N"]) -> Float[Tensor, "F S"]:
    """Of each frequency and frame, so that a full-scale square wave has about 1 in all.

    Raises:
        InputError: a sound that is shorter than a frame.
    """
    if len(waveform) < FRAMES.n_fft:
        raise InputError(
            f"{len(waveform)} samples are shorter than a frame of {FRAMES.n_fft}: there is nothing to measure"
        )
    window = torch.hann_window(FRAMES.window).square().sum()
    return magnitudes(waveform[None], FRAMES)[0].square() * 2 / (window * FRAMES.n_fft)


def mean_power(waveforms: Sequence[Float[Tensor, " _"]]) -> Float[Tensor, " F"]:
    """The mean power of each frequency over all frames."""
    found = [powers(waveform) for waveform in waveforms]
    return torch.cat(found, -1).mean(-1)


def spectral_figures(waveform: Float[Tensor, " N"], reference: Float[Tensor, " F"]) -> dict[str, float]:
    """Figures of one piece of sound.

    Args:
        waveform: at ``RATE``.
        reference: the mean power of the training part.
    """
    power = powers(waveform)
    whole = power.mean(-1)
    heard = power[:, power.sum(0) > FLOOR * len(power)]  # silence has no shape
    frequencies = torch.linspace(0, RATE / 2, len(power))
    loud = decibels(power.sum(0))
    flat, centre = math.nan, math.nan
    if heard.shape[1]:
        geometric = heard.clamp(min=FLOOR).log().mean(0).exp()
        flat = float((geometric / heard.clamp(min=FLOOR).mean(0)).mean())
        centre = float(((frequencies[:, None] * heard).sum(0) / heard.sum(0)).mean())
    low, high = torch.quantile(loud, torch.tensor([0.1, 0.9])).tolist()
    distance = (decibels(whole) - decibels(reference)).std(correction=0)
    return {
        "distance of mean spectra (dB)": float(distance),
        "flatness": flat,
        "centroid (Hz)": centre,
        "loudness (dB)": float(decibels(power.sum(0).mean())),
        "loudness range (dB)": high - low,
    }


def code_figures(codes: Int[Tensor, " N"], reference: Float[Tensor, " K"], level: int) -> dict[str, float]:
    """Figures of the codes of one piece.

    Args:
        codes: of one level.
        reference: how often each code occurs in the training part.
        level: which.
    """
    count = len(reference)
    counts = torch.bincount(codes, minlength=count).double()
    pairs = torch.bincount(codes[:-1] * count + codes[1:]).double()
    apart = 0.5 * (counts / counts.sum() - reference / reference.sum()).abs().sum()
    return {
        f"distance of codes, level {level}": float(apart),
        f"codes used, level {level}": float((counts > 0).sum()),
        f"perplexity of codes, level {level}": float(entropy(counts).exp()),
        f"entropy of code pairs (bits), level {level}": float(entropy(pairs[pairs > 0])) / math.log(2),
    }


@dataclass(frozen=True)
class Reference:
    """What sounds are compared with: it is made once, at the end of training, and kept as JSON.

    Attributes:
        power: mean power of each frequency in the training part.
        codes: of each level, how often each code occurs there.
        loudness: mean power of the training part, for the noise.
    """

    power: tuple[float, ...]
    codes: tuple[tuple[int, ...], ...]
    loudness: float

    @classmethod
    def of(cls, songs: Sequence[Song], coded: Coded) -> "Reference":
        """Of the training part, and its codes."""
        power = mean_power([song.waveform for song in songs if len(song.waveform) >= FRAMES.n_fft])
        counts = [
            torch.bincount(torch.cat([stream.levels[level] for stream in coded.train]), minlength=size)
            for level, size in enumerate(coded.sizes)
        ]
        loudness = float(torch.cat([song.waveform for song in songs]).square().mean())
        return cls(tuple(power.tolist()), tuple(tuple(c.tolist()) for c in counts), loudness)

    def told(self) -> dict[str, Any]:
        """As JSON."""
        return {"power": self.power, "codes": self.codes, "loudness": self.loudness}

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> "Reference":
        """Back from JSON."""
        return cls(tuple(told["power"]), tuple(tuple(counts) for counts in told["codes"]), float(told["loudness"]))

    def noise(self, samples: int, generator: torch.Generator) -> Float[Tensor, " N"]:
        """White noise as loud as the training part."""
        return torch.randn(samples, generator=generator) * self.loudness**0.5

    def figures(self, model: VQVAE, waveforms: Sequence[Float[Tensor, " _"]]) -> dict[str, float]:
        """The mean of each figure over all pieces of all sounds; of a sound shorter than a piece, over the whole of it.

        Args:
            model: the VQ-VAE whose codes are counted.
            waveforms: at ``RATE``.
        """
        size, found = round(PIECE * RATE), list[dict[str, float]]()
        power = torch.tensor(self.power)
        counts = [torch.tensor(codes).double() for codes in self.codes]
        for waveform in waveforms:
            whole = waveform if len(waveform) < size else waveform[: len(waveform) // size * size]
            for piece in whole.split(size):
                told = spectral_figures(piece, power)
                for stream in encode_songs(model, [Song("", piece)]):
                    for level, codes in enumerate(stream.levels):
                        told |= code_figures(codes, counts[level], level)
                found.append(told)
        return {name: sum(told[name] for told in found) / len(found) for name in found[0]}


def compare(
    reference: Reference,
    model: VQVAE,
    sounds: Mapping[str, Sequence[Float[Tensor, " _"]]],
    generator: torch.Generator,
) -> dict[str, dict[str, float]]:
    """Sound by sound -> figure -> value: those given, silence and noise.

    Args:
        reference: of the training part.
        model: the VQ-VAE.
        sounds: by name.
        generator: of the noise.
    """
    size = round(PIECE * RATE)
    given = {name: list(waveforms) for name, waveforms in sounds.items()}
    given |= {"silence": [torch.zeros(size)], "noise": [reference.noise(4 * size, generator)]}
    return {name: reference.figures(model, waveforms) for name, waveforms in given.items() if waveforms}
