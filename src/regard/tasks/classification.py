"""Text classification on bytes: quality is held-out accuracy."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from regard.models.transformer import TransformerClassifier
from regard.tasks.labelled import Labelled, LabelledSplit
from regard.tasks.passage import printable_piece
from regard.tasks.task import Batch, Metric, Part, Task, step_generator

VALIDATION_ITEMS, TEST_ITEMS = 128, 1024


class Classification(Task):
    """Name the class of a text from its first ``length`` bytes; shorter texts are padded on the right and masked.

    Args:
        found: the labelled documents.
        split: which of them belong to which part.
        length: the most bytes that are read of a text.
        batch: texts per step.
        seed: of the order of the texts.
    """

    metric = Metric("accuracy", lower_is_better=False, digits=3)

    def __init__(self, found: Labelled, split: LabelledSplit, *, length: int, batch: int, seed: int) -> None:
        self.length, self.rows, self.seed, self.split = length, batch, seed, split
        self.classes = found.classes
        self.num_classes = len(self.classes)
        numbers = {name: number for number, name in enumerate(self.classes)}
        self.targets = torch.tensor([numbers[label] for label in found.labels])
        self.documents = found.documents
        self.train = torch.tensor(split.train)
        self.truncated = sum(len(document.data) > length for document in found.documents)
        self.parts = {
            "validation": _even(split.validation, VALIDATION_ITEMS),
            "test": _even(split.test, TEST_ITEMS),
        }

    def model(self, dim: int, depth: int, num_heads: int, mechanism: str, **options: Any) -> nn.Module:
        """A classifier of the mean over positions."""
        sizes = (self.vocab_size, dim, depth, num_heads, self.length, mechanism)
        return TransformerClassifier(*sizes, num_classes=self.num_classes, **options)

    def batch(self, step: int) -> Batch:
        """``batch`` training texts drawn uniformly by a generator that depends on seed and step alone."""
        generator = step_generator(self.seed, step)
        return self._batch(self.train[torch.randint(len(self.train), (self.rows,), generator=generator)].tolist())

    def held_out(self, part: Part) -> Iterator[Batch]:
        """Texts sorted by size, so that little is padded."""
        numbers = sorted(self.parts[part], key=lambda number: len(self.documents[number].data))
        for first in range(0, len(numbers), self.rows):
            yield self._batch(numbers[first : first + self.rows])

    def loss(self, prediction: Tensor, batch: Batch) -> Float[Tensor, ""]:
        """Mean cross-entropy."""
        return F.cross_entropy(prediction.float(), batch.targets)

    def scores(self, prediction: Tensor, batch: Batch) -> Float[Tensor, " B"]:
        """1 where the likeliest class is the right one."""
        return (prediction.argmax(-1) == batch.targets).double()

    def passage(self, size: int) -> bytes:
        """A printable piece of a text of the test part."""
        return printable_piece([self.documents[number].data for number in self.split.test], size)

    def majority(self) -> float:
        """Test accuracy of always naming the largest training class."""
        largest = torch.bincount(self.targets[self.train], minlength=self.num_classes).argmax()
        return float((self.targets[list(self.parts["test"])] == largest).double().mean())

    def _batch(self, numbers: Sequence[int]) -> Batch:
        texts = [self.documents[number].data[: self.length] for number in numbers]
        width = max(map(len, texts))
        tokens = torch.tensor([list(text.ljust(width, b"\0")) for text in texts])
        key_mask = torch.arange(width) < torch.tensor([len(text) for text in texts])[:, None]
        names = tuple(self.documents[number].name for number in numbers)
        return Batch(tokens, self.targets[list(numbers)], key_mask, names, (1.0,) * len(names))


def _even(numbers: Sequence[int], limit: int) -> list[int]:
    """An even selection: classes lie one after another, so their mixture stays."""
    count = min(len(numbers), limit)
    return [numbers[(2 * place + 1) * len(numbers) // (2 * count)] for place in range(count)]
