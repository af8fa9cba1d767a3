"""Protein structures from PDB and mmCIF files; gemmi does the reading.

A chain is what the file calls one: its residues in order, with those atoms that were seen. Residues that the file lists
but did not see (SEQRES, entity_poly_seq) are there without atoms. Of alternate locations the one with the highest
occupancy is taken, of several models the first; a modified residue is read as what it was made from (selenomethionine
as methionine), and as X where that is not known.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.models.all_atoms import ALPHA
from regard.models.residue_atoms import ATOMS, LETTERS
from regard.tasks.documents import InputError
from regard.tasks.protein_files import read_text

_NUMBER = re.compile(r" *-?\d*\.?\d+ *")
_COLUMNS = {name: number for number, name in enumerate(ATOMS)}

BREAK = 4.5
"""Angstrom between C-alphas beyond which residues are no neighbours; bonded they are 3.8 apart, or 2.9 (cis)."""

LONGEST = 2000
"""Residues; the pair map of more would not fit into a usual memory."""


@dataclass(frozen=True)
class Chain:
    """One protein.

    Attributes:
        name: of the file and the chain.
        sequence: 20 letters, and X.
        atoms: places in Angstrom by ``ATOMS``; 0 where none was seen.
        atom_mask: True for atoms that were seen.
        places: the residues' numbers along the chain, from 0; they jump where some are missing altogether.
        remarks: what was left out, in words.
    """

    name: str
    sequence: str
    atoms: Float[Tensor, "R 37 3"]
    atom_mask: Bool[Tensor, "R 37"]
    places: Int[Tensor, " R"]
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.sequence)


def read_structure(
    path: str | Path, *, chain: str | None = None, longest: int = LONGEST, truncate: bool = False
) -> Chain:
    """One chain of a PDB or mmCIF file, ``.gz`` or not.

    Args:
        path: of the file; which of the two it is, its text tells.
        chain: its name; None: the only one.
        longest: the most residues.
        truncate: keep the first ``longest`` residues of a longer chain, and remark it.

    Raises:
        InputError: no structure, no protein in it, several chains without a choice, no C-alpha, or too long.
    """
    path = Path(path)
    structure = _parsed(path)
    remarks = [f"the first of {len(structure)} models"] if len(structure) > 1 else []
    found = {one.name: one for one in structure[0] if _is_protein(one.get_polymer())}
    name = _chosen(path, list(found), chain)
    residues = _residues(structure, found[name])
    atoms, mask = _places_of_atoms([one for one, _ in residues])
    if not mask[:, ALPHA].any():
        raise InputError(f"{path}: chain {name} has no C-alpha atoms; a trace needs them")
    if len(residues) > longest:
        told = f"{path}: chain {name} has {len(residues):,} residues, the limit is {longest:,}"
        if not truncate:
            raise InputError(f"{told}; ask for a truncation, or give a shorter chain")
        remarks.append(f"the first {longest:,} of {len(residues):,} residues")
        residues, atoms, mask = residues[:longest], atoms[:longest], mask[:longest]
    sequence = "".join(_letter(kind) for _, kind in residues)
    listed = any(one is None for one, _ in residues)
    numbers = None if listed else [one.seqid.num for one, _ in residues if one is not None]
    places = torch.arange(len(sequence)) if numbers is None else _with_gaps(atoms[:, ALPHA], mask[:, ALPHA], numbers)
    label = path.name.removesuffix(".gz").rsplit(".", 1)[0]
    return Chain(f"{label}:{name}" if chain else label, sequence, atoms, mask, places, tuple(remarks))


def _parsed(path: Path) -> Any:
    """gemmi's structure of a file."""
    try:
        import gemmi
    except ImportError as error:
        raise InputError("structures are read by gemmi: pip install 'regard[race]'") from error
    text = read_text(path)
    cif = re.search(r"^data_", text, re.MULTILINE) is not None
    if not cif:
        _check_numbers(path, text)
    kind = gemmi.CoorFormat.Mmcif if cif else gemmi.CoorFormat.Pdb
    try:
        found: Any = gemmi.read_structure_string(text, format=kind)
    except (RuntimeError, ValueError) as error:
        if "charge" not in str(error):
            raise InputError(f"{path} is no {'mmCIF' if cif else 'PDB'} file: {error}") from error
        found = gemmi.read_pdb_string(text, max_line_length=72)  # before 1996 a PDB code stood behind column 72
    if not len(found) or not any(len(chain) for chain in found[0]):
        raise InputError(f"{path} holds no atoms: expected a PDB or mmCIF file")
    found.setup_entities()
    found.assign_label_seq_id()
    return found


