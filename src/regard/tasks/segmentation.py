"""Segmentation of images: one of several classes for each pixel; quality is the mean intersection over union.

Of class c the IoU is I_c / U_c, with I_c the pixels that are and are called c, U_c those that are or are called c, both
counted over all tiles of a part; the mean is over the classes that occur. It is no mean over tiles, so each tile i gets
what it contributes, to first order::

    score_i = mIoU + S mean_c (I_ic - IoU_c U_ic) / U_c            S tiles; the mean of the scores is mIoU exactly

(the influence function of a ratio of sums). Resampling tiles with these scores is then a bootstrap of mIoU itself.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor, nn

from regard.models.map_transformer import MapSegmenter
from regard.tasks.image_galleries import TileGallery
from regard.tasks.pictures import Scale
from regard.tasks.task import Batch, Metric, Part, Task, step_generator

IGNORED = 255
"""Stands in a mask where nobody knows: neither loss nor quality look there."""

VALIDATION_TILES = 32
"""Of the validation part, for the curves."""

SHOWN_TILES = 4
"""Of the test part, for the report."""

JUDGED_PIXELS = 1 << 18
"""Pixels per batch when judging."""

MOST_TOLD = 6
"""Classes whose IoU is told one by one, in a column each; of more of them only the worst."""

SHADES = 32
"""Of each channel, for the baseline that sees nothing but a pixel's own colour."""


@dataclass(frozen=True)
class Tiles:
    """Images of one size with a class for each pixel, and which of them belong to which part.

    Attributes:
        images: bytes; one channel is grey, three are colours.
        masks: class numbers, or ``IGNORED``.
        names: of each tile, or of the picture that it was cut from: what is resampled for intervals.
        classes: names.
        parts: numbers of the tiles of "train", "validation" and "test".
    """

    images: UInt8[Tensor, "S C H W"]
    masks: UInt8[Tensor, "S H W"]
    names: tuple[str, ...]
    classes: Sequence[str]
    parts: dict[str, Int[Tensor, " P"]]

    @property
    def digest(self) -> str:
        """sha256 of the content."""
        total = hashlib.sha256()
        for tensor in (self.images, self.masks, *self.parts.values()):
            total.update(f"{tuple(tensor.shape)}\0".encode())
            total.update(tensor.numpy().tobytes())
        return total.hexdigest()


