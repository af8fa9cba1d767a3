"""What needs no network to give back sound: silence, noise of the right colour, and a codebook of frames.

The last one has as many bits as a level of the VQ-VAE: frames of as many samples as a code stands for, and as many
codes, found by k-means. Spectral convergence of held-out windows, as in :class:`regard.tasks.music.Music`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from regard.ops.codebook import counted, nearest_code
from regard.tasks.music import CODES, DOWNS, STRIDES, Music
from regard.tasks.task import Part, step_generator

ROUNDS, LEARNED = 20, 100_000
"""Of k-means, and frames that it learns from."""


def mean_spectrum(windows: Float[Tensor, "B T"]) -> Float[Tensor, " F"]:
    """The root of the mean power of each frequency of whole windows."""
    return torch.fft.rfft(windows).abs().square().mean(0).sqrt()


def coloured_noise(spectrum: Float[Tensor, " F"], like: Float[Tensor, "B T"], generator: torch.Generator) -> Tensor:
    """Noise with this spectrum, as many windows and samples as ``like``.

    Args:
        spectrum: of T / 2 + 1 frequencies.
        like: tells the size.
        generator: the source of the noise.
    """
    white = torch.randn(like.shape, generator=generator)
    flat = torch.fft.rfft(white) / like.shape[-1] ** 0.5
    return torch.fft.irfft(flat * spectrum, like.shape[-1])


def learn_frames(windows: Float[Tensor, "B T"], size: int, codes: int) -> Float[Tensor, "K S"]:
    """The codebook of frames of ``size`` samples: k-means from evenly chosen ones; a code that nobody takes stays."""
    frames = windows.unfold(-1, size, size).flatten(0, 1)
    frames = frames[:: max(1, len(frames) // LEARNED)]
    table = frames[torch.linspace(0, len(frames) - 1, codes).long()].clone()
    for _ in range(ROUNDS):
        sums, counts = counted(frames, nearest_code(frames, table)[0], codes)
        table = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], table)
    return table


def music_baselines(task: Music, part: Part = "test") -> dict[str, float]:
    """Spectral convergence of held-out windows by each; frames at the rate of both levels.

    Args:
        task: the songs, of which the training part is learned from.
        part: that is judged.
    """
    generator = step_generator(task.seed, part)
    windows = torch.cat([song.unfold(-1, task.length, task.length) for song in task.train])
    spectrum, hop, books = mean_spectrum(windows), 1, dict[str, Tensor]()
    for level, (down, stride) in enumerate(zip(DOWNS, STRIDES, strict=True)):
        hop *= stride**down
        books[f"k-means of frames, level {level}"] = learn_frames(windows, hop, CODES)
    found: dict[str, list[Tensor]] = {}
    for batch in task.held_out(part):
        x = batch.targets[..., 0]
        ways = {"silence": torch.zeros_like(x), "noise": coloured_noise(spectrum, x, generator)}
        for name, table in books.items():
            frames = x.unfold(-1, table.shape[1], table.shape[1])
            ways[name] = table[nearest_code(frames.flatten(0, 1), table)[0]].view(len(x), -1)
        for name, y in ways.items():
            found.setdefault(name, []).append(task.scores(y[:, None, :, None], batch))
    return {name: task.tally(torch.cat(rows))[1]["spectral convergence, level 0"] for name, rows in found.items()}