def _check_numbers(path: Path, text: str) -> None:
    """gemmi reads what is no number as 0; here it is refused."""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith(("ATOM  ", "HETATM")) and not all(
            _NUMBER.fullmatch(line[first : first + 8]) for first in (30, 38, 46)
        ):
            raise InputError(
                f"{path}, line {number}: {line[30:54].strip()!r} is no place; columns 31 to 54 of a PDB file hold x, y "
                "and z"
            )


def _is_protein(polymer: Any) -> bool:
    import gemmi

    kinds = (gemmi.PolymerType.PeptideL, gemmi.PolymerType.PeptideD)
    return len(polymer) > 0 and polymer.check_polymer_type() in kinds


def _chosen(path: Path, names: Sequence[str], wanted: str | None) -> str:
    if not names:
        raise InputError(f"{path} holds no protein chain")
    if wanted is None and len(names) > 1:
        raise InputError(f"{path} holds the chains {', '.join(names)}: choose one")
    if wanted is not None and wanted not in names:
        raise InputError(f"{path} holds no protein chain {wanted!r}; it has {', '.join(names)}")
    return wanted or names[0]


def _residues(structure: Any, chain: Any) -> list[tuple[Any, str]]:
    """(residue or None, its name) in the order of the full sequence where the file tells it, else as they stand."""
    import gemmi

    seen: dict[Any, Any] = {}
    for residue in chain.get_polymer():  # of two kinds of residue at one place the better occupied one
        place = residue.seqid.num, residue.seqid.icode
        if place not in seen or _occupancy(residue) > _occupancy(seen[place]):
            seen[place] = residue
    entity = structure.get_entity_of(chain.get_polymer())
    listed = [gemmi.Entity.first_mon(one) for one in entity.full_sequence] if entity is not None else []
    found = {residue.label_seq: residue for residue in seen.values()}
    if not listed or None in found or len(found) < len(seen):
        return [(residue, residue.name) for residue in seen.values()]
    at = [found.get(number) for number in range(1, len(listed) + 1)]
    return [(one, name if one is None else one.name) for one, name in zip(at, listed, strict=True)]


def _occupancy(residue: Any) -> float:
    return max((atom.occ for atom in residue), default=0.0)


def _places_of_atoms(residues: Sequence[Any]) -> tuple[Float[Tensor, "R 37 3"], Bool[Tensor, "R 37"]]:
    best: dict[tuple[int, int], Any] = {}
    for row, residue in enumerate(residues):
        for atom in residue or ():
            column = _COLUMNS.get("SD" if residue.name == "MSE" and atom.name == "SE" else atom.name)
            if column is None or (column == ALPHA and atom.element.name.upper() != "C"):  # CA may be calcium
                continue
            if (row, column) not in best or atom.occ > best[row, column].occ:
                best[row, column] = atom
    atoms = torch.zeros(len(residues), len(ATOMS), 3)
    mask = torch.zeros(len(residues), len(ATOMS), dtype=torch.bool)
    if best:
        rows, columns = torch.tensor(list(best)).mT
        atoms[rows, columns] = torch.tensor([(at.x, at.y, at.z) for at in (atom.pos for atom in best.values())])
        mask[rows, columns] = True
    return atoms, mask


def _letter(name: str) -> str:
    import gemmi

    known: Any = gemmi.find_tabulated_residue(name)
    letter = known.one_letter_code.upper() if known.is_amino_acid() else "X"
    return letter if letter in LETTERS else "X"


def _with_gaps(trace: Float[Tensor, "R 3"], seen: Bool[Tensor, " R"], numbers: Sequence[int]) -> Int[Tensor, " R"]:
    """Consecutive places, but where C-alphas are too far apart to be bonded: there as many as the numbers skip.

    The numbers alone do not tell: those of proteases follow chymotrypsin's and skip without any gap.
    """
    far = (trace[1:] - trace[:-1]).norm(dim=-1) > BREAK
    broken = far & seen[1:] & seen[:-1]
    steps = torch.tensor(numbers).diff().clamp(min=2, max=1000).where(broken, 1)
    return torch.cat((steps.new_zeros(1), steps.cumsum(0)))