class Segmentation(Task):
    """Name the class of each pixel of a tile; pixels are standardised by the training part.

    To learn from, half of the tiles are mirrored, and half are turned upside down. A class weighs
    1 / sqrt(its share of the training part) in the loss, so that rare ones are not left out.

    Args:
        found: the tiles.
        patch: side of the squares of pixels that the model reads as one.
        batch: tiles per step.
        seed: of their order and of how they are turned.
        items: what a tile is for the reader, in the plural.
    """

    unit = "pixels"

    def __init__(self, found: Tiles, *, patch: int, batch: int, seed: int, items: str = "tiles") -> None:
        self.found, self.patch, self.rows, self.seed = found, patch, batch, seed
        self.metric = Metric("mean IoU", lower_is_better=False, digits=3, items=items)
        self.length, self.num_classes = found.images.shape[-1], len(found.classes)
        train = found.parts["train"]
        self.scale = Scale.of(found.images[train])
        self.counts = found.masks[train].flatten().bincount(minlength=IGNORED + 1)[: self.num_classes].double()
        self.weights = class_weights(self.counts)

    def model(self, dim: int, depth: int, num_heads: int, mechanism: str, **options: Any) -> nn.Module:
        """A classifier of every pixel."""
        sizes = (self.found.images.shape[1], dim, depth, num_heads, self.length, mechanism)
        return MapSegmenter(*sizes, patch=self.patch, num_classes=self.num_classes, **options)

    def batch(self, step: int) -> Batch:
        """``batch`` training tiles, drawn and turned by a generator that depends on seed and step alone."""
        generator, train = step_generator(self.seed, step), self.found.parts["train"]
        numbers = train[torch.randint(len(train), (self.rows,), generator=generator)]
        images, masks = turned(self.found.images[numbers], self.found.masks[numbers], generator)
        return self._batch(numbers, images, masks)

    def held_out(self, part: Part) -> Iterator[Batch]:
        """The tiles of a part in their order, as they are; of the validation part the first ones."""
        numbers = self.found.parts[part]
        if part == "validation":
            numbers = numbers[:VALIDATION_TILES]
        for some in numbers.split(max(1, JUDGED_PIXELS // self.length**2)):
            yield self._batch(some, self.found.images[some], self.found.masks[some])

    def loss(self, prediction: Tensor, batch: Batch) -> Float[Tensor, ""]:
        """Cross-entropy, the mean over pixels by the weights of their classes; 0 where all are ignored."""
        weights, targets = self.weights.to(prediction.device), batch.targets
        total = F.cross_entropy(prediction.float(), targets, weights, ignore_index=IGNORED, reduction="sum")
        return total / weights[targets[targets != IGNORED]].sum().clamp(min=1e-6)

    def scores(self, prediction: Tensor, batch: Batch) -> Float[Tensor, "B K 2"]:
        """Intersection and union of each class in each tile, of which :meth:`tally` makes scores."""
        return overlaps(prediction.argmax(1), batch.targets, self.num_classes)

    def tally(self, scores: Float[Tensor, "S K 2"]) -> tuple[Float[Tensor, " S"], dict[str, float]]:
        """What each tile contributes, see the head of this file; and the IoU of each class, where they are few."""
        intersection, union = scores.sum(0).unbind(-1)
        occurs = union > 0
        iou = torch.where(occurs, intersection / union, 0.0)
        mean = iou.sum() / occurs.sum().clamp(min=1)
        excess = torch.where(occurs, (scores[..., 0] - iou * scores[..., 1]) / union, 0.0)
        told = {f"IoU {name}": float(value) for name, value in zip(self.found.classes, iou, strict=True)}
        if len(told) > MOST_TOLD:
            told = {"IoU of the worst class": float(iou[occurs].min())}
        return mean + len(scores) * excess.sum(-1) / occurs.sum().clamp(min=1), told

    def gallery(self) -> TileGallery:
        """The tiles of the test part that show most classes, of different names."""
        test = self.found.parts["test"]
        varieties = torch.tensor([variety(mask, self.num_classes) for mask in self.found.masks[test]])
        order: list[int] = test[varieties.argsort(descending=True, stable=True)].tolist()
        first = {self.found.names[number]: number for number in reversed(order)}
        numbers = torch.tensor([number for number in order if first[self.found.names[number]] == number][:SHOWN_TILES])
        batch = self._batch(numbers, self.found.images[numbers], self.found.masks[numbers])
        return TileGallery(batch, self.scale.undo(batch.tokens), self.found.classes)

    def sizes(self) -> dict[str, tuple[int, int]]:
        """(different names, pixels) of each part."""
        return {
            part: (len({self.found.names[number] for number in numbers.tolist()}), len(numbers) * self.length**2)
            for part, numbers in self.found.parts.items()
        }

    def baselines(self) -> dict[str, float | None]:
        """Test mean IoU of what sees nothing but a pixel's own colour."""
        pixels, labels = self._training_pixels()
        means = torch.stack([pixels[labels == number].mean(0) for number in range(self.num_classes)])
        means = means.nan_to_num(float("inf"))  # a class that the training part does not have
        best = self._best_of_each_shade(pixels, labels)
        ways: dict[str, Callable[[Tensor], Tensor]] = {
            f"all {self.found.classes[int(self.counts.argmax())]}": lambda x: self.counts.argmax().expand(len(x)),
            "nearest class mean": lambda x: torch.cdist(x, means).argmin(1),
            "likeliest class of each shade": lambda x: best[_shades(x)],
        }
        return {name: self._judged(way) for name, way in ways.items()}

    def _judged(self, guess: Callable[[Tensor], Tensor]) -> float:
        """Test mean IoU of a rule for single pixels (P, C) -> (P,)."""
        test = self.found.parts["test"]
        images, masks = self.found.images[test], self.found.masks[test].long()
        rows = [
            overlaps(guess(image.flatten(1).mT.float()).view(1, *mask.shape), mask[None], self.num_classes)
            for image, mask in zip(images, masks, strict=True)
        ]
        return float(self.tally(torch.cat(rows).double())[0].mean())

    def _training_pixels(self) -> tuple[Float[Tensor, "P C"], Int[Tensor, " P"]]:
        """Of every second row and column the pixels to learn from that have a class, and their classes."""
        train = self.found.parts["train"]
        images, labels = self.found.images[train, :, ::2, ::2], self.found.masks[train, ::2, ::2].flatten()
        real = labels != IGNORED
        return images.movedim(1, -1).flatten(0, 2)[real].float(), labels[real].long()

    def _best_of_each_shade(self, pixels: Tensor, labels: Tensor) -> Int[Tensor, " V"]:
        """The likeliest class of each shade; of shades that nobody has seen, that of all."""
        kinds = SHADES ** pixels.shape[1]
        pairs = (_shades(pixels) * self.num_classes + labels).bincount(minlength=kinds * self.num_classes)
        return (pairs.view(kinds, -1) + self.counts / self.counts.sum().clamp(min=1)).argmax(1)

    def _batch(self, numbers: Tensor, images: Tensor, masks: Tensor) -> Batch:
        names = tuple(self.found.names[number] for number in numbers.tolist())
        return Batch(self.scale.apply(images), masks.long(), None, names, (1.0,) * len(names))


def class_weights(counts: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    """1 / sqrt(share) of each class, scaled so that the mean over pixels is 1; 0 for a class that does not occur.

    Example:
        >>> [round(weight, 3) for weight in class_weights(torch.tensor([16.0, 4.0, 0.0])).tolist()]
        [0.833, 1.667, 0.0]
    """
    share = counts / counts.sum().clamp(min=1)
    weights = torch.where(share > 0, share.clamp(min=1e-12).rsqrt(), 0.0)
    return (weights / (share * weights).sum().clamp(min=1e-12)).float()


def overlaps(guess: Int[Tensor, "B H W"], targets: Int[Tensor, "B H W"], num_classes: int) -> Float[Tensor, "B K 2"]:
    """Of each class: pixels that are and are called so, and pixels that are or are called so; ignored ones left out.

    Example:
        >>> overlaps(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 0, 255]]]), 2).tolist()
        [[[1.0, 2.0], [0.0, 1.0]]]
    """
    real = targets != IGNORED
    pairs = torch.where(real, targets * num_classes + guess, num_classes**2).flatten(1)
    counts = torch.zeros(len(pairs), num_classes**2 + 1, device=pairs.device)
    counts.scatter_add_(1, pairs, torch.ones_like(pairs, dtype=counts.dtype))
    confusion = counts[:, :-1].unflatten(1, (num_classes, num_classes))
    intersection = confusion.diagonal(dim1=1, dim2=2)
    return torch.stack((intersection, confusion.sum(1) + confusion.sum(2) - intersection), -1)


def variety(mask: UInt8[Tensor, "H W"], num_classes: int) -> float:
    """The entropy of a tile's classes, in nats.

    Example:
        >>> round(variety(torch.tensor([[0, 1]], dtype=torch.uint8), 3), 3)
        0.693
    """
    counts = mask.flatten().bincount(minlength=num_classes)[:num_classes].double()
    return float(torch.special.entr(counts / counts.sum().clamp(min=1)).sum())


def turned(
    images: UInt8[Tensor, "B C H W"], masks: UInt8[Tensor, "B H W"], generator: Generator
) -> tuple[UInt8[Tensor, "B C H W"], UInt8[Tensor, "B H W"]]:
    """Half of the tiles mirrored, half of them upside down, the masks with them."""
    both = torch.cat((images, masks[:, None]), 1)
    for axis in (2, 3):
        flips = torch.rand(len(both), generator=generator) < 0.5
        both = torch.where(flips[:, None, None, None], both.flip(axis), both)
    return both[:, :-1], both[:, -1]


def _shades(pixels: Float[Tensor, "P C"]) -> Int[Tensor, " P"]:
    """The number of each pixel's colour among ``SHADES`` of each channel."""
    levels = (pixels * (SHADES / 256)).long()
    places = SHADES ** torch.arange(pixels.shape[1])
    return (levels * places).sum(1)
