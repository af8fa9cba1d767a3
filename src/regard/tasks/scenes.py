"""Scenes of coloured shapes, and images of them.

In the manner of CLEVR (Johnson et al. 2017, arXiv:1612.06890) and Sort-of-CLEVR (Santoro et al. 2017, 1706.01427),
specified here to the last draw; everything is uniform unless said otherwise.

A scene is 3 to 6 things, each with a colour, a shape, a half-size in [2.5, 3.5] and a centre in [4, 28] x [4, 28]. They
are drawn one after the other. A centre whose largest coordinate difference to an earlier one is below 7 is drawn again;
when there were 20 tries for each thing, the scene is begun anew.

Its image is 32 x 32 with three channels. The background is 0; a thing is -1 or 1 by its colour in each channel, within
its half-size around its centre: a square, a cross whose arms reach a third of the half-size to each side, or a ring
that begins at half of it. Normal noise of deviation 0.1 lies on everything.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

COLOURS = {
    "red": (1, -1, -1),
    "green": (-1, 1, -1),
    "blue": (-1, -1, 1),
    "yellow": (1, 1, -1),
    "cyan": (-1, 1, 1),
    "magenta": (1, -1, 1),
}
SHAPES = ("square", "cross", "ring")
SIDE, EDGE, APART, SIZES, NOISE = 32, 4.0, 7.0, (2.5, 3.5), 0.1
FEWEST, MOST, TRIES = 3, 6, 20
_Choice = TypeVar("_Choice")


@dataclass(frozen=True)
class Thing:
    """A shape of a colour at (x, y), x to the right and y downwards, with its half-size."""

    colour: str
    shape: str
    x: float
    y: float
    size: float


Scene = tuple[Thing, ...]


def draw_scene(random: Random) -> Scene:
    """3 to 6 things that do not touch."""
    while True:
        things: list[Thing] = []
        count = FEWEST + below(random, MOST - FEWEST + 1)
        for _ in range(count * TRIES):
            x, y = (EDGE + (SIDE - 2 * EDGE) * random.random() for _ in range(2))
            if all(max(abs(x - other.x), abs(y - other.y)) >= APART for other in things):
                size = SIZES[0] + (SIZES[1] - SIZES[0]) * random.random()
                things.append(Thing(one(random, tuple(COLOURS)), one(random, SHAPES), x, y, size))
            if len(things) == count:
                return tuple(things)


def draw_images(scenes: Sequence[Scene], generator: Generator) -> Float[Tensor, "B 3 side side"]:
    """All scenes as images, see the head of this file; the noise comes from the generator.

    Example:
        >>> draw_images([draw_scene(Random(0))], torch.Generator()).shape
        torch.Size([1, 3, 32, 32])
    """
    owners = torch.tensor([number for number, scene in enumerate(scenes) for _ in scene])
    things = [thing for scene in scenes for thing in scene]
    x, y, size = torch.tensor([(thing.x, thing.y, thing.size) for thing in things])[..., None, None].unbind(1)
    colours = torch.tensor([COLOURS[thing.colour] for thing in things], dtype=torch.float32)
    along = torch.arange(SIDE) + 0.5
    right, down = (along - x).abs(), (along[:, None] - y).abs()
    within = (right < size) & (down < size)
    cross, distance = within & ((right < size / 3) | (down < size / 3)), right**2 + down**2
    forms = torch.stack((within, cross, (distance > size**2 / 4) & (distance < size**2)), 1)
    drawn = forms[torch.arange(len(things)), torch.tensor([SHAPES.index(thing.shape) for thing in things])]
    images = torch.zeros(len(scenes), 3, SIDE, SIDE)
    images.index_add_(0, owners, drawn[:, None] * colours[..., None, None])  # things do not touch
    return images + NOISE * torch.randn(images.shape, generator=generator)


def below(random: Random, count: int) -> int:
    """From 0 to ``count`` - 1; by ``random()``, whose numbers Python promises never to change."""
    return int(random.random() * count)


def one(random: Random, choices: Sequence[_Choice]) -> _Choice:
    """One of them."""
    return choices[below(random, len(choices))]
