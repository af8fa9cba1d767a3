"""Small music for tests: tones that change, with a little noise."""

import torch

from regard.tasks.music import RATE, Song


def tune(name, seconds, seed=0):
    """A song of tones of half a second each."""
    generator = torch.Generator().manual_seed(seed)
    count = round(seconds * RATE)
    pitches = 200 + 600 * torch.rand(count // (RATE // 2) + 1, generator=generator)
    time = torch.arange(count) / RATE
    pitch = pitches[(time * 2).long()]
    wave = 0.3 * torch.sin(2 * torch.pi * pitch * time) + 0.01 * torch.randn(count, generator=generator)
    return Song(name, wave)
