"""Classification of images: one of several classes each; quality is accuracy."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor, nn

from regard.models.map_transformer import MapClassifier
from regard.tasks.image_galleries import ImageGallery
from regard.tasks.pictures import Scale
from regard.tasks.task import Batch, Metric, Part, Task, step_generator

VALIDATION_IMAGES = 512
"""Of the validation part, for the curves."""

JUDGED_PIXELS = 1 << 18
"""Pixels per batch when judging."""

SHOWN_IMAGES = 6
"""Of the test part, for the report."""

LARGEST_SHIFT = 1 / 14
"""Of the side: how far an image is moved before a model learns from it, 2 pixels of 28."""

RIDGE = 1e-2
"""Of the linear baseline: this much of the mean square of its inputs is added to the diagonal."""

RIDGE_SIDE = 28
"""Larger images are averaged down to this side for the linear baseline, whose cost is the cube of their pixels."""


@dataclass(frozen=True)
class LabelledImages:
    """Images of one size with a class each, and which of them belong to which part.

    Attributes:
        images: bytes; one channel is grey, three are colours.
        labels: class numbers.
        classes: names.
        parts: numbers of the images of "train", "validation" and "test".
    """

    images: UInt8[Tensor, "S C H W"]
    labels: UInt8[Tensor, " S"] | Int[Tensor, " S"]
    classes: Sequence[str]
    parts: dict[str, Int[Tensor, " P"]]

    @property
    def digest(self) -> str:
        """sha256 of the content."""
        total = hashlib.sha256()
        for tensor in (self.images, self.labels, *self.parts.values()):
            total.update(f"{tuple(tensor.shape)}\0".encode())
            total.update(tensor.numpy().tobytes())
        return total.hexdigest()


class Images(Task):
    """Name the class of an image, whose pixels are standardised by the training part.

    To learn from, an image is moved by a few pixels, and what is uncovered is black. It is not mirrored: letters and
    digits tell left from right.

    Args:
        found: the images.
        patch: side of the squares of pixels that the model reads as one.
        batch: images per step.
        seed: of their order and of how they are moved.
        test_images: judge on the first ones of the test part; None: on all.
    """

    metric = Metric("accuracy", lower_is_better=False, digits=3, items="images")
    unit = "pixels"

    def __init__(
        self, found: LabelledImages, *, patch: int, batch: int, seed: int, test_images: int | None = None
    ) -> None:
        self.found, self.patch, self.rows, self.seed = found, patch, batch, seed
        self.length, self.num_classes = found.images.shape[-1], len(found.classes)
        self.judged: dict[Part, Int[Tensor, " P"]] = {
            "validation": found.parts["validation"][:VALIDATION_IMAGES],
            "test": found.parts["test"][:test_images],
        }
        self.scale = Scale.of(found.images[found.parts["train"]])

    def model(self, dim: int, depth: int, num_heads: int, mechanism: str, **options: Any) -> nn.Module:
        """A classifier of the mean over patches."""
        sizes = (self.found.images.shape[1], dim, depth, num_heads, self.length, mechanism)
        return MapClassifier(*sizes, patch=self.patch, num_classes=self.num_classes, **options)

    def batch(self, step: int) -> Batch:
        """``batch`` training images, drawn and moved by a generator that depends on seed and step alone."""
        generator, train = step_generator(self.seed, step), self.found.parts["train"]
        numbers = train[torch.randint(len(train), (self.rows,), generator=generator)]
        return self._batch(numbers, moved(self.found.images[numbers], generator))

    def held_out(self, part: Part) -> Iterator[Batch]:
        """The images of a part in their order, as they are."""
        for some in self.judged[part].split(max(1, JUDGED_PIXELS // self.length**2)):
            yield self._batch(some, self.found.images[some])

    def loss(self, prediction: Tensor, batch: Batch) -> Float[Tensor, ""]:
        """Mean cross-entropy."""
        return F.cross_entropy(prediction.float(), batch.targets)

    def scores(self, prediction: Tensor, batch: Batch) -> Float[Tensor, " B"]:
        """1 where the likeliest class is the right one."""
        return (prediction.argmax(-1) == batch.targets).double()

    def gallery(self) -> ImageGallery:
        """The first images of the test part."""
        numbers = self.judged["test"][:SHOWN_IMAGES]
        batch = self._batch(numbers, self.found.images[numbers])
        return ImageGallery(batch, self.scale.undo(batch.tokens), self.found.classes)

    def sizes(self) -> dict[str, tuple[int, int]]:
        """(images, pixels) of each part; of the test part as many as are judged."""
        parts = self.found.parts | {"test": self.judged["test"]}
        return {part: (len(numbers), len(numbers) * self.length**2) for part, numbers in parts.items()}

    def baselines(self) -> dict[str, float | None]:
        """Test accuracy of what needs no network: see :func:`nearest_mean` and :func:`ridge`."""
        train, test = self.found.parts["train"], self.judged["test"]
        labels = self.found.labels.long()
        known, truth = labels[train], labels[test]
        inputs, asked = (self._features(numbers) for numbers in (train, test))
        guesses = {
            "majority class": known.bincount().argmax(),
            "nearest class mean": nearest_mean(inputs, known, asked),
            "linear": ridge(inputs, known, asked),
        }
        return {name: float((guess == truth).double().mean()) for name, guess in guesses.items()}

    def _features(self, numbers: Tensor) -> Float[Tensor, "S F"]:
        """Standardised pixels, averaged down where there are many of them."""
        pieces: list[Tensor] = []
        for some in self.found.images[numbers].split(4096):
            x = self.scale.apply(some)
            pieces.append((F.adaptive_avg_pool2d(x, RIDGE_SIDE) if self.length > RIDGE_SIDE else x).flatten(1))
        return torch.cat(pieces)

    def _batch(self, numbers: Tensor, images: UInt8[Tensor, "B C H W"]) -> Batch:
        names = tuple(map(str, numbers.tolist()))
        labels = self.found.labels[numbers].long()
        return Batch(self.scale.apply(images), labels, None, names, (1.0,) * len(names))


def moved(images: UInt8[Tensor, "B C H W"], generator: Generator) -> UInt8[Tensor, "B C H W"]:
    """Each image moved down and right by up to a fourteenth of its side, or as far up and left.

    Example:
        >>> moved(torch.full((1, 1, 28, 28), 9, dtype=torch.uint8), torch.Generator().manual_seed(0))[0, 0, 13].unique()
        tensor([0, 9], dtype=torch.uint8)
    """
    rows, _, height, width = images.shape
    far = round(LARGEST_SHIFT * max(height, width))
    down, right = torch.randint(2 * far + 1, (2, rows, 1), generator=generator)
    image = torch.arange(rows)[:, None, None]
    row, column = (down + torch.arange(height))[:, :, None], (right + torch.arange(width))[:, None, :]
    padded = F.pad(images, (far,) * 4).movedim(1, -1)
    return padded[image, row, column].movedim(-1, 1).contiguous()


def nearest_mean(
    inputs: Float[Tensor, "S F"], labels: Int[Tensor, " S"], asked: Float[Tensor, "T F"]
) -> Int[Tensor, " T"]:
    """The class whose mean is nearest; a class without examples is never named."""
    counts = labels.bincount()
    means = inputs.new_zeros(len(counts), inputs.shape[1]).index_add_(0, labels, inputs) / counts[:, None]
    return torch.cdist(asked, means).nan_to_num(float("inf")).argmin(1)


def ridge(inputs: Float[Tensor, "S F"], labels: Int[Tensor, " S"], asked: Float[Tensor, "T F"]) -> Int[Tensor, " T"]:
    """The class of the largest output of a linear model, fitted with a ridge to be 1 for the own class and 0 else."""
    targets = F.one_hot(labels).float()
    mean, centre = inputs.mean(0), targets.mean(0)
    centred = inputs - mean
    gram = (centred.mT @ centred).double()
    gram.diagonal().add_(RIDGE * gram.diagonal().mean().clamp(min=1e-9))
    weights = torch.linalg.solve(gram, (centred.mT @ (targets - centre)).double()).float()
    return ((asked - mean) @ weights + centre).argmax(1)
