"""Classification of sequences that were drawn by a program: symbols in, one class a sequence; quality is accuracy."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from regard.models.transformer import TransformerClassifier
from regard.tasks.task import Batch, Metric, Part, Task, step_generator

VALIDATION_ITEMS = 256
"""Of the validation part, for the curves."""

JUDGED_TOKENS = 16_384
"""Tokens per batch when judging."""


@dataclass(frozen=True)
class Sequences:
    """Sequences of unequal length in one tensor, with one class each.

    Attributes:
        tokens: all of them, one after another.
        lengths: of each.
        labels: class numbers.
    """

    tokens: UInt8[Tensor, " T"]
    lengths: Int[Tensor, " S"]
    labels: UInt8[Tensor, " S"]

    @property
    def digest(self) -> str:
        """sha256 of the content."""
        total = hashlib.sha256()
        for tensor in (self.tokens, self.lengths, self.labels):
            total.update(tensor.numpy().tobytes())
        return total.hexdigest()


class SequenceClassification(Task):
    """Name the class of a sequence; shorter ones are padded on the right and masked.

    Args:
        found: the sequences.
        sizes: how many of them belong to each part, in the order train, validation, test.
        vocab_size: kinds of symbols; ``pad`` is one of them.
        num_classes: kinds of classes.
        metric: accuracy, and of what.
        unit: what a symbol is, in the plural.
        signs: one printable sign for each symbol; empty: not worth looking at.
        pad: the symbol behind the end.
        length: the most symbols that a sequence may have.
        batch: sequences per step.
        seed: of their order.
    """

    def __init__(
        self,
        found: Sequences,
        sizes: Mapping[str, int],
        *,
        vocab_size: int,
        num_classes: int,
        metric: Metric,
        unit: str,
        signs: str = "",
        pad: int = 0,
        length: int,
        batch: int,
        seed: int,
    ) -> None:
        self.found, self.vocab_size, self.num_classes, self.pad = found, vocab_size, num_classes, pad
        self.metric, self.unit, self.signs = metric, unit, signs
        self.rows, self.seed, self.length = batch, seed, length
        self.starts = F.pad(found.lengths.cumsum(0), (1, 0))
        numbers = torch.arange(len(found.labels)).split(list(sizes.values()))
        self.parts = dict(zip(sizes, numbers, strict=True))

    def model(self, dim: int, depth: int, num_heads: int, mechanism: str, **options: Any) -> nn.Module:
        """A classifier of the mean over positions."""
        sizes = (self.vocab_size, dim, depth, num_heads, self.length, mechanism)
        return TransformerClassifier(*sizes, num_classes=self.num_classes, **options)

    def batch(self, step: int) -> Batch:
        """``batch`` training sequences drawn uniformly by a generator that depends on seed and step alone."""
        train = self.parts["train"]
        return self._batch(train[torch.randint(len(train), (self.rows,), generator=step_generator(self.seed, step))])

    def held_out(self, part: Part) -> Iterator[Batch]:
        """All of the test part, the first ones of the validation part; sorted by size, so that little is padded."""
        numbers = self.parts[part]
        if part == "validation":
            numbers = numbers[:VALIDATION_ITEMS]
        numbers = numbers[self.found.lengths[numbers].argsort(stable=True)]
        for some in numbers.split(max(1, JUDGED_TOKENS // self.length)):
            yield self._batch(some)

    def loss(self, prediction: Tensor, batch: Batch) -> Float[Tensor, ""]:
        """Mean cross-entropy."""
        return F.cross_entropy(prediction.float(), batch.targets)

    def scores(self, prediction: Tensor, batch: Batch) -> Float[Tensor, " B"]:
        """1 where the likeliest class is the right one."""
        return (prediction.argmax(-1) == batch.targets).double()

    def passage(self, size: int) -> bytes:
        """The beginning of the first sequence of the test part."""
        first = self.starts[self.parts["test"][0]]
        return bytes(self.found.tokens[first : first + size].tolist()) if self.signs else b""

    def spell(self, passage: bytes) -> str:
        """One sign a symbol."""
        return "".join(self.signs[symbol] for symbol in passage)

    def majority(self) -> float:
        """Test accuracy of always naming the most frequent class of the training part."""
        train, test = (self.found.labels[self.parts[part]] for part in ("train", "test"))
        return float((test == train.long().bincount().argmax()).double().mean())

    def first_token(self) -> float:
        """Test accuracy of naming the class that is most frequent in training behind the same first token."""
        first = self.found.tokens[self.starts[:-1]].long()
        labels = self.found.labels.long()
        pairs = (first * self.num_classes + labels)[self.parts["train"]]
        counts = pairs.bincount(minlength=self.vocab_size * self.num_classes).view(self.vocab_size, self.num_classes)
        test = self.parts["test"]
        return float((counts.argmax(1)[first[test]] == labels[test]).double().mean())

    def sizes(self) -> dict[str, tuple[int, int]]:
        """(sequences, symbols) of each part."""
        return {part: (len(some), int(self.found.lengths[some].sum())) for part, some in self.parts.items()}

    def _batch(self, numbers: Tensor) -> Batch:
        lengths, starts = self.found.lengths[numbers], self.starts[numbers]
        places = torch.arange(int(lengths.max()))
        key_mask = places < lengths[:, None]
        tokens = self.found.tokens[(starts[:, None] + places).clamp(max=len(self.found.tokens) - 1)].long()
        names = tuple(map(str, numbers.tolist()))
        mask = None if key_mask.all() else key_mask
        targets = self.found.labels[numbers].long()
        return Batch(tokens.masked_fill(~key_mask, self.pad), targets, mask, names, (1.0,) * len(names))
