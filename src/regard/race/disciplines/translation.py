"""``--task translation``: LibreOffice's help from English to German, or the user's own sentences."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regard.models.translation_model import TranslationModel
from regard.race.discipline import Discipline, Prepared
from regard.race.rivals import trained
from regard.tasks.documents import InputError, printable
from regard.tasks.help_pages import DIGEST, FOLDER, libreoffice_help
from regard.tasks.numerals import LARGEST, numerals
from regard.tasks.parallel_text import ParallelSplit, read_parallel, read_parallel_folder, split_groups
from regard.tasks.subwords import Subwords
from regard.tasks.translation import Beyond, Translation
from regard.tasks.translation_baselines import subword_baselines

if TYPE_CHECKING:
    from regard.race.settings import Settings

FIELD = ("full", "luong", "bahdanau", "linear_transformer")
"""Every pair by scaled products; the two roots, multiplicative and additive; a kernel. Only four, and longer: it takes
most of a minute until a decoder finds its source, and a race shall stay below five minutes."""

SECONDS = 45.0

VOCABULARY = {"small": 4000, "full": 8000}
BLIND = "same decoder without a source"
SMOKE_NUMBERS = 600


def prepare(settings: "Settings") -> Prepared:
    """Read the sentences of a race, and learn their subwords from the training part.

    Raises:
        InputError: data that is missing or does not fit, see :mod:`regard.tasks.parallel_text`.
    """
    if settings.ngram != 1:
        raise InputError(f"--ngram {settings.ngram}: a subword is read by itself; leave it out")
    split, name, beyond = _read(settings)
    size = 300 if settings.smoke else VOCABULARY[settings.scale]
    subwords = Subwords.train((*split.train.source, *split.train.target), size)
    sizes = (settings.length, settings.batch, settings.seed)
    task = Translation(split, subwords, *sizes, beyond=beyond)
    remarks = [
        *split.remarks,
        *task.remarks,
        f"{len(subwords):,} subwords of both languages, learned from the training part",
        f"a step has about {settings.batch * settings.length:,} target subwords",
        f"bits per byte of the translation, its end included; {BLIND!r} trains as long as each entrant",
    ]
    return Prepared(
        task,
        name,
        split.digest,
        split.rule,
        task.sizes(),
        baselines=partial(_baselines, settings, task),
        bar=BLIND,
        remarks=remarks,
    )


def _read(settings: "Settings") -> tuple[ParallelSplit, str, Beyond]:
    """The sentences, what they are, and what becomes of those that are too long."""
    files = settings.files
    if settings.smoke:
        name = f"numbers from 0 to {LARGEST:,} in English and German words, seed {settings.seed}"
        return split_groups(numerals(SMOKE_NUMBERS, settings.seed)), name, "leave_out"
    if len(files) > 2:
        raise InputError(f"--task translation takes two files of lines or one folder, got {len(files)} names")
    if len(files) == 2:
        return split_groups(read_parallel(*files)), printable(" and ".join(files)), "refuse"
    folder = Path(files[0]) if files else FOLDER
    if files and not folder.is_dir():
        raise InputError(f"--task translation takes two files of lines or one folder: {printable(files[0])} is neither")
    if files and any(folder.glob("train*")):
        return read_parallel_folder(folder), printable(files[0]), "refuse"
    found = libreoffice_help(folder)
    version = "7.4.7-1+deb12u14" if found.digest == DIGEST else f"sha256 {found.digest[:12]}..."
    return split_groups(found), f"LibreOffice's help, English to German ({version})", "leave_out"


def _baselines(settings: "Settings", task: Translation) -> dict[str, float | None]:
    """What needs no source: counts of subwords, and the entrants' own decoder."""
    blind = partial(task.blind, settings.dim, settings.depth, settings.num_heads)
    return {**subword_baselines(task), BLIND: trained(settings, task, blind)}


def _trial(mechanism: str, options: Mapping[str, Any], settings: "Settings") -> None:
    """The model itself refuses what cannot look from a target at a source."""
    TranslationModel(1, settings.dim, 1, settings.num_heads, settings.length, mechanism, **options)


TRANSLATION = Discipline(
    name="translation",
    question="Which attention translates?",
    goal="predict each piece of a translation from its source",
    causal=False,
    field=lambda length: FIELD,
    control=False,
    takes=frozenset({"files", "scale"}),
    defaults={"length": 64, "ngram": 1, "batch": 8, "seconds": SECONDS},
    full={"length": 96, "batch": 32, "steps": 20_000, "dim": 256, "depth": 3, "learning_rate": 1e-3},
    smoke={"length": 40, "steps": 5, "dim": 16, "depth": 1, "num_heads": 2, "batch": 4},
    prepare=prepare,
    data=("pair", "sequence"),
    trial=_trial,
)
