"""Next-byte prediction: bytes are tokens, quality is held-out bits per byte."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from regard.models.transformer import TransformerLM
from regard.tasks.documents import Document, InputError
from regard.tasks.passage import printable_piece
from regard.tasks.split import Split
from regard.tasks.task import Batch, Metric, Part, Task, step_generator

SEPARATOR = b"\n\n"
"""Stands between documents in the training stream, and its last byte before the first byte of each document."""

VALIDATION_BYTES, TEST_BYTES = 32_768, 131_072
JUDGED_TOKENS = 4096
"""Tokens per batch when judging: enough to be quick, so few that it takes no more memory than training."""


@dataclass(frozen=True)
class Chunk:
    """Bytes ``start`` to ``stop`` of a held-out document; each is predicted from those before it in the chunk."""

    document: Document
    start: int
    stop: int

    @property
    def context(self) -> bytes:
        """What the model reads: one byte before the chunk, then the chunk without its last byte."""
        before = self.document.data[self.start - 1 : self.start] if self.start else SEPARATOR[-1:]
        return before + self.document.data[self.start : self.stop - 1]

    @property
    def target(self) -> bytes:
        """What it predicts."""
        return self.document.data[self.start : self.stop]


def held_out_chunks(documents: Sequence[Document], length: int, limit: int) -> list[Chunk]:
    """Cut documents into chunks of at most ``length``; of too many, an even selection of about ``limit`` bytes.

    The order is by size, largest first, so that equal sizes can share a batch.
    """
    chunks = [
        Chunk(document, start, min(start + length, len(document.data)))
        for document in documents
        for start in range(0, len(document.data), length)
    ]
    count = max(1, round(len(chunks) * min(1.0, limit / sum(len(document.data) for document in documents))))
    chosen = [chunks[(2 * number + 1) * len(chunks) // (2 * count)] for number in range(count)]
    return sorted(chosen, key=lambda chunk: chunk.start - chunk.stop)


class LanguageModelling(Task):
    """Predict each byte from the ones before it, in random windows of the training stream.

    Args:
        split: the documents of the three parts.
        length: window length N.
        batch: windows per step.
        seed: of the order of the windows.

    Raises:
        InputError: the training stream is shorter than one window.
    """

    metric = Metric("bits per byte", lower_is_better=True, digits=3)
    loss_unit, loss_scale = "bits per byte", 1 / math.log(2)
    num_classes = 256

    def __init__(self, split: Split, *, length: int, batch: int, seed: int) -> None:
        self.split, self.length, self.rows, self.seed = split, length, batch, seed
        stream = SEPARATOR.join(document.data for document in split.train)
        if len(stream) <= length:
            raise InputError(
                f"--length {length:,} needs more than {length:,} bytes to train on, but there are {len(stream):,}: "
                f"give more text or a --length below {len(stream):,}"
            )
        self.stream = torch.frombuffer(bytearray(stream), dtype=torch.uint8)
        self.chunks = {
            "validation": held_out_chunks(split.validation, length, VALIDATION_BYTES),
            "test": held_out_chunks(split.test, length, TEST_BYTES),
        }

    def model(self, dim: int, depth: int, num_heads: int, mechanism: str, **options: Any) -> nn.Module:
        """A causal language model over bytes."""
        return TransformerLM(self.vocab_size, dim, depth, num_heads, self.length, mechanism, **options)

    def batch(self, step: int) -> Batch:
        """``batch`` windows drawn uniformly by a generator that depends on seed and step alone."""
        generator = step_generator(self.seed, step)
        starts = torch.randint(len(self.stream) - self.length, (self.rows,), generator=generator)
        windows = self.stream[starts[:, None] + torch.arange(self.length + 1)].long()
        return Batch(windows[:, :-1], windows[:, 1:])

    def held_out(self, part: Part) -> Iterator[Batch]:
        """Chunks of equal size, several at a time where they are short."""
        rows = max(self.rows, JUDGED_TOKENS // self.length)
        for _, group in groupby(self.chunks[part], key=lambda chunk: chunk.stop - chunk.start):
            equal = list(group)
            for first in range(0, len(equal), rows):
                yield _batch(equal[first : first + rows])

    def loss(self, prediction: Tensor, batch: Batch) -> Float[Tensor, ""]:
        """Mean cross-entropy."""
        return F.cross_entropy(prediction.flatten(0, 1).float(), batch.targets.flatten())

    def scores(self, prediction: Tensor, batch: Batch) -> Float[Tensor, " B"]:
        """Bits that each row would take in an ideal code."""
        nats = F.cross_entropy(prediction.transpose(1, 2).float(), batch.targets, reduction="none")
        return nats.double().sum(-1) / math.log(2)

    def passage(self, size: int) -> bytes:
        """A printable piece of a text of the test part."""
        return printable_piece([document.data for document in self.split.test], size)


def _batch(chunks: Sequence[Chunk]) -> Batch:
    tokens, targets = (torch.tensor([list(getattr(chunk, side)) for chunk in chunks]) for side in ("context", "target"))
    return Batch(
        tokens,
        targets,
        units=tuple(f"{chunk.document.name}" for chunk in chunks),
        amounts=tuple(float(chunk.stop - chunk.start) for chunk in chunks),
    )
