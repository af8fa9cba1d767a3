"""Sets of points that are answered as a whole: what such tasks share, and the largest of a few numbers.

The largest number is the first experiment of Set Transformer (Lee et al. 2018, arXiv:1810.00825, section 5.1): sets of
1 to 10 integers, each uniform in 1 to 99, and the mean absolute error of a guess at the largest.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from regard.models.deep_sets import DeepSets, Pool
from regard.models.pooler import TransformerPooler
from regard.tasks.task import Batch, Metric, Part, Task, step_generator

JUDGED_POINTS = 16_384
"""Points per batch when judging."""


class Sets(Task):
    """A task on sets of points.

    Args:
        length: the most points of a set.
        batch: sets per step.
        seed: of everything that is drawn.

    Attributes:
        dim_input: features of a point.
        num_outputs, dim_output: vectors that a model gives for a set, and the features of each.
        decoder_depth: blocks in which these see each other.
    """

    unit = "points"
    dim_input: ClassVar[int]
    num_outputs: ClassVar[int] = 1
    dim_output: ClassVar[int]
    decoder_depth: ClassVar[int] = 0

    def __init__(self, *, length: int, batch: int, seed: int) -> None:
        self.length, self.rows, self.seed = length, batch, seed
        self.num_classes = self.dim_output

    def model(self, dim: int, depth: int, num_heads: int, mechanism: str, **options: Any) -> nn.Module:
        """An encoder over the points, and Set Transformer's pooling."""
        sizes = (self.dim_input, self.num_outputs, self.dim_output, dim, depth, num_heads, self.length)
        return TransformerPooler(*sizes, mechanism, decoder_depth=self.decoder_depth, **options)

    def rival(self, dim: int, pool: Pool) -> nn.Module:
        """A network that looks at each point alone, and pools them."""
        return DeepSets(self.dim_input, self.num_outputs, self.dim_output, dim, pool)

    @abstractmethod
    def sizes(self) -> dict[str, tuple[int, int]]:
        """(sets, points) of each part that is kept."""

    @abstractmethod
    def baselines(self) -> dict[str, float]:
        """The score on the test part of what learns nothing."""


class DrawnSets(Sets):
    """Sets that are drawn anew for every step."""

    counts: ClassVar[dict[Part, int]] = {"validation": 256, "test": 1000}
    """Sets of each part; there is no end of them for training."""

    @abstractmethod
    def draw(self, rows: int, generator: Generator) -> Batch:
        """New sets, with what there is to know of them as targets."""

    def batch(self, step: int) -> Batch:
        """New sets, from a generator that depends on seed and step alone."""
        return self.draw(self.rows, step_generator(self.seed, step))

    def held_out(self, part: Part) -> Iterator[Batch]:
        """The same sets every time."""
        generator, count = step_generator(self.seed, part), self.counts[part]
        rows = max(1, JUDGED_POINTS // self.length)
        for first in range(0, count, rows):
            names = tuple(map(str, range(first, min(first + rows, count))))
            found = self.draw(len(names), generator)
            yield Batch(found.tokens, found.targets, found.key_mask, names, (1.0,) * len(names))

    def sizes(self) -> dict[str, tuple[int, int]]:
        """(sets, points) of the held-out parts."""
        return {part: (count, sum(b.positions for b in self.held_out(part))) for part, count in self.counts.items()}

    def digest(self) -> str:
        """sha256 of the test part, which tells whether the rule and torch's random numbers are the same."""
        total = hashlib.sha256()
        for batch in self.held_out("test"):
            total.update(batch.tokens.numpy().tobytes())
        return total.hexdigest()


class Maximum(DrawnSets):
    """The largest of 1 to 10 integers; quality is the mean absolute error, in units of the integers.

    A step reads about ``batch`` x ``length`` integers. They are shown to a model as hundredths, and so it answers.

    Args:
        length, batch, seed: as of :class:`Sets`.

    Example:
        >>> batch = Maximum(length=200, batch=1, seed=0).batch(0)
        >>> batch.tokens.shape, bool((batch.tokens.amax((1, 2)) == batch.targets).all())
        (torch.Size([20, 10, 1]), True)
    """

    metric = Metric("mean absolute error", lower_is_better=True, digits=3, items="sets")
    loss_unit, loss_scale = "absolute error", 100.0
    dim_input = dim_output = 1
    largest_set, largest_number = 10, 99

    def __init__(self, *, length: int, batch: int, seed: int) -> None:
        super().__init__(length=length, batch=batch, seed=seed)
        self.rows = max(1, batch * length // self.largest_set)

    def draw(self, rows: int, generator: Generator) -> Batch:
        """Sets of every size, and their largest number."""
        count = torch.randint(1, self.largest_set + 1, (rows, 1), generator=generator)
        numbers = torch.randint(1, self.largest_number + 1, (rows, self.largest_set), generator=generator) / 100
        mask = torch.arange(self.largest_set) < count
        numbers = numbers.masked_fill(~mask, 0.0)
        return Batch(numbers[..., None], numbers.amax(1), mask)

    def loss(self, prediction: Tensor, batch: Batch) -> Float[Tensor, ""]:
        """Mean absolute error, in hundreds."""
        return F.l1_loss(prediction.flatten().float(), batch.targets)

    def scores(self, prediction: Tensor, batch: Batch) -> Float[Tensor, " B"]:
        """The absolute error of each set."""
        return 100 * (prediction.flatten().double() - batch.targets).abs()

    def baselines(self) -> dict[str, float]:
        """The same guess for every set: the median of many largest numbers."""
        median = self.draw(10_000, step_generator(self.seed, "validation")).targets.median()
        found = [self.scores(median.expand(len(batch.targets)), batch) for batch in self.held_out("test")]
        return {"always the median": float(torch.cat(found).mean())}
