"""What there is to see of classified images, and of tiles with a class for each pixel."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regard.tasks.gallery import Colour, Gallery, Sight, as_picture, colour_of, coloured, heat, named
from regard.tasks.task import Batch


class ImageGallery(Gallery):
    """Images with one class each.

    Args:
        batch: images of the test part.
        shown: the same as they are looked at, 0 to 1.
        classes: names.
    """

    looking = "how strongly the logit of the answer depends on each pixel"

    def __init__(self, batch: Batch, shown: Float[Tensor, "B C H W"], classes: Sequence[str]) -> None:
        self.batch, self.classes = batch, classes
        self.inputs = [Sight(picture=as_picture(image)) for image in shown]
        self.truths = [Sight(classes[int(number)]) for number in batch.targets.tolist()]

    def answers(self, prediction: Float[Tensor, "B K"]) -> list[Sight]:
        """The likeliest class, and how likely."""
        return named(prediction, self.batch.targets, self.classes)

    def evidence(self, prediction: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
        """The largest logit."""
        return prediction.amax(-1)

    def looked(self, gradient: Float[Tensor, "B C H W"]) -> list[Sight]:
        """Over the pixels."""
        return [Sight(picture=heat(one.norm(dim=0))) for one in gradient.float()]


class TileGallery(Gallery):
    """Tiles with a class for each pixel. Where a model looked is asked for one pixel of each: a marked one.

    Args:
        batch: tiles of the test part.
        shown: the same as they are looked at, 0 to 1.
        classes: names.
    """

    looking = "how strongly the answer at the pixel in the middle of the cross depends on each pixel"

    def __init__(self, batch: Batch, shown: Float[Tensor, "B C H W"], classes: Sequence[str]) -> None:
        self.batch, self.classes = batch, classes
        self.places = [place_to_ask(mask) for mask in batch.targets]
        self.inputs = [
            Sight(picture=crossed(as_picture(image), place)) for image, place in zip(shown, self.places, strict=True)
        ]
        self.truths = [Sight(picture=coloured(mask, len(classes))) for mask in batch.targets]
        self.legend: Sequence[tuple[str, Colour]] = [(name, colour_of(k)) for k, name in enumerate(classes)]

    def answers(self, prediction: Float[Tensor, "B K H W"]) -> list[Sight]:
        """The likeliest class of each pixel, and the share of pixels that are right."""
        sights: list[Sight] = []
        for guess, truth in zip(prediction.argmax(1), self.batch.targets, strict=True):
            known = truth < len(self.classes)
            share = float((guess == truth)[known].double().mean()) if bool(known.any()) else 0.0
            sights.append(Sight(f"{share:.0%} right", coloured(guess, len(self.classes))))
        return sights

    def evidence(self, prediction: Float[Tensor, "B K H W"]) -> Float[Tensor, " B"]:
        """The largest logit at the marked pixels."""
        rows, columns = zip(*self.places, strict=True)
        return prediction[torch.arange(len(prediction)), :, rows, columns].amax(-1)

    def looked(self, gradient: Float[Tensor, "B C H W"]) -> list[Sight]:
        """Over the pixels, with the cross."""
        pictures = [heat(one.norm(dim=0)) for one in gradient.float()]
        return [Sight(picture=crossed(one, place)) for one, place in zip(pictures, self.places, strict=True)]


def place_to_ask(mask: Int[Tensor, "H W"]) -> tuple[int, int]:
    """Of the pixels on a border between classes the one nearest to the middle; without any, the middle.

    Example:
        >>> place_to_ask(torch.tensor([[0, 0, 0, 0, 1]] * 3))
        (1, 3)
    """
    height, width = mask.shape
    border = torch.zeros(height, width, dtype=torch.bool)
    border[:, :-1] |= mask[:, 1:] != mask[:, :-1]
    border[:-1] |= mask[1:] != mask[:-1]
    if not border.any():
        return height // 2, width // 2
    away = (torch.arange(height)[:, None] - height // 2) ** 2 + (torch.arange(width) - width // 2) ** 2
    row, column = divmod(int(away.where(border, 2 * (height + width) ** 2).argmin()), width)
    return row, column


def crossed(picture: Tensor, place: tuple[int, int]) -> Tensor:
    """A picture with a black and white cross around a pixel, which itself stays to be seen."""
    marked, (row, column) = picture.clone(), place
    height, width = picture.shape[:2]
    for far, shade in ((2, 255), (3, 0), (4, 255)):
        for down, right in ((far, 0), (-far, 0), (0, far), (0, -far)):
            if 0 <= row + down < height and 0 <= column + right < width:
                marked[row + down, column + right] = shade
    return marked
