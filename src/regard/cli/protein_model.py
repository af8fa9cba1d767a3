"""The model that ``regard fold`` asks: from its folder, or trained into it first.

It has no structure module: within minutes that learns nothing of use, while distances, and a trace through them, come
early.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from regard.cli.training import train_shown
from regard.models.alphafold import AlphaFold
from regard.tasks.documents import InputError
from regard.tasks.protein_families import read_families, theseus
from regard.tasks.protein_split import split_families
from regard.tasks.proteins import Proteins
from regard.train.budget import Budget
from regard.train.fitting import is_fitted, read_fitted

KIND = "proteins"
SIZES: dict[str, Any] = {"dim": 32, "depth": 2, "num_heads": 4}
OPTIONS: dict[str, Any] = {"structure": False, "recycles": 0, "msa_drop": 0.0, "pair_drop": 0.1, "letters": 0.1}
CROP, ROWS, RATE = 80, 8, 2e-3
"""Residues and rows of a step; the peak learning rate."""


@dataclass(frozen=True)
class Folder:
    """A trained model.

    Attributes:
        model: in eval mode.
        rows: of an alignment that it has learned from.
        facts: what it was trained on, as :func:`regard.train.fitting.read_fitted` has it.
    """

    model: AlphaFold
    rows: int
    facts: dict[str, Any]


def make_task(data: Path | None, *, held_out: str | None = None, seed: int = 0) -> tuple[Proteins, str, list[str]]:
    """What a model learns from, what that is in words, and what was left out.

    Raises:
        InputError: there are no proteins; see :mod:`regard.tasks.protein_families`.
    """
    families = theseus() if data is None else read_families(data)
    split = split_families(families, held_out=held_out)
    names = ", ".join(family.name for family in families[:4]) + (", ..." if len(families) > 4 else "")
    title = f"{len(split.train)} chains of {len(families)} families ({names})"
    remarks = [f"{family.name}: {remark}" for family in families for remark in family.remarks]
    task = Proteins(split, crop=CROP, rows=ROWS, seed=seed)
    return task, title, [*remarks, split.sizes()]


def fitted_model(console: Console, folder: Path, data: Path | None, budget: Budget) -> Folder:
    """The model in ``folder``; where there is none that is finished, it is trained first.

    Args:
        console: where progress is shown.
        folder: of the model.
        data: structures and alignments to train on; None: the Debian package that is installed.
        budget: of the training.

    Raises:
        InputError: there is nothing to learn from, or the folder holds something else.
    """
    if not is_fitted(folder):
        with console.status("reading structures"):
            task, title, remarks = make_task(data)
        for remark in remarks:
            console.print(remark, markup=False, highlight=False, soft_wrap=True)
        torch.manual_seed(0)
        model = task.model(**SIZES, **OPTIONS)
        facts = {"kind": KIND, "data": title, "sizes": SIZES, "options": OPTIONS, "crop": CROP, "rows": ROWS}
        train_shown(console, model, task, folder, budget, rate=RATE, facts=facts)
    return load_model(folder)


def load_model(folder: Path) -> Folder:
    """The model that was trained into ``folder``.

    Raises:
        InputError: there is none, or it belongs to another version.
    """
    weights, facts = read_fitted(folder, KIND)
    try:
        model = Proteins.network(**facts["sizes"], **facts["options"])
        model.load_state_dict(weights)
        return Folder(model.eval(), int(facts["rows"]), facts)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder} holds a model of another version of regard: train again") from error
