"""An alignment of proteins at the door of AlphaFold: what does not fit is refused with the shapes and the rule."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.models.alphafold_inputs import GAP, LETTER_KINDS, UNKNOWN, letter_features
from regard.models.residue_atoms import ATOMS
from regard.models.template_features import Templates
from regard.ops.masks import check_mask, positions


class Protein(NamedTuple):
    """What has passed the door.

    Attributes:
        letters: features of the alignment.
        sequence: kinds of residues, 0 .. 20.
        residue_index: places in the chain.
        mask, msa_mask: real residues, and real letters.
        extra: features of a further alignment, and its real letters.
        templates: known structures of related proteins, one or more.
    """

    letters: Float[Tensor, "B S R F"]
    sequence: Int[Tensor, "B R"]
    residue_index: Int[Tensor, "B R"]
    mask: Bool[Tensor, "B R"]
    msa_mask: Bool[Tensor, "B S R"]
    extra: tuple[Float[Tensor, "B E R F"], Bool[Tensor, "B E R"]] | None = None
    templates: Templates | None = None

    @property
    def pair_mask(self) -> Bool[Tensor, "B R R"]:
        """Pairs of real residues."""
        return self.mask[:, :, None] & self.mask[:, None]


def admit_protein(
    tokens: Tensor,
    key_mask: Tensor | None,
    sequence: Tensor | None,
    residue_index: Tensor | None,
    msa_mask: Tensor | None,
    deletions: Tensor | None,
) -> Protein:
    """The door; masked letters become gaps and masked residues X, so that whatever stood there is gone.

    Args:
        tokens, key_mask, sequence, residue_index, msa_mask, deletions: as
            :meth:`regard.models.alphafold.AlphaFold.forward` takes them.

    Raises:
        ValueError, TypeError: shapes or dtypes that do not fit.

    Example:
        >>> protein = admit_protein(torch.tensor([[[3, 21, 7]]]), torch.tensor([[True, True, False]]), *[None] * 4)
        >>> protein.sequence.tolist(), protein.letters.shape
        ([[3, 20, 20]], torch.Size([1, 1, 3, 25]))
    """
    if tokens.ndim != 3 or tokens.shape[1] < 1:
        raise ValueError(f"tokens has shape {tuple(tokens.shape)}, expected (batch, sequences, residues)")
    batch, _, length = tokens.shape
    check_mask(key_mask, batch, length)
    mask = torch.ones_like(tokens[:, 0], dtype=torch.bool) if key_mask is None else key_mask
    sequence = tokens[:, 0] if sequence is None else sequence
    residue_index = positions(sequence, mask) if residue_index is None else residue_index
    for name, given in (("sequence", sequence), ("residue_index", residue_index)):
        if given.ndim != 2 or given.shape[0] not in (1, batch) or given.shape[1] != length:
            raise ValueError(f"{name} has shape {tuple(given.shape)}, expected {(batch, length)}: one number a residue")
    letters, real = _letters("tokens", tokens, msa_mask, deletions, mask)
    sequence = sequence.masked_fill(~mask | (sequence > UNKNOWN), UNKNOWN)  # a gap or a mask is no residue
    return Protein(letters, sequence, residue_index.expand(batch, -1).masked_fill(~mask, 0), mask, real)


def admit_extra(protein: Protein, msa: Tensor, msa_mask: Tensor | None, deletions: Tensor | None) -> Protein:
    """The same with a further alignment.

    Raises:
        ValueError, TypeError: shapes or dtypes that do not fit.
    """
    batch, length = protein.mask.shape
    if msa.ndim != 3 or (msa.shape[0], msa.shape[2]) != (batch, length):
        raise ValueError(f"extra_msa has shape {tuple(msa.shape)}, expected ({batch}, any number, {length})")
    return protein._replace(extra=_letters("extra_msa", msa, msa_mask, deletions, protein.mask))


def admit_templates(protein: Protein, templates: Templates) -> Protein:
    """The same with known structures; masked residues and templates have gaps for letters, and no atoms.

    Raises:
        ValueError, TypeError: shapes or dtypes that do not fit.
    """
    sequence, atoms, atom_mask, mask = templates
    batch, length = protein.mask.shape
    if sequence.ndim != 3 or (sequence.shape[0], sequence.shape[2]) != (batch, length):
        raise ValueError(f"templates have letters {tuple(sequence.shape)}, expected ({batch}, any number, {length})")
    fits = atoms.ndim == 5 and atoms.shape[:3] == sequence.shape and atoms.shape[4] == 3
    if not fits or not 5 <= atoms.shape[3] <= len(ATOMS):
        expected = f"{tuple(sequence.shape)} and then (5 to {len(ATOMS)}, 3)"
        raise ValueError(f"templates have atoms {tuple(atoms.shape)}, expected {expected}: the first of ATOMS")
    if sequence.is_floating_point() or sequence.dtype == torch.bool:
        raise TypeError(f"templates have letters of {sequence.dtype}: pass integers, 0 .. {GAP}")
    for name, given, shape in (("atom_mask", atom_mask, atoms.shape[:4]), ("mask", mask, sequence.shape[:2])):
        if given.dtype != torch.bool:
            raise TypeError(f"{name} of templates is {given.dtype}: pass Bool, True for what is known")
        if given.shape != shape:
            raise ValueError(f"{name} of templates has shape {tuple(given.shape)}, expected {tuple(shape)}")
    if sequence.shape[1] == 0:
        return protein
    real = mask[..., None] & protein.mask[:, None]
    sequence = sequence.masked_fill(sequence > GAP, UNKNOWN).masked_fill(~real, GAP)
    return protein._replace(templates=Templates(sequence, atoms, atom_mask & real[..., None], mask))


def _letters(
    name: str, msa: Tensor, msa_mask: Tensor | None, deletions: Tensor | None, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Features of an alignment, and which of its letters are real."""
    if msa.is_floating_point() or msa.dtype == torch.bool:
        raise TypeError(f"{name} is {msa.dtype}: pass integers, 0 .. {LETTER_KINDS - 1}")
    if msa_mask is not None and msa_mask.dtype != torch.bool:
        raise TypeError(f"the mask of {name} is {msa_mask.dtype}: pass Bool, True for real letters")
    for title, tensor in (("mask", msa_mask), ("deletions", deletions)):
        if tensor is not None and tensor.shape != msa.shape:
            raise ValueError(f"the {title} of {name} has shape {tuple(tensor.shape)}, expected {tuple(msa.shape)}")
    real = mask[:, None].expand_as(msa) if msa_mask is None else msa_mask & mask[:, None]
    deletions = None if deletions is None else deletions.masked_fill(~real, 0.0)
    return letter_features(msa.masked_fill(~real, GAP), deletions), real
