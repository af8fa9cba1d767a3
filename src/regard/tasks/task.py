"""What the race needs to know of a task: batches to learn from, held-out examples, a loss and a score."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor, nn

if TYPE_CHECKING:
    from regard.tasks.gallery import Exhibition

Part = Literal["validation", "test"]


@dataclass(frozen=True)
class Metric:
    """How quality is written: ``name`` in words, whether less is better, digits after the point, and of what."""

    name: str
    lower_is_better: bool
    digits: int
    items: str = "documents"

    def better(self, left: float, right: float) -> bool:
        """Is ``left`` better than ``right``?"""
        return left < right if self.lower_is_better else left > right


@dataclass(frozen=True)
class Batch:
    """Tokens (B, N) with their targets: (B, N) for a language model, (B,) for a classifier.

    A task on numbers has vectors for tokens, (B, N, C), and numbers for targets; a task on images has maps for tokens,
    (B, C, H, W), and a mask of pixels, (B, H, W).
    A task on pairs has a ``context`` as well, the other one of each pair: tokens (B, S), maps, or what else the task's
    model takes. ``units`` says which held-out document each row belongs to, ``amounts`` how much of it the row scores
    (bytes, or 1).
    """

    tokens: Num[Tensor, "B *N"]
    targets: Num[Tensor, "B *M"]
    key_mask: Bool[Tensor, "B *K"] | None = None
    units: tuple[str, ...] = ()
    amounts: tuple[float, ...] = ()
    context: Num[Tensor, "B *S"] | None = None
    context_mask: Bool[Tensor, "B *L"] | None = None

    @property
    def options(self) -> dict[str, Tensor | None]:
        """What a model takes beside the tokens: the mask, and of a pair the context and its mask."""
        pair = {} if self.context is None else {"context": self.context, "context_mask": self.context_mask}
        return {"key_mask": self.key_mask, **pair}

    def to(self, device: object) -> "Batch":
        """The same batch on ``device``."""
        return self._each(lambda tensor: tensor.to(device))  # pyright: ignore[reportUnknownLambdaType, reportCallIssue, reportArgumentType]

    def first(self, count: int) -> "Batch":
        """Its first rows."""
        batch = self._each(lambda tensor: tensor[:count])
        return replace(batch, units=self.units[:count], amounts=self.amounts[:count])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        names = ("tokens", "targets", "key_mask", "context", "context_mask")
        found = {name: getattr(self, name) for name in names}
        return replace(self, **{name: change(tensor) for name, tensor in found.items() if tensor is not None})

    @property
    def positions(self) -> int:
        """Tokens or pixels that take part.

        Example:
            >>> [Batch(torch.zeros(shape), torch.zeros(2)).positions for shape in ((2, 7), (2, 3, 8, 8))]
            [14, 128]
        """
        if self.key_mask is not None:
            return int(self.key_mask.sum())
        sides = self.tokens.shape[2:] if self.tokens.ndim == 4 else self.tokens.shape[1:2]
        return len(self.tokens) * sides.numel()


def step_generator(seed: int, step: int | Part) -> torch.Generator:
    """Random numbers for one step, or for a part that is drawn.

    Through a hash, because torch's generator takes no more than 32 bits of a seed.
    """
    digest = hashlib.sha256(f"{seed}:{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


class Task(ABC):
    """One objective on one data set. Batches are a pure function of (seed, step): resuming needs no data state.

    Attributes:
        metric: how quality is written.
        unit: what a position of a sequence is, in the plural.
        loss_unit, loss_scale: how the training loss is shown: nats times ``loss_scale``.
        vocab_size: kinds of tokens; where there is a passage to look at, a token fits a byte.
        length: the most positions of a sequence.
        num_classes: kinds of answers.
    """

    metric: Metric
    unit: str = "bytes"
    loss_unit: str = "nats"
    loss_scale: float = 1.0
    vocab_size: int = 256
    length: int
    num_classes: int

    @abstractmethod
    def model(self, dim: int, depth: int, num_heads: int, mechanism: str, **options: Any) -> nn.Module:
        """The network that does this task with one mechanism; ``options`` go to the mechanism."""

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """The training batch of one step: the same for every entrant."""

    @abstractmethod
    def held_out(self, part: Part) -> Iterator[Batch]:
        """The held-out examples, in a fixed order."""

    @abstractmethod
    def loss(self, prediction: Tensor, batch: Batch) -> Float[Tensor, ""]:
        """The mean loss in nats, to be minimised."""

    @abstractmethod
    def scores(self, prediction: Tensor, batch: Batch) -> Float[Tensor, "B *K"]:
        """One score a row; quality is the sum of scores over the sum of amounts.

        Or what :meth:`tally` makes scores of, where a score depends on all rows.
        """

    def tally(self, scores: Float[Tensor, "S *K"]) -> tuple[Float[Tensor, " S"], dict[str, float]]:
        """One score for each row of a whole part, and other figures of the part, by name."""
        return scores, {}

    def further(self, prediction: Tensor, batch: Batch) -> dict[str, Float[Tensor, " B"]]:
        """Other scores of each row, by name; they are told, and decide nothing."""
        return {}

    def gallery(self) -> "Exhibition | None":
        """A few held-out examples for the report, with what there is to see of them; None: there is nothing to see."""
        return None

    def passage(self, size: int) -> bytes:
        """At most ``size`` tokens of the test part, a byte each, to look at attention with; empty: nothing to see."""
        return b""

    def spell(self, passage: bytes) -> str:
        """A passage as it is read: one sign a token."""
        return passage.decode("latin-1")
