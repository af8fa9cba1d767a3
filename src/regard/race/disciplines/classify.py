"""``--task classify``: name the class of the user's own texts."""

from typing import TYPE_CHECKING

from regard.race.discipline import ENCODER_FIELD, Discipline, Prepared
from regard.race.disciplines.lm import LM
from regard.tasks.classification import Classification
from regard.tasks.documents import Document, InputError, fingerprint, printable
from regard.tasks.labelled import read_labelled, split_labelled

if TYPE_CHECKING:
    from regard.race.settings import Settings


def prepare(settings: "Settings") -> Prepared:
    """Read the labelled texts of a race and split them.

    Raises:
        InputError: see :mod:`regard.tasks`.
    """
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
    return Prepared(
        task,
        f"{printable(', '.join(settings.files))} ({task.num_classes} classes)",
        fingerprint(labels),
        split.rule,
        sizes,
        baselines=lambda: {"majority class": task.majority()},
        remarks=remarks,
    )


CLASSIFY = Discipline(
    name="classify",
    question="Which attention suits this text?",
    goal="name the class",
    causal=False,
    field=lambda length: ENCODER_FIELD,
    control=False,
    takes=frozenset({"files"}),
    defaults={},
    full={},
    smoke=LM.smoke,
    prepare=prepare,
)
