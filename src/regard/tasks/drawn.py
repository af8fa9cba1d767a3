"""Sequences that are drawn anew for every step: a model that answers them has learned the rule, not the examples."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from regard.models.transformer import TransformerLM
from regard.tasks.task import Batch, Metric, Part, Task, step_generator

UNASKED = -100
"""Stands in the targets where nothing is asked: neither loss nor accuracy look there."""

HELD_OUT = {"validation": 128, "test": 512}
"""Sequences of each part; there is no end of them for training."""

JUDGED_TOKENS = 16_384
"""Tokens per batch when judging."""


class Drawn(Task):
    """Predict the next token of a sequence where it follows from a rule; quality is accuracy there.

    Args:
        length: tokens of a sequence.
        batch: sequences per step.
        seed: of all sequences.
    """

    metric = Metric("accuracy", lower_is_better=False, digits=3, items="sequences")
    unit = "tokens"
    signs: ClassVar[bytes]
    """One printable sign for each token."""

    def __init__(self, *, length: int, batch: int, seed: int) -> None:
        self.length, self.rows, self.seed = length, batch, seed
        self.vocab_size = self.num_classes = len(self.signs)

    @abstractmethod
    def draw(self, rows: int, generator: Generator) -> tuple[Int[Tensor, "B N"], Int[Tensor, "B N"]]:
        """Sequences of ``length`` tokens, and the same with ``UNASKED`` for every token that no rule tells."""

    def model(self, dim: int, depth: int, num_heads: int, mechanism: str, **options: Any) -> nn.Module:
        """A causal language model."""
        return TransformerLM(self.vocab_size, dim, depth, num_heads, self.length, mechanism, **options)

    def batch(self, step: int) -> Batch:
        """New sequences, from a generator that depends on seed and step alone."""
        tokens, told = self.draw(self.rows, step_generator(self.seed, step))
        return Batch(tokens[:, :-1], told[:, 1:])

    def held_out(self, part: Part) -> Iterator[Batch]:
        """The same sequences every time; none of them is drawn for a step (but by a chance of one in millions)."""
        tokens, told = self.part(part)
        amount = float((told[0] != UNASKED).sum())
        rows = max(1, JUDGED_TOKENS // self.length)
        for first in range(0, len(tokens), rows):
            some = slice(first, first + rows)
            names = tuple(map(str, range(len(tokens))[some]))
            yield Batch(tokens[some, :-1], told[some, 1:], units=names, amounts=(amount,) * len(names))

    def part(self, part: Part) -> tuple[Int[Tensor, "B N"], Int[Tensor, "B N"]]:
        """All sequences of a part, and the same with ``UNASKED``."""
        return self.draw(HELD_OUT[part], step_generator(self.seed, part))

    def loss(self, prediction: Tensor, batch: Batch) -> Float[Tensor, ""]:
        """Mean cross-entropy where something is asked."""
        return F.cross_entropy(prediction.flatten(0, 1).float(), batch.targets.flatten(), ignore_index=UNASKED)

    def scores(self, prediction: Tensor, batch: Batch) -> Float[Tensor, " B"]:
        """How many of the tokens that are asked for are the likeliest ones."""
        return (prediction.argmax(-1) == batch.targets).double().sum(-1)

    def passage(self, size: int) -> bytes:
        """The beginning of the first sequence of the test part."""
        return bytes(self.part("test")[0][0, :size].tolist())

    def spell(self, passage: bytes) -> str:
        """One sign a token."""
        return bytes(self.signs[token] for token in passage).decode("latin-1")

    def digest(self) -> str:
        """sha256 of the test part, which tells whether the rule and torch's random numbers are the same."""
        return hashlib.sha256(self.part("test")[0].numpy().tobytes()).hexdigest()

    def sizes(self) -> dict[str, tuple[int, int]]:
        """(sequences, tokens) of the held-out parts."""
        return {part: (count, count * self.length) for part, count in HELD_OUT.items()}

    @abstractmethod
    def baselines(self) -> dict[str, float | None]:
        """Test accuracy of guesses that need no rule."""
