"""What there is to see of few-shot episodes: a query beside the examples of each class."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from regard.tasks.gallery import Gallery, Sight, as_picture, heat
from regard.tasks.task import Batch

GAP, BRIGHT = 2, 255
"""White pixels between pictures."""


class EpisodeGallery(Gallery):
    """One query of each of several episodes.

    Args:
        batch: episodes of the test part with one query each.
        query, support: the same as they are looked at, 0 to 1; the examples stand class by class.
        classes: the names of each episode's classes, in that order.
    """

    looking = "how strongly the score of the answer depends on each pixel of the query"

    def __init__(
        self,
        batch: Batch,
        query: Float[Tensor, "B C H W"],
        support: Float[Tensor, "B S C H W"],
        classes: Sequence[Sequence[str]],
    ) -> None:
        self.batch, self.classes = batch, classes
        self.inputs = [
            Sight(f"one of: {', '.join(names)}", picture=episode(one, examples, len(names)))
            for one, examples, names in zip(query, support, classes, strict=True)
        ]
        self.truths = [Sight(names[int(k)]) for names, k in zip(classes, batch.targets[:, 0], strict=True)]

    def answers(self, prediction: Float[Tensor, "B 1 K"]) -> list[Sight]:
        """The likeliest class of each query, and how likely."""
        shares, guesses = prediction[:, 0].float().softmax(-1).max(-1)
        rows = zip(self.classes, shares.tolist(), guesses.tolist(), self.batch.targets[:, 0].tolist(), strict=True)
        return [Sight(f"{names[guess]} {share:.0%}", right=guess == truth) for names, share, guess, truth in rows]

    def evidence(self, prediction: Float[Tensor, "B 1 K"]) -> Float[Tensor, " B"]:
        """The largest score."""
        return prediction[:, 0].amax(-1)

    def looked(self, gradient: Float[Tensor, "B 1 C H W"]) -> list[Sight]:
        """Over the pixels of the query."""
        return [Sight(picture=heat(one.norm(dim=0))) for one in gradient[:, 0].float()]


def episode(
    query: Float[Tensor, "C H W"], support: Float[Tensor, "S C H W"], ways: int
) -> UInt8[Tensor, "height width 3"]:
    """The query above, below it the examples: a column for each class.

    Example:
        >>> episode(torch.zeros(1, 4, 4), torch.zeros(6, 1, 4, 4), ways=3).shape
        torch.Size([16, 16, 3])
    """
    columns = [_below([as_picture(image) for image in some]) for some in support.tensor_split(ways)]
    examples = _beside(columns)
    above = as_picture(query)
    room = examples.shape[1] - above.shape[1]
    return _below([F.pad(above, (0, 0, room // 2, room - room // 2), value=BRIGHT), examples])


def _below(pictures: Sequence[Tensor]) -> Tensor:
    return torch.cat([pictures[0], *(F.pad(one, (0, 0, 0, 0, GAP, 0), value=BRIGHT) for one in pictures[1:])])


def _beside(pictures: Sequence[Tensor]) -> Tensor:
    return torch.cat([pictures[0], *(F.pad(one, (0, 0, GAP, 0), value=BRIGHT) for one in pictures[1:])], 1)
