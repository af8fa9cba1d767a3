"""A protein as the text of a PDB or mmCIF file; gemmi does the writing."""

from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from regard.models.residue_atoms import ATOMS, LETTERS

PDB_RESIDUES, PDB_FAR = 9999, 999.0
"""What the columns of a PDB file can hold: the highest number, and Angstrom from the origin."""


def write_structure(
    sequence: str,
    atoms: Float[Tensor, "R A 3"],
    atom_mask: Bool[Tensor, "R A"],
    confidence: Float[Tensor, " R"],
    *,
    cif: bool = False,
    name: str = "fold",
) -> str:
    """A chain as the text of a PDB or mmCIF file, with the confidence of each residue as its B-factor.

    Args:
        sequence: R letters.
        atoms: Angstrom, by ``ATOMS`` or the first A of them.
        atom_mask: which of them there are.
        confidence: 0 to 100.
        cif: mmCIF instead of PDB.
        name: of the structure.

    Raises:
        ValueError: places or confidences that are no numbers, or too far out for a PDB file.

    Example:
        >>> import torch
        >>> text = write_structure("A", torch.ones(1, 2, 3), torch.tensor([[False, True]]), torch.tensor([90.0]))
        >>> text.splitlines()[0].split()
        ['ATOM', '1', 'CA', 'ALA', 'A', '1', '1.000', '1.000', '1.000', '1.00', '90.00', 'C']
    """
    import gemmi

    if not (atoms[atom_mask].isfinite().all() and confidence.isfinite().all()):
        raise ValueError("places or confidences are not finite: there is nothing to write")
    farthest = float(atoms[atom_mask].abs().amax()) if atom_mask.any() else 0.0
    if not cif and (len(sequence) > PDB_RESIDUES or farthest >= PDB_FAR):
        told = f"{len(sequence):,} residues up to {farthest:,.0f} A from the origin"
        raise ValueError(f"{told}: a PDB file holds {PDB_RESIDUES:,}, up to {PDB_FAR:.0f} A; write mmCIF")
    structure: Any = gemmi.Structure()
    structure.name = name
    structure.add_model(gemmi.Model(1))
    structure[0].add_chain(gemmi.Chain("A"))
    for number, letter in enumerate(sequence):
        residue: Any = gemmi.Residue()
        residue.name = gemmi.expand_one_letter(letter, gemmi.ResidueKind.AA) if letter in LETTERS else "UNK"
        residue.seqid, residue.het_flag = gemmi.SeqId(str(number + 1)), "A"
        residue.entity_type = gemmi.EntityType.Polymer
        for kind in atom_mask[number].nonzero().flatten().tolist():
            atom: Any = gemmi.Atom()
            atom.name, atom.element = ATOMS[kind], gemmi.Element(ATOMS[kind][0])
            atom.pos, atom.b_iso = gemmi.Position(*atoms[number, kind].tolist()), float(confidence[number])
            residue.add_atom(atom)
        structure[0]["A"].add_residue(residue)
    structure.setup_entities()
    structure.assign_serial_numbers()
    if cif:
        return structure.make_mmcif_document().as_string()
    return structure.make_pdb_string(gemmi.PdbWriteOptions(cryst1_record=False))
