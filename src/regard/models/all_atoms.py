"""From frames and torsion angles to all heavy atoms of a protein, and back.

Jumper et al. 2021, supplement 1.8.4 and algorithms 24 and 25. The seven angles of a residue are omega (of the bond to
the residue before), phi, psi and chi 1 to 4, each given as (sine, cosine).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.models.residue_atoms import ATOMS, GROUPS, ResidueTables
from regard.ops.frames import Frames, from_three_points, precise, turn_about_x

ANGLES = 7
NITROGEN, ALPHA, CARBON, BETA, OXYGEN = range(5)
"""Places of the backbone and C-beta among the 37 atoms."""


def group_frames(
    backbone: Frames, angles: Float[Tensor, "B R 7 2"], sequence: Int[Tensor, "B R"], tables: ResidueTables
) -> Frames:
    """The eight frames of each residue (algorithm 24), (B, R, 8).

    Args:
        backbone: (B, R).
        angles: (sine, cosine) of length 1.
        sequence: kinds of residues, 0 .. 20.
        tables: on the device of the rest.
    """
    straight = torch.stack((torch.zeros_like(angles[..., 0, :1]), torch.ones_like(angles[..., 0, :1])), -1)
    turn = turn_about_x(torch.cat((straight, angles), -2))
    still = turn.new_zeros(*turn.shape[:-2], 3)
    steps = Frames(precise(tables.rotation[sequence]), precise(tables.translation[sequence]))
    steps = steps.compose(Frames(turn, still))
    found = [steps.at(..., group) for group in range(5)]
    for group in range(5, GROUPS):  # chi 2 to 4 stand on the chi before them, the others on the backbone
        found.append(found[-1].compose(steps.at(..., group)))
    local = Frames(torch.stack([f.rotation for f in found], -3), torch.stack([f.translation for f in found], -2))
    return backbone.at(..., None).compose(local)


def slot_positions(frames: Frames, sequence: Int[Tensor, "B R"], tables: ResidueTables) -> Float[Tensor, "B R 14 3"]:
    """Every atom where its group is; slots that a residue lacks hold 0."""
    group = tables.group[sequence]
    rotation = frames.rotation.take_along_dim(group[..., None, None], -3)
    translation = frames.translation.take_along_dim(group[..., None], -2)
    places = Frames(rotation, translation).apply(tables.position[sequence])
    return places.masked_fill(~tables.exists[sequence][..., None], 0.0)


def to_atoms(
    slots: Float[Tensor, "B R 14 3"], sequence: Int[Tensor, "B R"], tables: ResidueTables
) -> tuple[Float[Tensor, "B R 37 3"], Bool[Tensor, "B R 37"]]:
    """The same atoms by the 37 names of :data:`regard.models.residue_atoms.ATOMS`, and which of them there are."""
    exists, atom = tables.exists[sequence], tables.atom[sequence]
    atoms = slots.new_zeros(*slots.shape[:2], len(ATOMS), 3)
    atoms = atoms.scatter_add(-2, atom[..., None].expand(-1, -1, -1, 3), slots)
    there = torch.zeros(atoms.shape[:3], dtype=torch.long, device=slots.device).scatter_add(-1, atom, exists.long())
    return atoms, there > 0


def backbone_frames(
    atoms: Float[Tensor, "B R A 3"], atom_mask: Bool[Tensor, "B R A"]
) -> tuple[Frames, Bool[Tensor, "B R"]]:
    """The frame of each residue from its N, CA and C (algorithm 21), and where all three are there."""
    three = (atoms[..., name, :] for name in (CARBON, ALPHA, NITROGEN))
    return from_three_points(*three), atom_mask[..., : CARBON + 1].all(-1)


def torsion_angles(
    atoms: Float[Tensor, "B R 37 3"],
    atom_mask: Bool[Tensor, "B R 37"],
    sequence: Int[Tensor, "B R"],
    residue_index: Int[Tensor, "B R"],
    tables: ResidueTables,
) -> tuple[Float[Tensor, "B R 7 2"], Bool[Tensor, "B R 7"]]:
    """The seven angles of each residue, and which of them can be told.

    Args:
        atoms, atom_mask: of the 37 names; what stands at missing ones must be a number.
        sequence: kinds of residues, 0 .. 20.
        residue_index: omega and phi exist where it grows by one from the residue before.
        tables: on the device of the rest.
    """
    before, before_mask = atoms.roll(1, 1), atom_mask.roll(1, 1)
    joined = residue_index - residue_index.roll(1, 1) == 1
    joined[:, 0] = False
    names = tables.chi_atoms[sequence].flatten(-2)
    chi = atoms.take_along_dim(names[..., None], -2).unflatten(-2, (4, 4))
    chi_mask = atom_mask.take_along_dim(names, -1).unflatten(-1, (4, 4)).all(-1) & tables.chi_exists[sequence]
    fours = (
        torch.stack((before[..., ALPHA, :], before[..., CARBON, :], atoms[..., NITROGEN, :], atoms[..., ALPHA, :]), -2),
        torch.stack((before[..., CARBON, :], atoms[..., NITROGEN, :], atoms[..., ALPHA, :], atoms[..., CARBON, :]), -2),
        torch.stack((atoms[..., NITROGEN, :], atoms[..., ALPHA, :], atoms[..., CARBON, :], atoms[..., OXYGEN, :]), -2),
    )
    backbone = atom_mask[..., [NITROGEN, ALPHA, CARBON]].all(-1)
    joined = joined & before_mask[..., CARBON] & backbone
    omega = joined & before_mask[..., ALPHA]
    mask = torch.stack((omega, joined, backbone & atom_mask[..., OXYGEN]), -1)
    angles = _dihedral(torch.cat((torch.stack(fours, 2), chi), 2))
    psi = torch.tensor([1.0, 1, -1, 1, 1, 1, 1], device=atoms.device, dtype=angles.dtype)  # O lies opposite the next N
    return angles * psi[:, None], torch.cat((mask, chi_mask), -1)


def _dihedral(four: Float[Tensor, "*B 4 3"]) -> Float[Tensor, "*B 2"]:
    """(sine, cosine) of the angle about the middle bond: of the fourth atom in the frame of the first three."""
    frame = from_three_points(2 * four[..., 2, :] - four[..., 1, :], four[..., 2, :], _parallel(four))
    local = frame.invert_apply(four[..., 3, :])
    sine, cosine = local[..., 2], local[..., 1]
    length = (sine.square() + cosine.square()).clamp(min=1e-8).sqrt()
    return torch.stack((sine, cosine), -1) / length[..., None]


def _parallel(four: Tensor) -> Tensor:
    """The third atom moved as the second would have to be to meet the first."""
    return four[..., 2, :] + four[..., 0, :] - four[..., 1, :]
