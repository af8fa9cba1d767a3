"""Pictures as sets: every pixel that is not black is a point (row, column, grey), and the set has a class.

The points come in random order, and of more than ``length`` a random part is seen: to learn from another one at each
step, to be judged always the same.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Generator, Tensor

from regard.tasks.fashion_mnist import CLASSES, DIGEST, Pictures
from regard.tasks.set_galleries import PointGallery
from regard.tasks.sets import JUDGED_POINTS, Sets
from regard.tasks.task import Batch, Metric, Part, step_generator

VALIDATION = 5_000
"""Of the images to learn from, the last ones; a tenth where there are fewer than ten times as many."""

VALIDATION_SETS = 256
"""Of these, for the curves."""


SHOWN_SETS = 6
"""Of the test part, for the report."""


class PointSets(Sets):
    """Name the class of a picture from its pixels as a set; quality is accuracy.

    Args:
        found: the pictures.
        length: the most points of a set.
        batch: sets per step.
        seed: of their order and of which points are seen.
        test_sets: judge on the first ones of the test part; None: on all.
    """

    metric = Metric("accuracy", lower_is_better=False, digits=3, items="pictures")
    dim_input, dim_output = 3, 10

    def __init__(self, found: Pictures, *, length: int, batch: int, seed: int, test_sets: int | None = None) -> None:
        super().__init__(length=length, batch=batch, seed=seed)
        self.side = (found.test_images.shape[1], found.test_images.shape[2])
        self.classes = CLASSES if found.digest == DIGEST else tuple(map(str, range(self.dim_output)))
        known = len(found.train_images) - min(VALIDATION, len(found.train_images) // 10)
        self.parts = {
            "train": (found.train_images[:known], found.train_labels[:known].long()),
            "validation": (found.train_images[known:], found.train_labels[known:].long()),
            "test": (found.test_images[:test_sets], found.test_labels[:test_sets].long()),
        }

    def batch(self, step: int) -> Batch:
        """Pictures and points that are drawn by a generator that depends on seed and step alone."""
        generator, (images, labels) = step_generator(self.seed, step), self.parts["train"]
        numbers = torch.randint(len(images), (self.rows,), generator=generator)
        points, mask = points_of(images[numbers], self.length, generator)
        return Batch(points, labels[numbers], mask)

    def held_out(self, part: Part) -> Iterator[Batch]:
        """The pictures of a part in their order, the same points every time."""
        generator, (images, labels) = step_generator(self.seed, part), self.parts[part]
        last = len(images) if part == "test" else min(VALIDATION_SETS, len(images))
        rows = max(1, JUDGED_POINTS // self.length)
        for first in range(0, last, rows):
            some = slice(first, min(first + rows, last))
            points, mask = points_of(images[some], self.length, generator)
            names = tuple(map(str, range(some.start, some.stop)))
            yield Batch(points, labels[some], mask, names, (1.0,) * len(names))

    def gallery(self) -> PointGallery:
        """The first pictures of the test part."""
        return PointGallery(next(self.held_out("test")).first(SHOWN_SETS), self.side, self.classes)

    def loss(self, prediction: Tensor, batch: Batch) -> Float[Tensor, ""]:
        """Mean cross-entropy."""
        return F.cross_entropy(prediction[:, 0].float(), batch.targets)

    def scores(self, prediction: Tensor, batch: Batch) -> Float[Tensor, " B"]:
        """1 where the likeliest class is the right one."""
        return (prediction[:, 0].argmax(-1) == batch.targets).double()

    def sizes(self) -> dict[str, tuple[int, int]]:
        """(pictures, points that are not black) of each part."""
        return {part: (len(images), int((images > 0).sum())) for part, (images, _) in self.parts.items()}

    def baselines(self) -> dict[str, float]:
        """Test accuracy of always naming the most frequent class; and of the nearest mean number of points and grey."""
        (images, labels), (asked, truth) = self.parts["train"], self.parts["test"]
        counts = labels.bincount(minlength=self.dim_output)
        told, questions = (_totals(some) for some in (images, asked))
        means = torch.zeros(self.dim_output, 2).index_add_(0, labels, told) / counts[:, None]
        nearest = torch.cdist(questions, means).nan_to_num(torch.inf).argmin(1)
        guesses = {"majority class": counts.argmax(), "number of points and mean grey": nearest}
        return {name: float((guess == truth).double().mean()) for name, guess in guesses.items()}


def points_of(
    images: UInt8[Tensor, "B H W"], length: int, generator: Generator
) -> tuple[Float[Tensor, "B N 3"], Tensor | None]:
    """Row and column in (-1, 1) and grey in (0, 1) of the pixels that are not black, and which points are real.

    Example:
        >>> image = torch.tensor([[[0, 51], [255, 0]]], dtype=torch.uint8)
        >>> points, mask = points_of(image, 9, torch.Generator().manual_seed(0))
        >>> sorted(points[0].tolist(), key=lambda point: point[2])
        [[-0.5, 0.5, 0.20000000298023224], [0.5, -0.5, 1.0]]
    """
    _, height, width = images.shape
    grey = images.flatten(1)
    place = torch.rand(grey.shape, generator=generator).masked_fill(grey == 0, -1.0)
    count = min(length, max(1, int((grey > 0).sum(1).max())))
    drawn, index = place.topk(count, dim=1)
    row = (2 * (index // width) + 1) / height - 1
    column = (2 * (index % width) + 1) / width - 1
    mask = drawn >= 0
    points = torch.stack((row, column, grey.gather(1, index) / 255), -1).masked_fill(~mask[..., None], 0.0)
    return points, None if bool(mask.all()) else mask


def _totals(images: UInt8[Tensor, "S H W"]) -> Float[Tensor, "S 2"]:
    """The share of points, and their mean grey, of each picture."""
    there = (images > 0).flatten(1).float().mean(1)
    grey = images.flatten(1).float().mean(1) / 255
    return torch.stack((there, grey / there.clamp(min=1e-9)), 1)
