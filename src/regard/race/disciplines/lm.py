"""``--task lm``: predict the next byte of the user's own text, or of 249 presidential messages."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from regard.race.discipline import CAUSAL_FIELD, Discipline, Prepared
from regard.tasks.baselines import baselines
from regard.tasks.corpora import python_topics, sotu, year
from regard.tasks.documents import fingerprint, printable, read_documents
from regard.tasks.language import LanguageModelling
from regard.tasks.split import Split, split_by, split_documents

if TYPE_CHECKING:
    from regard.race.settings import Settings


def prepare(settings: "Settings") -> Prepared:
    """Read the text of a race and split it.

    Raises:
        InputError: see :mod:`regard.tasks`.
    """
    remarks: list[str] = []
    if settings.files:
        documents, remarks = read_documents(settings.files)
        name, split = printable(", ".join(settings.files)), split_documents(documents, settings.length)
    elif settings.smoke:
        documents = python_topics()
        name, split = "help topics of this Python", split_documents(documents, settings.length)
    else:
        documents = sotu()
        rule = "by year: test is the years that end in 0, validation those in 5, training the rest"
        parts = {0: "test", 5: "validation"}
        split = split_by(documents, lambda document: parts.get(year(document) % 10, "train"), rule)
        name = "annual messages of US presidents, 1790-2026 (sotu 0.1.2)"
    task = LanguageModelling(split, length=settings.length, batch=settings.batch, seed=settings.seed)
    return Prepared(
        task,
        name,
        fingerprint(documents),
        split.rule,
        _sizes(split),
        baselines=lambda: asdict(baselines(task)),
        remarks=remarks,
    )


def _sizes(split: Split) -> dict[str, tuple[int, int]]:
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    return {part: (len(some), sum(len(document.data) for document in some)) for part, some in parts.items()}


LM = Discipline(
    name="lm",
    question="Which attention suits this text?",
    goal="predict the next byte",
    causal=True,
    field=lambda length: CAUSAL_FIELD,
    control=True,
    takes=frozenset({"files"}),
    defaults={},
    full={},
    smoke={"length": 128, "steps": 5, "dim": 32, "depth": 1, "num_heads": 2, "batch": 2},
    prepare=prepare,
)
