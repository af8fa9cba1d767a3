"""Density modelling of images: each grey pixel is predicted from those before it, row by row; bits per dimension.

A dimension is a pixel of 256 shades, so a model that knows nothing takes 8 bits. As in PixelRNN (van den Oord et al.
2016, arXiv:1601.06759) and the Axial Transformer (Ho et al. 2019, arXiv:1912.12180), with pixels for tokens.
"""

import hashlib
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from regard.models.transformer import TransformerLM
from regard.tasks.task import Batch, Metric, Part, Task, step_generator

SHADES = 256

VALIDATION_IMAGES = 16
"""Of the validation part, for the curves."""

JUDGED_PIXELS = 4096
"""Pixels per batch when judging."""


@dataclass(frozen=True)
class GreyImages:
    """Images of one size, divided into three parts."""

    train: UInt8[Tensor, "S H W"]
    validation: UInt8[Tensor, "V H W"]
    test: UInt8[Tensor, "T H W"]

    @property
    def digest(self) -> str:
        """sha256 of the content."""
        total = hashlib.sha256()
        for images in (self.train, self.validation, self.test):
            total.update(f"{tuple(images.shape)}\0".encode())
            total.update(images.numpy().tobytes())
        return total.hexdigest()


class Pixels(Task):
    """Predict each pixel of an image from those above it and to its left, in the order of reading.

    Before the first pixel stands a black one.

    Args:
        found: the images.
        batch: images per step.
        seed: of their order.
        test_images: judge on an even selection of so many images of the test part; None: on all.

    Example:
        >>> images = torch.arange(8, dtype=torch.uint8).view(2, 2, 2)
        >>> task = Pixels(GreyImages(images[:1], images[:1], images[1:]), batch=1, seed=0)
        >>> batch = task.batch(0)
        >>> batch.tokens.tolist(), batch.targets.tolist()
        ([[0, 0, 1, 2]], [[0, 1, 2, 3]])
    """

    metric = Metric("bits per dimension", lower_is_better=True, digits=3, items="images")
    unit, loss_unit, loss_scale = "pixels", "bits per dimension", 1 / math.log(2)
    vocab_size = num_classes = SHADES

    def __init__(self, found: GreyImages, *, batch: int, seed: int, test_images: int | None = None) -> None:
        self.found, self.rows, self.seed = found, batch, seed
        self.length = found.train[0].numel()
        self.judged: dict[Part, UInt8[Tensor, "T H W"]] = {
            "validation": even(found.validation, VALIDATION_IMAGES),
            "test": even(found.test, test_images),
        }

    def model(self, dim: int, depth: int, num_heads: int, mechanism: str, **options: Any) -> nn.Module:
        """A causal language model over shades."""
        return TransformerLM(self.vocab_size, dim, depth, num_heads, self.length, mechanism, **options)

    def batch(self, step: int) -> Batch:
        """``batch`` training images drawn uniformly by a generator that depends on seed and step alone."""
        generator = step_generator(self.seed, step)
        return _batch(self.found.train[torch.randint(len(self.found.train), (self.rows,), generator=generator)])

    def held_out(self, part: Part) -> Iterator[Batch]:
        """The images of a part that are judged, in their order."""
        first = 0
        for some in self.judged[part].split(max(1, JUDGED_PIXELS // self.length)):
            names = tuple(map(str, range(first, first + len(some))))
            found = _batch(some)
            yield Batch(found.tokens, found.targets, None, names, (float(self.length),) * len(some))
            first += len(some)

    def loss(self, prediction: Tensor, batch: Batch) -> Float[Tensor, ""]:
        """Mean cross-entropy."""
        return F.cross_entropy(prediction.flatten(0, 1).float(), batch.targets.flatten())

    def scores(self, prediction: Tensor, batch: Batch) -> Float[Tensor, " B"]:
        """Bits that each image would take in an ideal code."""
        nats = F.cross_entropy(prediction.transpose(1, 2).float(), batch.targets, reduction="none")
        return nats.double().sum(-1) / math.log(2)

    def sizes(self) -> dict[str, tuple[int, int]]:
        """(images, pixels) of each part; of the test part as many as are judged."""
        parts = {"train": self.found.train, "validation": self.found.validation, "test": self.judged["test"]}
        return {part: (len(images), images.numel()) for part, images in parts.items()}

    def baselines(self) -> dict[str, float]:
        """Bits per dimension of the judged test images for what needs no network.

        "uniform" knows nothing; "shades" how frequent each is in the training part; "shades of each pixel" the same for
        each place in the image; "after the pixel before" for each shade of the pixel to the left; "zlib" packs the
        judged images as one stream.
        """
        test = self.judged["test"]
        packed = len(zlib.compress(test.numpy().tobytes(), 9))
        return {
            "uniform": math.log2(SHADES),
            "shades": self._bits(_nothing, 1),
            "shades of each pixel": self._bits(_place, self.length),
            "after the pixel before": self._bits(_before, SHADES),
            "zlib": 8 * packed / test.numel(),
        }

    def _bits(self, context: Callable[[Tensor], Tensor], contexts: int) -> float:
        """Of shades counted in the training part behind each context, with half a count for every shade."""
        counts = torch.full((contexts * SHADES,), 0.5, dtype=torch.double)
        for some in self.found.train.split(4096):
            counts += (context(some) * SHADES + some.flatten(1)).flatten().bincount(minlength=len(counts))
        shares = counts.view(contexts, SHADES)
        bits = -(shares / shares.sum(1, keepdim=True)).log2().flatten()
        test = self.judged["test"]
        return float(bits[(context(test) * SHADES + test.flatten(1)).flatten()].mean())


def even(images: Tensor, limit: int | None) -> Tensor:
    """An even selection of at most ``limit``; classes may lie one after another.

    Example:
        >>> even(torch.arange(10), 3).tolist()
        [1, 5, 8]
    """
    count = len(images) if limit is None else min(limit, len(images))
    return images[(2 * torch.arange(count) + 1) * len(images) // (2 * count)]


def _batch(images: UInt8[Tensor, "B H W"]) -> Batch:
    return Batch(_before(images), images.flatten(1).long())


def _nothing(images: UInt8[Tensor, "B H W"]) -> Int[Tensor, "B N"]:
    return torch.zeros_like(images.flatten(1), dtype=torch.long)


def _place(images: UInt8[Tensor, "B H W"]) -> Int[Tensor, "#B N"]:
    return torch.arange(images[0].numel())[None]


def _before(images: UInt8[Tensor, "B H W"]) -> Int[Tensor, "B N"]:
    return F.pad(images.flatten(1).long(), (1, 0))[:, :-1]
