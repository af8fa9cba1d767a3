"""``--task pairs``: is this sentence a translation of that one? Or any labelled pairs of the user's."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from regard.mechanisms.pairs.abcnn import Attention
from regard.models.pair_classifier import PairClassifier
from regard.race.discipline import Discipline, Prepared, fitted
from regard.race.rivals import trained
from regard.tasks.documents import InputError, printable
from regard.tasks.help_pages import libreoffice_help
from regard.tasks.numerals import numerals
from regard.tasks.pair_baselines import baselines
from regard.tasks.pairs import PairMatching
from regard.tasks.parallel_text import split_groups
from regard.tasks.sentence_pairs import PairSplit, matching, read_pairs

if TYPE_CHECKING:
    from regard.race.settings import Settings

FIELD = (
    *("full", "bahdanau", "luong", "show_attend_tell"),
    *("abcnn", "coda", "linear_transformer", "linformer"),
)
"""Every pair by its scaled product; by a small network; by a bilinear form; the same for captions; by distances; by
distances with a sign; a kernel; mixtures of the keys."""

BAR = "lengths, shared words and numbers"
SUBWORDS = {False: 4000, True: 400}
"""Kinds of them, at most, and in a smoke run."""

RIVALS: dict[str, Attention] = {"BCNN": "none", "ABCNN-1": "input", "ABCNN-2": "pooling", "ABCNN-3": "both"}
"""Whole networks of Yin et al., as they name them."""

BESIDE = (
    "beside the entrants, the same model without attention, in which neither side sees the other, and the networks "
    "BCNN and ABCNN train as long as each of them"
)


def prepare(settings: "Settings") -> Prepared:
    """Read the pairs of a race, and cut them into subwords.

    Raises:
        InputError: see :mod:`regard.tasks`.
    """
    if settings.ngram != 1:
        raise InputError(f"--ngram {settings.ngram}: a subword is read by itself; leave it out")
    if len(settings.files) > 1:
        raise InputError(
            f"--task pairs takes one file of lines label<TAB>first<TAB>second, or one folder with LibreOffice's help, "
            f"got {len(settings.files)}"
        )
    own = bool(settings.files) and not Path(settings.files[0]).is_dir()
    name, split = _pairs(settings, own)
    task = PairMatching(
        split,
        length=settings.length,
        batch=settings.batch,
        seed=settings.seed,
        beyond="refuse" if own else "leave_out",
        vocab_size=SUBWORDS[settings.smoke],
    )
    return Prepared(
        task,
        f"{name} ({' or '.join(map(printable, task.classes))})",
        split.digest,
        split.rule,
        task.sizes(),
        baselines=partial(_baselines, settings, task),
        bar=BAR,
        remarks=[*split.remarks, *task.remarks, BESIDE],
    )


def _pairs(settings: "Settings", own: bool) -> tuple[str, PairSplit]:
    """The data in words, and its parts."""
    if settings.smoke:
        return "numbers in words, English and German", matching(split_groups(numerals(400)))
    if own:
        return printable(settings.files[0]), read_pairs(settings.files[0])
    folder = settings.files[0] if settings.files else None
    return "LibreOffice's help, English and German", matching(split_groups(libreoffice_help(folder)))


def _baselines(settings: "Settings", task: PairMatching) -> dict[str, float | None]:
    """What needs no network, and what learns without one sentence seeing the words of the other, or in another way."""
    found: dict[str, float | None] = dict(baselines(task))
    apart = partial(task.model, settings.dim, settings.depth, settings.num_heads, None)
    found["the same without attention"] = trained(settings, task, apart)
    for name, kind in RIVALS.items():
        found[name] = trained(settings, task, partial(task.rival, settings.dim, settings.depth, kind))
    return found


def _trial(mechanism: str, options: Mapping[str, Any], settings: "Settings") -> None:
    """The model itself refuses what does not answer two sentences of this length."""
    sentence = torch.zeros(2, settings.length, dtype=torch.long)
    model = PairClassifier(1, settings.dim, 1, settings.num_heads, settings.length, mechanism, **options)
    model(sentence, context=sentence)


PAIRS = Discipline(
    name="pairs",
    question="Which attention matches sentences?",
    goal="say what two sentences are to each other",
    causal=False,
    field=partial(fitted, FIELD),
    control=False,
    takes=frozenset({"files"}),
    defaults={"length": 32, "ngram": 1, "batch": 64, "dim": 64, "depth": 1},
    full={},
    smoke={"length": 64, "steps": 5, "dim": 16, "depth": 1, "num_heads": 2, "batch": 4},
    prepare=prepare,
    data=("pair", "sequence"),
    trial=_trial,
    make="regard.models.across",
)
