"""Few-shot episodes: name the class of an image by a few examples of classes that nobody has learned from.

An episode shows K classes by ``shots`` images each and asks for the class of other ones: ``queries`` of every class to
learn from, one of every class to be judged on. Classes are split, not images: those of the test part occur in no
episode to learn from.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor, nn

from regard.models.fewshot import FewShotNet
from regard.tasks.fewshot_gallery import EpisodeGallery
from regard.tasks.images import moved
from regard.tasks.pictures import Scale
from regard.tasks.task import Batch, Metric, Part, Task, step_generator

MOST_WAYS = 5
UNSEEN = 2 / 5
"""Of the classes, for the test part."""

JUDGED_TOGETHER = 50
"""Episodes."""

VALIDATION_EPISODES, SHOWN_EPISODES = 100, 6


@dataclass(frozen=True)
class ClassPool:
    """Images by class, and which of them belong to which part.

    Attributes:
        images: bytes; one channel is grey, three are colours.
        classes: names.
        parts: of "train", "validation" and "test": class number -> numbers of its images.
    """

    images: UInt8[Tensor, "S C H W"]
    classes: Sequence[str]
    parts: dict[str, dict[int, Int[Tensor, " P"]]]

    @property
    def digest(self) -> str:
        """sha256 of the content."""
        total = hashlib.sha256(self.images.numpy().tobytes())
        for part, members in self.parts.items():
            for number, images in members.items():
                total.update(f"{part}\0{number}\0{images.tolist()}".encode())
        return total.hexdigest()


def unseen(classes: Sequence[str]) -> list[int]:
    """Two fifths of the classes, at least two, the first in the order of the sha256 of their names.

    Example:
        >>> unseen(("bag", "coat", "dress", "shirt", "trainer"))
        [2, 4]
    """
    order = sorted(range(len(classes)), key=lambda number: hashlib.sha256(classes[number].encode()).digest())
    return sorted(order[: max(2, int(UNSEEN * len(classes)))])


class Episodes(Task):
    """Episodes of K classes, as many as the test part has, but at most :data:`MOST_WAYS`.

    To learn from, images are moved by a few pixels, as in :class:`regard.tasks.images.Images`.

    Args:
        found: the images.
        shots: of each class.
        queries: of each class, to learn from.
        batch: episodes per step.
        seed: of the episodes to learn from; those to be judged on are always the same.
        test_episodes: to be judged on.
    """

    metric = Metric("accuracy", lower_is_better=False, digits=3, items="episodes")
    unit = "pixels"

    def __init__(
        self, found: ClassPool, *, shots: int, queries: int, batch: int, seed: int, test_episodes: int
    ) -> None:
        self.found, self.shots, self.queries, self.rows, self.seed = found, shots, queries, batch, seed
        self.ways = min(MOST_WAYS, len(found.parts["train"]), len(found.parts["test"]))
        self.length, self.num_classes = found.images.shape[-1], self.ways
        self.episodes: dict[Part, int] = {"validation": VALIDATION_EPISODES, "test": test_episodes}
        self.scale = Scale.of(found.images[torch.cat([*found.parts["train"].values()])])

    def model(self, dim: int, depth: int, num_heads: int, mechanism: str | None, **options: Any) -> nn.Module:
        """Backbone, meeting of maps, cosines; ``mechanism=None``: a prototype network."""
        channels = self.found.images.shape[1]
        return FewShotNet(channels, dim, num_heads, self.length, mechanism, shots=self.shots, depth=depth, **options)

    def batch(self, step: int) -> Batch:
        """Episodes of classes to learn from, drawn by a generator that depends on seed and step alone."""
        return self._batch("train", self.rows, step_generator(self.seed, step))

    def held_out(self, part: Part) -> Iterator[Batch]:
        """The same episodes whatever the seed."""
        generator = step_generator(0, part)
        for start in range(0, self.episodes[part], JUDGED_TOGETHER):
            yield self._batch(part, min(JUDGED_TOGETHER, self.episodes[part] - start), generator, start)

    def loss(self, prediction: Float[Tensor, "B Q K"], batch: Batch) -> Float[Tensor, ""]:
        """Mean cross-entropy over the classes of each episode."""
        return F.cross_entropy(prediction.flatten(0, 1).float(), batch.targets.flatten())

    def scores(self, prediction: Float[Tensor, "B Q K"], batch: Batch) -> Float[Tensor, " B"]:
        """The share of each episode's queries whose likeliest class is the right one."""
        return (prediction.argmax(-1) == batch.targets).double().mean(-1)

    def gallery(self) -> EpisodeGallery:
        """One query of each of the first test episodes."""
        names: list[list[str]] = []
        found = self._batch("test", SHOWN_EPISODES, step_generator(0, "test"), names=names)
        row = torch.arange(SHOWN_EPISODES)
        tokens, targets = (t[row, row % self.ways][:, None] for t in (found.tokens, found.targets))
        one = replace(found, tokens=tokens, targets=targets)
        assert one.context is not None
        query, support = (
            self.scale.undo(images.flatten(0, 1)).unflatten(0, images.shape[:2]) for images in (tokens, one.context)
        )
        return EpisodeGallery(one, query[:, 0], support, names)

    def sizes(self) -> dict[str, tuple[int, int]]:
        """(episodes, pixels of their queries) of the parts that are judged, (images, pixels) of that to learn from."""
        pixels = self.length**2
        images = sum(map(len, self.found.parts["train"].values()))
        asked = self.ways * pixels
        held = {part: (count, count * asked) for part, count in self.episodes.items()}
        return {"train": (images, images * pixels), **held}

    def baselines(self) -> dict[str, float | None]:
        """Test accuracy of guessing, and of the nearest mean of a class's examples, pixel by pixel."""
        right = [self.scores(nearest(batch, self.shots), batch) for batch in self.held_out("test")]
        return {"chance": 1 / self.ways, "nearest mean image": float(torch.cat(right).mean())}

    def _batch(
        self, part: str, count: int, generator: Generator, first: int = 0, *, names: list[list[str]] | None = None
    ) -> Batch:
        """Episodes, class by class; ``names`` takes the classes of each."""
        pool, queries = self.found.parts[part], self.queries if part == "train" else 1
        support, query = list[Tensor](), list[Tensor]()
        for _ in range(count):
            order = torch.randperm(len(pool), generator=generator)[: self.ways]
            chosen = [[*pool][int(place)] for place in order]
            drawn = [draw(pool[number], self.shots + queries, generator) for number in chosen]
            support.append(torch.cat([images[: self.shots] for images in drawn]))
            query.append(torch.cat([images[self.shots :] for images in drawn]))
            if names is not None:
                names.append([self.found.classes[number] for number in chosen])
        shift = generator if part == "train" else None
        tokens, context = (self._images(torch.stack(numbers), shift) for numbers in (query, support))
        targets = torch.arange(self.ways).repeat_interleave(queries).expand(count, -1)
        units = tuple(f"episode {first + number}" for number in range(count))
        return Batch(tokens, targets, units=units, amounts=(1.0,) * count, context=context)

    def _images(self, numbers: Int[Tensor, "B N"], shift: Generator | None) -> Float[Tensor, "B N C H W"]:
        images = self.found.images[numbers.flatten()]
        return self.scale.apply(images if shift is None else moved(images, shift)).unflatten(0, numbers.shape)


def draw(numbers: Int[Tensor, " P"], count: int, generator: Generator) -> Int[Tensor, " count"]:
    """So many different ones of them."""
    return numbers[torch.randperm(len(numbers), generator=generator)[:count]]


def nearest(batch: Batch, shots: int) -> Float[Tensor, "B Q K"]:
    """Minus the distance of each query to the mean image of each class's examples."""
    assert batch.context is not None
    means = batch.context.flatten(2).unflatten(1, (-1, shots)).mean(2)
    return -torch.cdist(batch.tokens.flatten(2), means)
