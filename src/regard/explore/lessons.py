"""What the small models learn: bytes of real text, bytes of drawn repeats, and shapes in drawn images."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Generator, Tensor, nn

from regard.explore.reading import LENGTH, PATCH, SIDE
from regard.models.transformer import TransformerEncoder, TransformerLM
from regard.race.build import sinusoids
from regard.race.embedding import NgramEmbedding
from regard.tasks.corpora import python_topics
from regard.tasks.language import SEPARATOR
from regard.tasks.segmentation import Segmentation, Tiles
from regard.tasks.shapes import KINDS, draw_shapes
from regard.tasks.split import split_documents
from regard.tasks.task import Batch, Metric, Part, Task, step_generator

BATCH, HELD_OUT = 8, 32
HIDDEN = 0.15
"""Of the bytes, where a model may see both sides and fills gaps instead of going on."""

NGRAM = 4
SHAPES = {"train": 1024, "validation": 16, "test": 64}


class Bytes(Task):
    """Windows of bytes: predict the next one, or those that were hidden.

    Args:
        causal: the next one.
        seed: of the windows.
    """

    metric = Metric("bits per byte", lower_is_better=True, digits=2, items="windows")
    loss_unit, loss_scale = "bits per byte", 1 / math.log(2)
    num_classes = 256
    length = LENGTH
    name: str
    """What the bytes are, in words."""

    def __init__(self, *, causal: bool, seed: int = 0) -> None:
        self.causal, self.seed = causal, seed

    def windows(self, count: int, part: Part | None, generator: Generator) -> UInt8[Tensor, "B L"]:
        """``count`` windows of ``length`` + 1 bytes; of the training part where ``part`` is None."""
        raise NotImplementedError(f"{type(self).__name__} has no windows")

    def model(self, dim: int, depth: int, num_heads: int, mechanism: str, **options: Any) -> nn.Module:
        """A Transformer that reads n-grams, as in the race: in seconds no attention learns to look one byte back."""
        torch.manual_seed(self.seed)
        make = TransformerLM if self.causal else _GapFiller
        model = make(256, dim, depth, num_heads, self.length, mechanism, **options)
        model.token_embedding = NgramEmbedding(256, dim, NGRAM)
        with torch.no_grad():
            model.position_embedding.weight.copy_(sinusoids(self.length, dim))
        return model

    def batch(self, step: int) -> Batch:
        """Windows that depend on the seed and the step alone."""
        generator = step_generator(self.seed, step)
        return self._batch(self.windows(BATCH, None, generator), generator)

    def held_out(self, part: Part) -> Iterator[Batch]:
        """A few windows."""
        generator = step_generator(self.seed, part)
        for _ in range(HELD_OUT // BATCH):
            yield self._batch(self.windows(BATCH, part, generator), generator)

    def loss(self, prediction: Tensor, batch: Batch) -> Float[Tensor, ""]:
        """Mean cross-entropy over the bytes that are asked for."""
        return F.cross_entropy(prediction.flatten(0, 1).float(), batch.targets.flatten(), ignore_index=-1)

    def scores(self, prediction: Tensor, batch: Batch) -> Float[Tensor, " B"]:
        """Bits of each window."""
        logits = prediction.transpose(1, 2).float()
        nats = F.cross_entropy(logits, batch.targets, reduction="none", ignore_index=-1)
        return nats.double().sum(-1) / math.log(2)

    def _batch(self, windows: Tensor, generator: Generator) -> Batch:
        windows = windows.long()
        if self.causal:
            tokens, targets = windows[:, :-1], windows[:, 1:]
        else:
            whole = windows[:, 1:]
            hidden = torch.rand(whole.shape, generator=generator) < HIDDEN
            hidden[:, 0] = True  # never none at all
            tokens, targets = whole.masked_fill(hidden, 0), whole.masked_fill(~hidden, -1)
        amounts = (targets >= 0).sum(-1).tolist()
        return Batch(tokens, targets, units=tuple(map(str, range(len(tokens)))), amounts=tuple(map(float, amounts)))


class Text(Bytes):
    """The help topics of Python: half a megabyte of English that every machine with Python has."""

    name = "the help topics of Python (0.5 MB of English)"

    def windows(self, count: int, part: Part | None, generator: Generator) -> UInt8[Tensor, "B L"]:
        """Uniformly from the stream of the part."""
        stream = _streams()[part or "train"]
        starts = torch.randint(len(stream) - self.length, (count,), generator=generator)
        return stream[starts[:, None] + torch.arange(self.length + 1)]


class Repeats(Bytes):
    """Drawn sequences in which pieces come back, over alphabets of ASCII: what DNA, proteins and numbers share.

    Each window has an alphabet of 4 to 24 printable characters and a piece of 8 to 32 of its letters, uniform; it is
    the piece over and over, with a gap of 0 to 8 random letters before each copy. With a chance of 0.05 a letter of a
    copy is drawn anew.
    """

    name = "drawn sequences with pieces that come back, over alphabets of 4 to 24 characters"

    def windows(self, count: int, part: Part | None, generator: Generator) -> UInt8[Tensor, "B L"]:
        """Drawn anew; the parts differ by their generators."""
        return torch.stack([self._window(generator) for _ in range(count)])

    def _window(self, generator: Generator) -> UInt8[Tensor, " L"]:
        letters = 32 + torch.randperm(95, generator=generator)[: _between(4, 24, generator)]
        size = _between(8, 32, generator)
        piece = torch.randint(len(letters), (size,), generator=generator)
        parts: list[Tensor] = []
        while sum(map(len, parts)) <= self.length:
            gap = torch.randint(len(letters), (_between(0, 8, generator),), generator=generator)
            other = torch.randint(len(letters), (size,), generator=generator)
            parts += [gap, torch.where(torch.rand(size, generator=generator) < 0.05, other, piece)]
        return letters[torch.cat(parts)[: self.length + 1]].to(torch.uint8)


class _GapFiller(TransformerEncoder):
    """Logits of every byte from both sides, by the embedding matrix."""

    def read_out(self, x: Tensor, key_mask: Tensor | None) -> Tensor:
        """(B, N, vocab_size)."""
        return F.linear(x, self.token_embedding.weight)


class Shapes(Segmentation):
    """Name the shape under each pixel: discs, squares and crosses on noise."""

    name = "1,024 drawn images of a disc, a square or a cross on noise"

    def __init__(self) -> None:
        images, _, masks = draw_shapes(sum(SHAPES.values()), SIDE, seed=0)
        numbers = torch.arange(len(images)).split(list(SHAPES.values()))
        parts = dict(zip(SHAPES, numbers, strict=True))
        found = Tiles(images, masks, tuple(map(str, range(len(images)))), ("background", *KINDS), parts)
        super().__init__(found, patch=PATCH, batch=BATCH, seed=0, items="images")


@functools.cache
def _streams() -> dict[str, Tensor]:
    split = split_documents(python_topics(), LENGTH)
    return {
        part: torch.frombuffer(bytearray(SEPARATOR.join(each.data for each in documents)), dtype=torch.uint8)
        for part, documents in (("train", split.train), ("validation", split.validation), ("test", split.test))
    }


def _between(low: int, high: int, generator: Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))
