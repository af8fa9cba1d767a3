"""``--task copy`` and ``--task recall``: quick probes of what a mechanism can and cannot do, whatever it is fed."""

from functools import partial
from typing import TYPE_CHECKING

from regard.race.discipline import CAUSAL_FIELD, Discipline, Prepared, fitted
from regard.tasks.copying import SYMBOLS, Copying
from regard.tasks.drawn import Drawn
from regard.tasks.recall import KEYS, VALUES, Recall

if TYPE_CHECKING:
    from regard.race.settings import Settings


def prepare_copy(settings: "Settings") -> Prepared:
    """The duplication task.

    Raises:
        InputError: ``--length`` is odd.
    """
    task = Copying(length=settings.length, batch=settings.batch, seed=settings.seed)
    half = settings.length // 2 - 1
    name = f"copy: 0 w 0 w with {half:,} symbols of {SYMBOLS} in w, seed {settings.seed}"
    return _prepared(task, name, f"the second w is asked for, and lies {half + 1:,} tokens behind the first")


def prepare_recall(settings: "Settings") -> Prepared:
    """Associative recall.

    Raises:
        InputError: ``--length`` is no multiple of 4, or too large.
    """
    task = Recall(length=settings.length, batch=settings.batch, seed=settings.seed)
    pairs = settings.length // 4
    sizes = f"{pairs} pairs of {len(KEYS)} keys and {len(VALUES)} values"
    return _prepared(
        task, f"recall: {sizes}, every key asked once, seed {settings.seed}", "the value behind each query is asked for"
    )


def _prepared(task: Drawn, name: str, remark: str) -> Prepared:
    found = task.baselines()
    return Prepared(
        task,
        name,
        task.digest(),
        "drawn from a seed of its own; the sequences of training are new at every step",
        task.sizes(),
        baselines=lambda: found,
        bar=max(found, key=lambda baseline: found[baseline] or 0.0),
        remarks=[remark],
    )


COPY = Discipline(
    name="copy",
    question="Which attention can repeat what it has read?",
    goal="repeat a sequence of symbols",
    causal=True,
    field=partial(fitted, CAUSAL_FIELD),
    control=True,
    takes=frozenset({"scale"}),
    defaults={"length": 64, "ngram": 2, "batch": 16, "dim": 64},
    full={"length": 1024},
    smoke={"length": 16, "steps": 5, "dim": 32, "depth": 1, "num_heads": 2, "batch": 2},
    prepare=prepare_copy,
)

RECALL = Discipline(
    name="recall",
    question="Which attention can look things up?",
    goal="give the value that stood beside a key",
    causal=True,
    field=partial(fitted, CAUSAL_FIELD),
    control=True,
    takes=frozenset(),
    defaults={"length": 64, "ngram": 2, "batch": 16, "dim": 64},
    full={},
    smoke={"length": 16, "steps": 5, "dim": 32, "depth": 1, "num_heads": 2, "batch": 2},
    prepare=prepare_recall,
)
