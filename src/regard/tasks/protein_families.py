"""Families of proteins: alignments with the structures of their rows, and clusters of rows by identity.

A row of an alignment has a structure where a file beside the alignment has the row's name and the same residues. Rows
of equal sequence are one row. Rows that are 40 % identical, or linked by others that are, form a cluster (single
linkage).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regard.tasks.documents import InputError
from regard.tasks.protein_files import GAP, UNKNOWN, Alignment, numbers, read_alignment, spell
from regard.tasks.protein_structures import Chain, read_structure

THESEUS = Path("/usr/share/doc/theseus/examples")
"""Where the Debian package theseus-examples puts its files."""

ALIGNED = (".a3m", ".a2m", ".afa", ".fasta", ".fa")
STRUCTURES = (".pdb", ".ent", ".cif", ".mmcif")

LINKED = 0.4
"""The identity from which two rows are of one cluster."""


@dataclass(frozen=True)
class Family:
    """An alignment of distinct sequences, what is known of their structures, and the cluster of each row."""

    name: str
    alignment: Alignment
    chains: dict[int, Chain]
    clusters: tuple[int, ...]
    remarks: tuple[str, ...] = ()

    def target(self, row: int, allowed: Sequence[int]) -> Alignment:
        """The alignment on one row: it is the first, and the allowed ones follow."""
        return self.alignment.rows([row, *(other for other in allowed if other != row)]).onto(0)


def read_families(folder: str | Path) -> list[Family]:
    """Every alignment below a folder with its structures; structures without one are families of their own.

    Args:
        folder: with alignments (``.a3m .a2m .afa .fasta .fa``) and structures (``.pdb .ent .cif .mmcif``) beside them,
            each ``.gz`` or not.

    Raises:
        InputError: no structure at all, or a file that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; proteins are read from a folder of structures and alignments")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    alignments = [path for path in files if _suffix(path) in ALIGNED]
    structures = [path for path in files if _suffix(path) in STRUCTURES]
    if not structures:
        raise InputError(f"{folder} holds no structures ({', '.join(STRUCTURES)}, .gz or not)")
    found, taken = list[Family](), set[Path]()
    for path in alignments:
        beside = {_stem(one): one for one in structures if one.parent == path.parent}
        family, used = _family(path, beside)
        taken |= used
        if family.chains:
            found.append(family)
    return found + _alone([path for path in structures if path not in taken], found)


def theseus() -> list[Family]:
    """The dehydrogenases and the serine proteases of Debian's theseus-examples, and a few other proteins.

    Raises:
        InputError: the package is not installed.
    """
    if not THESEUS.is_dir():
        raise InputError(
            "there are no proteins to train on: apt-get install theseus-examples, or give --data, a folder of "
            "structures (.pdb, .cif) with alignments (.a3m) beside them"
        )
    return read_families(THESEUS)


def identities(alignment: Alignment) -> Float[Tensor, "S S"]:
    """The share of the shorter row's residues that are the same in both.

    Example:
        >>> from regard.tasks.protein_files import parse_alignment
        >>> identities(parse_alignment(">a\\nACD-\\n>b\\nAC-G\\n>c\\nGGGG\\n", "example"))[0].tolist()
        [1.0, 0.6666666865348816, 0.0]
    """
    letters = alignment.letters
    there = letters != GAP
    lengths = there.sum(1)
    found = torch.zeros(len(letters), len(letters))
    for row, (ours, real) in enumerate(zip(letters, there, strict=True)):
        found[row] = ((letters == ours) & there & real).sum(1) / torch.minimum(lengths, lengths[row])
    return found


def linkage(linked: Bool[Tensor, "S S"]) -> tuple[int, ...]:
    """Single linkage: the smallest row that each row is connected with.

    Example:
        >>> linkage(torch.tensor([[True, False, True], [False, True, False], [True, False, True]]))
        (0, 1, 0)
    """
    label = torch.arange(len(linked))
    while True:
        lower = torch.where(linked, label, len(linked)).amin(1)
        if bool((lower == label).all()):
            return tuple(label.tolist())
        label = lower


def _family(path: Path, beside: dict[str, Path]) -> tuple[Family, set[Path]]:
    """One alignment with the structures that are named as its rows; all of these are used, also where they differ."""
    alignment = read_alignment(path)
    rows, chains = dict[str, int](), dict[int, Chain]()
    used, missing, different = set[Path](), 0, 0
    for row, name in enumerate(alignment.names):
        letters = alignment.letters[row]
        row = rows.setdefault(spell(letters[letters != GAP]), row)
        file = beside.get(_stem(Path(name.split()[0])))
        if file is None:
            missing += 1
            continue
        used.add(file)
        if row in chains:
            continue
        chain = read_structure(file)
        if _agree(letters, chain):
            chains[row] = chain
        else:
            different += 1
    kept = list(rows.values())
    distinct = alignment.rows(kept)
    counts = {"rows of equal sequence": len(alignment) - len(kept), "rows without a structure": missing}
    counts["structures that differ from their row"] = different
    remarks = tuple(f"{count} {what} left out" for what, count in counts.items() if count)
    places = {row: number for number, row in enumerate(kept)}
    ours = {places[row]: chain for row, chain in chains.items()}
    return Family(_stem(path), distinct, ours, linkage(identities(distinct) >= LINKED), remarks), used


def _agree(letters: Tensor, chain: Chain) -> bool:
    """Are the residues those of the row? X stands for any."""
    row, seen = letters[letters != GAP], numbers(chain.sequence)
    return len(row) == len(seen) and bool(((row == seen) | (row == UNKNOWN) | (seen == UNKNOWN)).all())


def _alone(paths: Sequence[Path], families: Sequence[Family]) -> list[Family]:
    """Chains without an alignment, each a family; left out where it is like one that is there already."""
    found: list[Family] = []
    for path in paths:
        try:
            chain = read_structure(path)
        except InputError:
            continue  # several chains, or a nucleic acid: no single protein
        there = [other.sequence for family in (*families, *found) for other in family.chains.values()]
        if not any(_alike(chain.sequence, other) for other in there):
            letters = numbers(chain.sequence)[None]
            alone = Alignment((chain.name,), letters, torch.zeros_like(letters))
            found.append(Family(chain.name, alone, {0: chain}, (0,)))
    return found


def _alike(left: str, right: str) -> bool:
    """Are two sequences, aligned by BLOSUM62, as identical as those of a cluster?

    A short one finds many of its letters in a long one by chance, but then the gaps cost more than the letters bring.
    """
    import gemmi

    ours, theirs = (gemmi.expand_one_letter_sequence(one, gemmi.ResidueKind.AA) for one in (left, right))
    found = gemmi.align_string_sequences(ours, theirs, [], gemmi.AlignmentScoring("b"))
    return found.score > 0 and found.match_count >= LINKED * min(len(left), len(right))


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _stem(path: Path) -> str:
    """The name without its endings.

    Example:
        >>> _stem(Path("data/1A0J_A.pdb.gz"))
        '1A0J_A'
    """
    name = path.name.removesuffix(".gz")
    return name.rsplit(".", 1)[0] if Path(name).suffix.lower() in (*ALIGNED, *STRUCTURES) else name
