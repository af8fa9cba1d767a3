"""``--task pathfinder``: are two discs on one dashed path, from Long Range Arena; an image is a row of 1,024 pixels."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regard.race.discipline import ENCODER_FIELD, Discipline, Prepared
from regard.race.disciplines.long_range_arena import published
from regard.tasks.cache import cached
from regard.tasks.documents import InputError
from regard.tasks.pathfinder import SIDE, draw_pathfinder
from regard.tasks.sequences import SequenceClassification, Sequences
from regard.tasks.task import Metric

if TYPE_CHECKING:
    from regard.race.settings import Settings

SIZES = {
    "smoke": {"train": 64, "validation": 8, "test": 32},
    "small": {"train": 6_000, "validation": 64, "test": 400},
    "full": {"train": 160_000, "validation": 20_000, "test": 20_000},
}
REMARKS = {
    "smoke": "a handful of images: numbers that mean nothing",
    "small": "the images of Long Range Arena, but only 6,464 of 200,000, and seconds of training where it takes hours: "
    "nothing is learned before a --budget of many minutes; --scale full has the sizes of the benchmark",
    "full": "sizes as in Long Range Arena: 200,000 images, 80 / 10 / 10 % in their order; drawn by us",
}


def prepare(settings: "Settings") -> Prepared:
    """Draw the images, or take them from the cache.

    Raises:
        InputError: another ``--length`` than that of an image.
    """
    if settings.length != SIDE * SIDE:
        raise InputError(f"--length {settings.length}: an image of --task pathfinder has {SIDE} x {SIDE} = 1024 pixels")
    scale = "smoke" if settings.smoke else settings.scale
    sizes = SIZES[scale]
    count = sum(sizes.values())
    found = Sequences(**cached(f"pathfinder-1-{count}-seed{settings.seed}", lambda: _drawn(count, settings.seed)))
    task = SequenceClassification(
        found,
        sizes,
        vocab_size=256,
        num_classes=2,
        metric=Metric("accuracy", lower_is_better=False, digits=3, items="images"),
        unit="pixels",
        length=SIDE * SIDE,
        batch=settings.batch,
        seed=settings.seed,
    )
    return Prepared(
        task,
        f"Pathfinder, {count:,} images of {SIDE} x {SIDE} pixels, seed {settings.seed}",
        found.digest,
        f"in the order in which they were drawn: {' / '.join(f'{size:,}' for size in sizes.values())}",
        task.sizes(),
        baselines=lambda: {"majority class": task.majority()},
        bar="majority class",
        published=published(1, "Measured on the authors' 200,000 images, of which 50 % are in the larger class."),
        remarks=[REMARKS[scale]],
    )


def _drawn(count: int, seed: int) -> dict[str, Tensor]:
    images, labels = draw_pathfinder(count, seed)
    return {"tokens": images.flatten(), "lengths": torch.full((count,), SIDE * SIDE), "labels": labels}


PATHFINDER = Discipline(
    name="pathfinder",
    question="Which attention follows a path?",
    goal="tell whether two discs are on one path",
    causal=False,
    field=lambda length: ENCODER_FIELD,
    control=True,
    takes=frozenset({"scale"}),
    defaults={"length": SIDE * SIDE, "ngram": 1, "batch": 4, "dim": 64, "seconds": 10.0},
    full={"batch": 256, "steps": 62_400, "num_heads": 2, "learning_rate": 1e-4},
    smoke={"steps": 3, "dim": 16, "depth": 1, "num_heads": 2, "batch": 2},
    prepare=prepare,
)
