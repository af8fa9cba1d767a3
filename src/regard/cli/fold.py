"""``regard fold``: the C-alphas of a protein, how certain each is, and a picture of its contacts."""

import json
from pathlib import Path
from typing import Any

from regard.cli.display import make_console, say
from regard.cli.protein_model import Folder, fitted_model
from regard.models.structure_truth import pseudo_beta
from regard.tasks.contact_picture import contact_picture
from regard.tasks.documents import InputError, printable
from regard.tasks.folding import Folded, check_same, fold, judge
from regard.tasks.protein_files import GAP, UNKNOWN, Alignment, read_sequences, spell
from regard.tasks.protein_structures import Chain, read_structure
from regard.tasks.protein_writing import write_structure
from regard.tasks.writing import write_file
from regard.train.budget import Budget
from regard.train.fitting import sentence

DEFAULT_MODEL = "regard-protein"
FORMATS = (".pdb", ".cif")

LONGEST = 1000
"""Residues: time grows with the third power of the length, and memory with the second."""


def print_fold(
    sequence: Path,
    out: Path,
    *,
    model: Path | None,
    data: Path | None,
    seconds: float,
    truth: Path | None,
    chain: str | None,
    truncate: bool,
) -> None:
    """Write the structure, a picture of its contacts and a JSON beside it, and print what it is worth.

    Args:
        sequence: a sequence (FASTA) or an alignment (A3M, A2M, aligned FASTA) whose first row is folded.
        out: .pdb or .cif.
        model: folder of the model, which is trained into it first where there is none; None: ``regard-protein``.
        data: structures and alignments to learn from; None: the Debian package that is installed.
        seconds: to train for.
        truth: a structure of the same protein to compare with.
        chain: which chain of the truth.
        truncate: fold the first residues of a protein over the limit.

    Raises:
        InputError: a file that cannot be read or written, a protein over the limit, or nothing to learn from.
    """
    _check_out(out)
    remarks, alignment = _admitted(sequence, truncate)
    true = None if truth is None else read_structure(truth, chain=chain, longest=LONGEST, truncate=truncate)
    if true is not None:
        check_same(spell(alignment.letters[0]), true)
    console, path = make_console(), model or Path(DEFAULT_MODEL)
    trained = fitted_model(console, path, data, Budget(seconds=seconds))
    say(console, sentence(trained.facts))
    say(console, "a small model: it knows the kinds of proteins it was trained on, and little of any other")
    with console.status("folding"):
        folded = fold(trained.model, alignment, rows=trained.rows, by="trace")
    figures = {} if true is None else judge(folded, true)
    for remark in (*remarks, *(true.remarks if true else ())):
        say(console, remark)
    name = alignment.names[0]
    for ending, content in _files(folded, name, out, true, figures, trained, len(alignment)).items():
        write_file(out.with_suffix(ending), content)
    say(
        console,
        f"{name}: {len(folded.sequence)} residues, mean confidence {float(folded.confidence.mean()):.0f} of 100",
    )
    for title, value in figures.items():
        say(console, f"  {title} {value:.3f}")
    say(console, "  ".join(str(out.with_suffix(ending)) for ending in (out.suffix, ".png", ".json")))


def _check_out(out: Path) -> None:
    if out.suffix.lower() not in FORMATS:
        raise InputError(f"--out {printable(str(out))}: structures are written as {' or '.join(FORMATS)}")
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"--out {printable(str(out))}: there is no folder {out.parent} to write into, or it is one")


def _admitted(path: Path, truncate: bool) -> tuple[list[str], Alignment]:
    """The alignment, cut where it was asked for, and what is to be known of it."""
    alignment, remarks = read_sequences(path), list[str]()
    length = alignment.letters.shape[1]
    if length > LONGEST:
        told = f"{printable(str(path))}: {length:,} residues, the limit is {LONGEST:,}"
        if not truncate:
            raise InputError(f"{told}; fold a domain of it, or ask for its beginning with --truncate")
        remarks.append(f"{told}: only the first {LONGEST:,} are folded")
        alignment = Alignment(alignment.names, alignment.letters[:, :LONGEST], alignment.deletions[:, :LONGEST])
    unknown = int((alignment.letters[0] == UNKNOWN).sum())
    if unknown:
        remarks.append(f"{unknown} unknown residues (X) are folded as such")
    if len(alignment) == 1:
        remarks.append("a sequence without relatives: an alignment (.a3m) of its family tells the model much more")
    empty = int((alignment.letters[1:] == GAP).all(1).sum())
    if empty:
        remarks.append(f"{empty} rows of the alignment have nothing but gaps")
    return remarks, alignment


def _files(
    folded: Folded,
    name: str,
    out: Path,
    true: Chain | None,
    figures: dict[str, float],
    trained: Folder,
    rows: int,
) -> dict[str, bytes]:
    """By ending."""
    points: dict[str, Any] = {}
    if true is not None:
        beta, mask = pseudo_beta(true.atoms[None], true.atom_mask[None])
        points = {"points": beta[0], "mask": mask[0]}
    told = {
        "name": name,
        "sequence": folded.sequence,
        "rows": rows,
        "places by": folded.by,
        "confidence": [round(value, 2) for value in folded.confidence.tolist()],
        "contacts": [[round(value, 3) for value in row] for row in folded.contacts.tolist()],
        "beside the truth": {title: None if value != value else value for title, value in figures.items()},
        "training": trained.facts,
    }
    cif = out.suffix.lower() == ".cif"
    text = write_structure(folded.sequence, folded.atoms, folded.atom_mask, folded.confidence, cif=cif)
    return {
        out.suffix: text.encode(),
        ".png": contact_picture(folded.contacts, name, confidence=folded.confidence, **points),
        ".json": json.dumps(told, indent=1).encode(),
    }
