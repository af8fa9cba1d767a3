"""A sound beside others as a picture: what is loud when and at which pitch, and the mean of that over time."""

import io
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from regard.tasks.music import RATE
from regard.tasks.sound_statistics import FRAMES, decibels, mean_power, powers

DEPTH = 70.0
"""Decibels below the loudest place that are told apart."""


def draw_sounds(sounds: Mapping[str, Float[Tensor, " _"]], mean: Float[Tensor, " F"] | None = None) -> bytes:
    """A PNG: a spectrogram for each sound, all with the same colours, and their mean spectra in one chart.

    Args:
        sounds: by name, at ``RATE``, each longer than a frame.
        mean: the mean power of the training part, as a dashed line.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    pictures = {name: decibels(powers(waveform)) for name, waveform in sounds.items()}
    top = max(float(picture.max()) for picture in pictures.values())
    with rc_context({"font.size": 9}):
        figure = Figure(figsize=(9, 2.2 * len(pictures) + 2.4), layout="constrained")
        rows = figure.subplots(len(pictures) + 1, 1, squeeze=False)[:, 0]
        for axes, (name, picture) in zip(rows, pictures.items(), strict=False):
            reach = (0.0, picture.shape[1] * FRAMES.hop / RATE, 0.0, RATE / 2000)
            axes.imshow(picture.numpy(), origin="lower", aspect="auto", extent=reach, vmin=top - DEPTH, vmax=top)
            axes.set(title=name, xlabel="seconds", ylabel="kHz")
        frequencies = torch.linspace(0, RATE / 2000, FRAMES.n_fft // 2 + 1).tolist()
        for name, waveform in sounds.items():
            rows[-1].plot(frequencies, decibels(mean_power([waveform])).tolist(), linewidth=1.2, label=name)
        if mean is not None:
            rows[-1].plot(frequencies, decibels(mean).tolist(), "k--", linewidth=1, label="training part")
        rows[-1].set(title="mean spectra", xlabel="kHz", ylabel="dB", xlim=(0, RATE / 2000))
        rows[-1].legend(frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
