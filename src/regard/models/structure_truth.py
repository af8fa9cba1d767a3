"""The true structure of a protein as the losses of a fold want it: frames, torsions and names of atoms.

Jumper et al. 2021, supplement 1.8 and 1.2.9, algorithms 21 and 26.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.models.all_atoms import ALPHA, BETA, CARBON, OXYGEN, backbone_frames, torsion_angles
from regard.models.residue_atoms import ATOMS, GROUPS, ResidueTables
from regard.ops.frames import Frames, from_three_points, precise


class ProteinTruth(NamedTuple):
    """What is known of a protein in training.

    Attributes:
        atoms: in Angstrom; the first five of :data:`regard.models.residue_atoms.ATOMS`, N, CA, C, CB and O, or all 37.
        atom_mask: which atoms are known; what stands at the others does not matter.
        msa: the letters before some were corrupted.
        corrupted: where letters are to be guessed.
    """

    atoms: Float[Tensor, "B R A 3"]
    atom_mask: Bool[Tensor, "B R A"]
    msa: Int[Tensor, "B S R"]
    corrupted: Bool[Tensor, "B S R"]


class Known(NamedTuple):
    """The truth, worked out; False in a mask where an atom is missing.

    Attributes:
        atoms, atom_mask: all 37 names.
        backbone, backbone_mask: a frame a residue.
        groups, group_mask: its eight frames; omega and phi hold no heavy atoms and are left out.
        angles, angle_mask: its seven torsions as (sine, cosine).
    """

    atoms: Float[Tensor, "B R 37 3"]
    atom_mask: Bool[Tensor, "B R 37"]
    backbone: Frames
    backbone_mask: Bool[Tensor, "B R"]
    groups: Frames
    group_mask: Bool[Tensor, "B R 8"]
    angles: Float[Tensor, "B R 7 2"]
    angle_mask: Bool[Tensor, "B R 7"]


def all_atoms(
    truth: ProteinTruth, mask: Bool[Tensor, "B R"] | None = None
) -> tuple[Float[Tensor, "B R 37 3"], Bool[Tensor, "B R 37"]]:
    """The atoms under all 37 names, 0 where nothing is known or the residue is masked."""
    missing = len(ATOMS) - truth.atoms.shape[2]
    known = truth.atom_mask if mask is None else truth.atom_mask & mask[..., None]
    atoms = precise(truth.atoms).masked_fill(~known[..., None], 0.0)
    return F.pad(atoms, (0, 0, 0, missing)), F.pad(known, (0, missing))


def pseudo_beta(
    atoms: Float[Tensor, "B R A 3"], atom_mask: Bool[Tensor, "B R A"]
) -> tuple[Float[Tensor, "B R 3"], Bool[Tensor, "B R"]]:
    """Where the side chain starts: CB, or CA where there is none.

    Example:
        >>> atoms, known = torch.zeros(1, 2, 5, 3), torch.tensor([[[True] * 5, [True, True, True, False, True]]])
        >>> pseudo_beta(atoms, known)[1]
        tensor([[True, True]])
    """
    beta = atom_mask[..., BETA]
    points = torch.where(beta[..., None], atoms[..., BETA, :], atoms[..., ALPHA, :])
    known = beta | atom_mask[..., ALPHA]
    return points.masked_fill(~known[..., None], 0.0), known


def work_out(
    atoms: Float[Tensor, "B R 37 3"],
    atom_mask: Bool[Tensor, "B R 37"],
    sequence: Int[Tensor, "B R"],
    residue_index: Int[Tensor, "B R"],
    tables: ResidueTables,
) -> Known:
    """Frames and torsions of known atoms.

    Args:
        atoms, atom_mask: as from :func:`all_atoms`.
        sequence: kinds of residues, 0 .. 20.
        residue_index: places in the chain; neighbours differ by 1.
        tables: on the device of the rest.
    """
    backbone, backbone_mask = backbone_frames(atoms, atom_mask)
    names = tables.chi_atoms[sequence][..., 1:]  # the second atom to the fourth hold the group
    psi = torch.tensor([ALPHA, CARBON, OXYGEN], device=names.device).expand(*names.shape[:2], 1, 3)
    names = torch.cat((psi, names), 2).flatten(-2)
    three = atoms.take_along_dim(names[..., None], -2).unflatten(-2, (-1, 3))
    known = atom_mask.take_along_dim(names, -1).unflatten(-1, (-1, 3)).all(-1)
    turned = from_three_points(2 * three[..., 1, :] - three[..., 0, :], three[..., 1, :], three[..., 2, :])
    exists = torch.cat((torch.ones_like(known[..., :1]), tables.chi_exists[sequence]), -1)
    empty = GROUPS - turned.translation.shape[2]
    first = (backbone.at(..., None).rotation.expand(-1, -1, empty, -1, -1), backbone.translation[..., None, :])
    groups = Frames(
        torch.cat((first[0], turned.rotation), 2),
        torch.cat((first[1].expand(-1, -1, empty, -1), turned.translation), 2),
    )
    alone = F.pad(backbone_mask[..., None], (0, empty - 1))
    angles, angle_mask = torsion_angles(atoms, atom_mask, sequence, residue_index, tables)
    group_mask = torch.cat((alone, known & exists), -1)
    return Known(atoms, atom_mask, backbone, backbone_mask, groups, group_mask, angles, angle_mask)


@torch.no_grad()
def nearest_names(
    atoms: Float[Tensor, "B R 37 3"],
    atom_mask: Bool[Tensor, "B R 37"],
    predicted: Float[Tensor, "B R 37 3"],
    sequence: Int[Tensor, "B R"],
    tables: ResidueTables,
) -> tuple[Float[Tensor, "B R 37 3"], Bool[Tensor, "B R 37"]]:
    """The truth with twins swapped where that is nearer to what was predicted (algorithm 26).

    The two oxygens of an aspartate have no names of their own. Of both namings the one is taken whose distances to all
    atoms that have a name of their own are nearer to the predicted distances.
    """
    twin, slots = tables.twin[sequence], tables.atom[sequence]
    swapped, swapped_mask = atoms.take_along_dim(twin[..., None], -2), atom_mask.take_along_dim(twin, -1)
    doubtful = (twin != torch.arange(len(ATOMS), device=twin.device)).take_along_dim(slots, -1)
    known = atom_mask.take_along_dim(slots, -1) & tables.exists[sequence]

    def distances(points: Tensor) -> Tensor:
        points = points.take_along_dim(slots[..., None], -2).flatten(1, 2)
        return torch.cdist(points, points)

    expected = distances(precise(predicted))
    counts = (doubtful & known).flatten(1)[..., None] & (known & ~doubtful).flatten(1)[:, None]

    def miss(points: Tensor) -> Tensor:
        gap = (distances(points) - expected).abs().masked_fill(~counts, 0.0)
        return gap.sum(-1).unflatten(-1, slots.shape[1:]).sum(-1)

    swap = miss(swapped) < miss(atoms)
    return torch.where(swap[..., None, None], swapped, atoms), torch.where(swap[..., None], swapped_mask, atom_mask)
