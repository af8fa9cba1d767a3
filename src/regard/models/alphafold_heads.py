"""What AlphaFold reads out of its representations, and the losses of a fold.

Jumper et al. 2021, supplement 1.9, equation 7.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from regard.models.all_atoms import ALPHA
from regard.models.alphafold_inputs import LETTER_KINDS
from regard.models.residue_atoms import GROUPS, ResidueTables
from regard.models.structure_losses import (
    BINS,
    CONFIDENCES,
    confidence_loss,
    fape,
    lddt_ca,
    torsion_loss,
)
from regard.models.structure_module import Structure
from regard.models.structure_truth import Known, ProteinTruth, all_atoms, nearest_names, work_out
from regard.ops.frames import Frames, precise
from regard.ops.projection import Projection

BACKBONE_ATOMS = 5
"""N, CA, C, CB and O: the first names, and the first slots of a residue."""

UNCLAMPED = 0.1
"""The share of proteins whose backbone error counts in full in training."""


class LossWeights(NamedTuple):
    """What each loss counts; the paper's numbers, with 0.3 for the distogram, which is the task's."""

    fape: float = 0.5
    auxiliary: float = 0.5
    masked_msa: float = 2.0
    confidence: float = 0.01


class FoldLosses(NamedTuple):
    """Losses of a batch of folds, each one number.

    Attributes:
        fape: of all atoms, from all frames, at the end.
        auxiliary: of the backbone and the torsions, meaned over the steps of the structure module.
        confidence: of the predicted lDDT.
    """

    fape: Float[Tensor, ""]
    auxiliary: Float[Tensor, ""]
    confidence: Float[Tensor, ""]


class DistogramHead(nn.Module):
    """L(z)_ij + L(z)_ji: logits of the bins of distance, float32.

    Args:
        pair_dim: c_z.
        bins: how many.

    Example:
        >>> DistogramHead(6)(torch.randn(1, 5, 5, 6)).shape
        torch.Size([1, 5, 5, 64])
    """

    def __init__(self, pair_dim: int, bins: int = BINS, **factory: Any) -> None:
        super().__init__()
        self.logits = Projection(pair_dim, bins, "zero", **factory)

    def forward(self, pair: Float[Tensor, "B R R C"]) -> Float[Tensor, "B R R K"]:
        """Logits of all pairs."""
        half = precise(self.logits(pair))
        return half + half.transpose(1, 2)


class MaskedMsaHead(nn.Module):
    """Logits of the letters of an alignment.

    Args:
        msa_dim: c_m.
    """

    def __init__(self, msa_dim: int, **factory: Any) -> None:
        super().__init__()
        self.logits = Projection(msa_dim, LETTER_KINDS, "zero", **factory)

    def forward(self, msa: Float[Tensor, "B S R C"]) -> Float[Tensor, "B S R K"]:
        """Logits of all letters."""
        return self.logits(msa)


class ConfidenceHead(nn.Module):
    """Algorithm 29: logits of the lDDT that each residue will have.

    Args:
        single_dim: c_s.
        width: of the hidden layers.

    Example:
        >>> ConfidenceHead(6)(torch.randn(1, 5, 6)).shape
        torch.Size([1, 5, 50])
    """

    def __init__(self, single_dim: int, width: int = 128, **factory: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(single_dim, **factory)
        self.first = Projection(single_dim, width, "relu", **factory)
        self.second = Projection(width, width, "relu", **factory)
        self.logits = Projection(width, CONFIDENCES, "zero", **factory)

    def forward(self, single: Float[Tensor, "B R C"]) -> Float[Tensor, "B R K"]:
        """Logits of all residues."""
        return self.logits(F.relu(self.second(F.relu(self.first(self.norm(single))))))


def structure_losses(
    made: Structure,
    confidence_logits: Float[Tensor, "B R K"],
    truth: ProteinTruth,
    sequence: Int[Tensor, "B R"],
    residue_index: Int[Tensor, "B R"],
    mask: Bool[Tensor, "B R"],
    tables: ResidueTables,
    training: bool,
    generator: Generator | None = None,
) -> FoldLosses:
    """How far a fold is from the truth, meaned over the proteins of a batch.

    Args:
        made: from :class:`regard.models.structure_module.StructureModule`.
        confidence_logits: from :class:`ConfidenceHead`.
        truth: what is known.
        sequence, residue_index, mask: kinds and places of residues, and which are real.
        tables: of the residues.
        training: a tenth of the proteins, drawn, has an unclamped backbone error.
        generator: the source of that draw.
    """
    atoms, atom_mask = all_atoms(truth, mask)
    side_chains = truth.atoms.shape[2] > BACKBONE_ATOMS
    if side_chains:
        atoms, atom_mask = nearest_names(atoms, atom_mask, made.atoms, sequence, tables)
    known = work_out(atoms, atom_mask, sequence, residue_index, tables)
    chosen = [0, *range(3, GROUPS)] if side_chains else [0, 3]  # omega and phi move no heavy atom
    slots = tables.atom[sequence][..., : None if side_chains else BACKBONE_ATOMS]
    exists = tables.exists[sequence][..., : slots.shape[-1]] & atom_mask.take_along_dim(slots, -1)
    places, true_places = (t.take_along_dim(slots[..., None], -2).flatten(1, 2) for t in (made.atoms, atoms))
    frames, true_frames = (_chosen(groups, chosen) for groups in (made.groups, known.groups))
    seen = (known.group_mask[..., chosen].flatten(1), exists.flatten(1))
    whole = fape(frames, places, true_frames, true_places, *seen)
    auxiliary = _backbone(made, known, training, generator) + _torsions(made, known, mask, tables, sequence)
    alpha = made.atoms[..., ALPHA, :].detach()
    lddt = lddt_ca(alpha, atoms[..., ALPHA, :], atom_mask[..., ALPHA])
    sure = confidence_loss(confidence_logits, lddt, atom_mask[..., ALPHA])
    return FoldLosses(whole.mean(), auxiliary.mean(), sure.mean())


def _backbone(made: Structure, known: Known, training: bool, generator: Generator | None) -> Tensor:
    """(L, B): C-alpha seen from the backbone frames, step by step."""
    batch, device = len(known.backbone_mask), known.backbone_mask.device
    clamp: float | Tensor = 10.0
    if training:
        free = torch.rand(batch, generator=generator, device=device) < UNCLAMPED
        clamp = torch.where(free, torch.inf, 10.0)
    seen = (known.backbone_mask, known.backbone_mask)
    return fape(*(made.trace, made.trace.translation, known.backbone, known.backbone.translation), *seen, clamp=clamp)


def _torsions(made: Structure, known: Known, mask: Tensor, tables: ResidueTables, sequence: Tensor) -> Tensor:
    """(L, B): the torsions of each step."""
    symmetric = F.pad(tables.chi_symmetric[sequence], (3, 0))
    return torsion_loss(made.angles, made.raw_angles, known.angles, symmetric, known.angle_mask, mask)


def _chosen(frames: Frames, groups: list[int]) -> Frames:
    """Some of the eight frames of each residue, one behind the other."""
    return Frames(frames.rotation[:, :, groups].flatten(1, 2), frames.translation[:, :, groups].flatten(1, 2))
