"""What there is to see of sets: points in the plane and their clusters, and pictures whose pixels are a set."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from regard.tasks.gallery import WEAK, Gallery, Sight, as_picture, colour_of, heat, named
from regard.tasks.task import Batch

SIDE = 96
"""Of a picture of points, in pixels."""


class ClusterGallery(Gallery):
    """Sets of points in the plane, each with K clusters: a weight, a centre and a deviation.

    Args:
        batch: sets, whose targets are (B, K, 3): weights and centres.
        reach: the plane is shown from -reach to reach.
        deviation: of the true clusters.
    """

    looking = "how strongly the centres that it names depend on each point"

    def __init__(self, batch: Batch, reach: float, deviation: float) -> None:
        self.batch, self.reach = batch, reach
        true = torch.full_like(batch.targets[..., :1], deviation)
        weights, centres = batch.targets[..., :1], batch.targets[..., 1:]
        self.inputs = [Sight(picture=self._drawn(points, None)) for points in batch.tokens]
        self.truths = self._clustered(weights.clamp(min=1e-10).log(), centres, true)

    def answers(self, prediction: Float[Tensor, "B K 4"]) -> list[Sight]:
        """Each point in the colour of its likeliest cluster; a square is a centre."""
        weights, centres, deviations = prediction.float().split((1, 2, 1), -1)
        return self._clustered(weights.log_softmax(1), centres, F.softplus(deviations).clamp(min=1e-3))

    def evidence(self, prediction: Float[Tensor, "B K 4"]) -> Float[Tensor, " B"]:
        """The sum of the centres, which the answer is mostly made of."""
        return prediction[..., 1:3].sum((1, 2))

    def looked(self, gradient: Float[Tensor, "B N 2"]) -> list[Sight]:
        """Over the points."""
        found: list[Sight] = []
        for points, strength in zip(self.batch.tokens, gradient.float().norm(dim=-1), strict=True):
            colours = heat(strength[None])[0]
            order = strength.argsort()  # the strongest last: on top
            found.append(Sight(picture=self._drawn(points[order], colours[order])))
        return found

    def _clustered(
        self, logs: Float[Tensor, "B K 1"], centres: Float[Tensor, "B K 2"], deviations: Float[Tensor, "B K 1"]
    ) -> list[Sight]:
        squares = (self.batch.tokens[:, None] - centres[:, :, None]).square().sum(-1)
        own = (logs - 2 * deviations.log() - squares / (2 * deviations.square())).argmax(1)
        table = torch.tensor([colour_of(number) for number in range(centres.shape[1])], dtype=torch.uint8)
        return [
            Sight(picture=self._drawn(points, table[numbers], middle, table))
            for points, numbers, middle in zip(self.batch.tokens, own, centres, strict=True)
        ]

    def _drawn(
        self,
        points: Float[Tensor, "N 2"],
        colours: UInt8[Tensor, "N 3"] | None,
        centres: Float[Tensor, "K 2"] | None = None,
        table: UInt8[Tensor, "K 3"] | None = None,
    ) -> UInt8[Tensor, "S S 3"]:
        """Points of 2 x 2 pixels, black by default, and squares for centres."""
        canvas = torch.tensor(WEAK, dtype=torch.uint8).expand(SIDE, SIDE, 3).clone()
        black = torch.zeros(len(points), 3, dtype=torch.uint8)
        self._stamp(canvas, points, black if colours is None else colours, 2)
        if centres is not None and table is not None:
            self._stamp(canvas, centres, torch.zeros_like(table), 7)
            self._stamp(canvas, centres, table, 5)
        return canvas

    def _stamp(self, canvas: Tensor, points: Tensor, colours: Tensor, size: int) -> None:
        """Squares of ``size`` pixels; those beyond the edge are drawn at it."""
        corner = ((points / self.reach + 1) / 2 * SIDE - size / 2).round().long().clamp(0, SIDE - size)
        for down in range(size):
            for right in range(size):
                canvas[SIDE - 1 - corner[:, 1] - down, corner[:, 0] + right] = colours


class PointGallery(Gallery):
    """Pictures whose points are a set, with one class each.

    Args:
        batch: sets of (row, column, grey).
        side: (height, width) of the pictures.
        classes: names.
    """

    looking = "how strongly the logit of the answer depends on each point"

    def __init__(self, batch: Batch, side: tuple[int, int], classes: Sequence[str]) -> None:
        self.batch, self.side, self.classes = batch, side, classes
        self.inputs = [Sight(picture=as_picture(picture[None])) for picture in self._spread(batch.tokens[..., 2])]
        self.truths = [Sight(classes[int(number)]) for number in batch.targets.tolist()]

    def answers(self, prediction: Float[Tensor, "B 1 K"]) -> list[Sight]:
        """The likeliest class, and how likely."""
        return named(prediction[:, 0], self.batch.targets, self.classes)

    def evidence(self, prediction: Float[Tensor, "B 1 K"]) -> Float[Tensor, " B"]:
        """The largest logit."""
        return prediction[:, 0].amax(-1)

    def looked(self, gradient: Float[Tensor, "B N 3"]) -> list[Sight]:
        """Over the pixels that are points."""
        return [Sight(picture=heat(picture)) for picture in self._spread(gradient.float().norm(dim=-1))]

    def _spread(self, values: Float[Tensor, "B N"]) -> Float[Tensor, "B H W"]:
        """A number for each point, at its pixel; padding has the number 0, or would be hidden by what is there."""
        height, width = self.side
        row, column = self.batch.tokens[..., :2].unbind(-1)
        down, right = (((row + 1) * height - 1) / 2).round().long(), (((column + 1) * width - 1) / 2).round().long()
        canvas = torch.zeros(len(values), height * width)
        return canvas.scatter_reduce_(1, down * width + right, values, "amax").unflatten(1, self.side)
