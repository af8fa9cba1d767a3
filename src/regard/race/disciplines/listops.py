"""``--task listops``: the value of nested lists, as in Long Range Arena, beside what the first token tells."""

from functools import partial
from typing import TYPE_CHECKING

import torch

from regard.race.discipline import ENCODER_FIELD, Discipline, Prepared, fitted
from regard.race.disciplines.long_range_arena import published
from regard.tasks.cache import cached
from regard.tasks.documents import InputError
from regard.tasks.listops import PAD, SIGNS, VOCABULARY, draw_listops
from regard.tasks.sequences import SequenceClassification, Sequences
from regard.tasks.task import Metric

if TYPE_CHECKING:
    from regard.race.settings import Settings

SIZES = {
    "smoke": {"train": 256, "validation": 32, "test": 64},
    "small": {"train": 40_000, "validation": 1_000, "test": 2_000},
    "full": {"train": 96_000, "validation": 2_000, "test": 2_000},
}
SHORTEST_LENGTH = 32
"""Below it there are too few different expressions."""

REMARKS = {
    "smoke": "a handful of short expressions: numbers that mean nothing",
    "small": "the recipe of Long Range Arena at a small scale: {shortest} < length < {longest} instead of 500 and "
    "2,000, {count:,} expressions instead of 100,000; --scale full has the sizes of the benchmark",
    "full": "the recipe and sizes of Long Range Arena: {shortest} < length < {longest:,}, {count:,} expressions",
}
READING = (
    "the first token, which is the root's operator, tells a third of the answers: a mechanism counts as having learned "
    "only above that"
)
PUBLISHED_REMARK = (
    "Measured at the full scale, where the first token alone gives 0.361: the upper group is close to that, and the "
    "lower one to the largest class, 0.169."
)
LEGEND = "in passages < is MIN, > MAX, ~ MED, + SM"


def prepare(settings: "Settings") -> Prepared:
    """Draw the expressions, or take them from the cache.

    Raises:
        InputError: ``--length`` is too small.
    """
    longest, shortest = settings.length, settings.length // 4
    if longest < SHORTEST_LENGTH:
        raise InputError(f"--length {longest} leaves too few different expressions: at least {SHORTEST_LENGTH}")
    scale = "smoke" if settings.smoke else settings.scale
    sizes = SIZES[scale]
    count = sum(sizes.values())
    make = partial(_drawn, count, shortest, longest, settings.seed)
    found = Sequences(**cached(f"listops-1-{count}-{shortest}-{longest}-seed{settings.seed}", make))
    task = SequenceClassification(
        found,
        sizes,
        vocab_size=len(VOCABULARY),
        num_classes=10,
        metric=Metric("accuracy", lower_is_better=False, digits=3, items="expressions"),
        unit="tokens",
        signs=SIGNS,
        pad=PAD,
        length=longest,
        batch=settings.batch,
        seed=settings.seed,
    )
    return Prepared(
        task,
        f"ListOps, {count:,} expressions of {shortest + 1} to {longest - 1:,} tokens, seed {settings.seed}",
        found.digest,
        f"in the order in which they were drawn: {' / '.join(f'{size:,}' for size in sizes.values())}",
        task.sizes(),
        baselines=lambda: {"majority class": task.majority(), "first token": task.first_token()},
        bar="first token",
        published=published(0, PUBLISHED_REMARK),
        remarks=[REMARKS[scale].format(shortest=shortest, longest=longest, count=count), READING, LEGEND],
    )


def _drawn(count: int, shortest: int, longest: int, seed: int) -> dict[str, torch.Tensor]:
    return dict(vars(draw_listops(count, shortest, longest, seed)))


LISTOPS = Discipline(
    name="listops",
    question="Which attention computes nested lists?",
    goal="give the value of the expression",
    causal=False,
    field=partial(fitted, ENCODER_FIELD),
    control=True,
    takes=frozenset({"scale"}),
    defaults={"length": 64, "ngram": 1, "batch": 16, "dim": 64},
    full={"length": 2000, "batch": 32, "steps": 5000, "num_heads": 2, "learning_rate": 1e-4},
    smoke={"length": 32, "steps": 5, "dim": 32, "depth": 1, "num_heads": 2, "batch": 2},
    prepare=prepare,
)
