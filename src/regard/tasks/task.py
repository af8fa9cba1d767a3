"""What the race needs to know of a task: batches to learn from, held-out examples, a loss and a score."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Part = Literal["validation", "test"]


@dataclass(frozen=True)
class Metric:
    """How quality is written: ``name`` in words, whether less is better, and digits after the point."""

    name: str
    lower_is_better: bool
    digits: int

    def better(self, left: float, right: float) -> bool:
        """Is ``left`` better than ``right``?"""
        return left < right if self.lower_is_better else left > right


@dataclass(frozen=True)
class Batch:
    """Tokens (B, N) with their targets: (B, N) for a language model, (B,) for a classifier.

    ``units`` says which held-out document each row belongs to, ``amounts`` how much of it the row scores (bytes, or 1).
    """

    tokens: Int[Tensor, "B N"]
    targets: Int[Tensor, "B *N"]
    key_mask: Bool[Tensor, "B N"] | None = None
    units: tuple[str, ...] = ()
    amounts: tuple[float, ...] = ()

    def to(self, device: object) -> "Batch":
        """The same batch on ``device``."""
        mask = None if self.key_mask is None else self.key_mask.to(device)  # pyright: ignore[reportCallIssue, reportArgumentType]
        tokens, targets = self.tokens.to(device), self.targets.to(device)  # pyright: ignore[reportCallIssue, reportArgumentType]
        return Batch(tokens, targets, mask, self.units, self.amounts)


def step_generator(seed: int, step: int) -> torch.Generator:
    """Random numbers for one step; through a hash, because torch's generator takes no more than 32 bits of a seed."""
    digest = hashlib.sha256(f"{seed}:{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


class Task(ABC):
    """One objective on one data set. Batches are a pure function of (seed, step): resuming needs no data state."""

    metric: ClassVar[Metric]
    length: int
    num_classes: int

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
    def scores(self, prediction: Tensor, batch: Batch) -> Float[Tensor, " B"]:
        """One score a row; quality is the sum of scores over the sum of amounts."""
