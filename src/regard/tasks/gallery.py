"""What a report shows of a task: a few held-out examples, what a model answers, and what its answers depend on.

Where a model looked is asked of a gradient, which every model has: that of the number by which an answer was chosen,
such as the logit of the class, by what the model reads. Its length at each pixel or point says how strongly the answer
depends on it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from regard.tasks.task import Batch

Colour = tuple[int, int, int]

COLOURS: tuple[Colour, ...] = (
    *((31, 78, 140), (224, 162, 60), (64, 160, 150), (178, 60, 80), (120, 90, 170)),
    *((110, 150, 60), (215, 120, 170), (130, 85, 50), (90, 90, 90), (165, 200, 230)),
)
"""Of classes, in order; after the last one the first comes again."""

NOBODY_KNOWS: Colour = (220, 220, 220)
"""Where there is no class."""

WEAK, STRONG = (250, 248, 240), (160, 20, 40)
"""The two ends of a picture of strengths."""


@dataclass(frozen=True)
class Sight:
    """Something to look at: a picture, words below it, or both.

    Attributes:
        words: a short text.
        picture: its pixels.
        right: whether it is a right answer, where that can be said of the whole.
    """

    words: str = ""
    picture: UInt8[Tensor, "H W 3"] | None = None
    right: bool | None = None


class Exhibition(ABC):
    """A few held-out examples to ask every model about.

    Attributes:
        inputs, truths: what there is to see of each, and what the right answer is.
        legend: what colours stand for.
        looking: what the pictures of strengths say, in words.
        measured: what a strength is, and how it is drawn.
    """

    inputs: Sequence[Sight]
    truths: Sequence[Sight]
    legend: Sequence[tuple[str, Colour]] = ()
    looking: str
    measured: str

    @abstractmethod
    def ask(self, model: nn.Module) -> tuple[Sequence[Sight], Sequence[Sight]]:
        """What a model, in eval mode, says to each example, and where it looked; the model stays as it was."""


class Gallery(Exhibition):
    """Examples that are read at once, in one batch, by a model whose gradient says where it looked.

    Attributes:
        batch: the examples, as a model reads them.
    """

    batch: Batch
    measured = "length of the gradient; darkest at the largest, and relative to it"

    def ask(self, model: nn.Module) -> tuple[Sequence[Sight], Sequence[Sight]]:
        """One pass forward, one backward; the gradients of the model's parameters stay as they are."""
        place = next(model.parameters()).device
        batch = self.batch.to(place)
        devices = [place] if place.type == "cuda" else []
        with torch.enable_grad(), torch.random.fork_rng(devices):
            tokens = batch.tokens.detach().clone().requires_grad_()
            prediction = model(tokens, **batch.options)
            (gradient,) = torch.autograd.grad(self.evidence(prediction).sum(), tokens)
        return self.answers(prediction.detach().cpu()), self.looked(gradient.cpu())

    @abstractmethod
    def answers(self, prediction: Tensor) -> list[Sight]:
        """What a model says to each example."""

    @abstractmethod
    def evidence(self, prediction: Tensor) -> Float[Tensor, " B"]:
        """The number of each example by which its answer was chosen; its gradient is where the model looked."""

    @abstractmethod
    def looked(self, gradient: Tensor) -> list[Sight]:
        """Pictures of the gradient of the evidence by ``batch.tokens``, one an example."""


def named(logits: Float[Tensor, "B K"], truths: Int[Tensor, " B"], classes: Sequence[str]) -> list[Sight]:
    """The likeliest class of each row, and how likely.

    Example:
        >>> named(torch.tensor([[0.0, 9.0]]), torch.tensor([1]), ("no", "yes"))
        [Sight(words='yes 100%', picture=None, right=True)]
    """
    shares, guesses = logits.float().softmax(-1).max(-1)
    return [
        Sight(f"{classes[guess]} {share:.0%}", right=guess == truth)
        for share, guess, truth in zip(shares.tolist(), guesses.tolist(), truths.tolist(), strict=True)
    ]


def coloured(classes: Int[Tensor, "H W"], count: int) -> UInt8[Tensor, "H W 3"]:
    """A picture of classes; what is none of the first ``count`` is grey.

    Example:
        >>> coloured(torch.tensor([[0, 255]]), 2).tolist()
        [[[31, 78, 140], [220, 220, 220]]]
    """
    table = torch.tensor([*(colour_of(number) for number in range(count)), NOBODY_KNOWS], dtype=torch.uint8)
    return table[classes.clamp(max=count).long()]


def colour_of(number: int) -> Colour:
    """The colour of a class."""
    return COLOURS[number % len(COLOURS)]


def heat(strength: Float[Tensor, "H W"]) -> UInt8[Tensor, "H W 3"]:
    """A picture of strengths relative to the largest; the square root lets weak ones be seen.

    Example:
        >>> heat(torch.tensor([[0.0, 2.0]])).tolist()
        [[[250, 248, 240], [160, 20, 40]]]
    """
    share = (strength / strength.amax().clamp(min=torch.finfo(strength.dtype).tiny)).sqrt()[..., None]
    weak, strong = (torch.tensor(colour, dtype=strength.dtype) for colour in (WEAK, STRONG))
    return (weak + share.nan_to_num(0.0) * (strong - weak)).round().to(torch.uint8)


def as_picture(image: Float[Tensor, "C H W"]) -> UInt8[Tensor, "H W 3"]:
    """An image of numbers from 0 to 1 as pixels: one channel is grey, of more the first three are colours."""
    channels = image.expand(3, -1, -1) if len(image) == 1 else torch.cat((image, torch.zeros_like(image)))[:3]
    return (255 * channels.clamp(0, 1)).round().to(torch.uint8).movedim(0, -1)
