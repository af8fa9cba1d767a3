"""What known structures of related proteins tell: 88 numbers a pair of residues, and 57 a residue.

Jumper et al. 2021, supplement 1.2.9 (table 1), algorithms 21 and 2 (lines 7 and 9), in the order of the released code::

    f_ij = distance in 39 bins | both have a C-beta | letter of j, of i (22 each) | direction (3) | both have N, CA, C
    f_i  = letter (22) | 7 torsions (14) | the same with symmetric ones turned (14) | which are known (7)

The distance is that of C-betas (C-alphas of glycine), the direction from i to j as seen from the frame of i. A pair
without both frames is all 0. Where a C-beta is missing there is no distance (the released code measures from the
origin), and where a torsion is missing it is 0.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.models.all_atoms import ALPHA, BETA, backbone_frames, torsion_angles
from regard.models.residue_atoms import ATOMS, LETTERS, ResidueTables
from regard.ops.frames import Frames, precise

BINS, FIRST_EDGE, LAST_EDGE = 39, 3.25, 50.75
"""Of the distances in Angstrom; the last bin is open, and nearer ones than the first edge are in none."""

TEMPLATE_KINDS = 22
"""Twenty residues, X and the gap."""

PAIR_FEATURES, ROW_FEATURES = BINS + 2 * TEMPLATE_KINDS + 5, TEMPLATE_KINDS + 35


class Templates(NamedTuple):
    """Known structures of T related proteins, each residue beside that of the target which it is aligned to.

    Attributes:
        sequence: letters 0 .. 21: :data:`regard.models.residue_atoms.LETTERS`, X, and a gap where nothing is aligned.
        atoms: in Angstrom; the first five of :data:`regard.models.residue_atoms.ATOMS`, N, CA, C, CB and O, or all 37.
        atom_mask: which atoms are known; what stands at the others does not matter.
        mask: which templates exist.
    """

    sequence: Int[Tensor, "B T R"]
    atoms: Float[Tensor, "B T R A 3"]
    atom_mask: Bool[Tensor, "B T R A"]
    mask: Bool[Tensor, "B T"]


def template_features(templates: Templates, *, directions: bool = False) -> Float[Tensor, "B T R R 88"]:
    """What each template tells about each pair; all 0 for one that does not exist.

    Args:
        templates: with letters 0 .. 21.
        directions: with unit vectors, as in the paper; by default 0 in their place, as in the released models.

    Returns:
        float32 or better. Memory O(B T R^2 88).

    Example:
        >>> known = torch.ones(1, 2, 4, 5, dtype=torch.bool)
        >>> templates = Templates(torch.zeros(1, 2, 4).long(), torch.randn(1, 2, 4, 5, 3), known, known[:, :, 0, 0])
        >>> template_features(templates).shape
        torch.Size([1, 2, 4, 4, 88])
    """
    sequence, atoms, known = _side_by_side(templates)
    glycine = sequence == LETTERS.index("G")
    beta = torch.where(glycine[..., None], atoms[..., ALPHA, :], atoms[..., BETA, :])
    placed = _both(torch.where(glycine, known[..., ALPHA], known[..., BETA]))
    frames, framed = backbone_frames(atoms, known)
    framed = _both(framed)
    letters = F.one_hot(sequence.long(), TEMPLATE_KINDS)
    square = (*framed.shape, TEMPLATE_KINDS)
    parts = (
        _distances(beta, placed),
        placed[..., None],
        letters[:, None].expand(square),
        letters[:, :, None].expand(square),
        _directions(frames) if directions else atoms.new_zeros(()).expand(*framed.shape, 3),
        framed[..., None],
    )
    features = torch.cat([part.to(atoms.dtype) for part in parts], -1).masked_fill(~framed[..., None], 0.0)
    return features.unflatten(0, templates.mask.shape)


def template_row_features(
    templates: Templates, residue_index: Int[Tensor, "B R"], tables: ResidueTables
) -> tuple[Float[Tensor, "B T R 57"], Bool[Tensor, "B T R"]]:
    """What each template tells about each residue, and where its backbone is known as far as the oxygen.

    Args:
        templates: with letters 0 .. 21.
        residue_index: places of the target in its chain; omega and phi exist between neighbours.
        tables: on the device of the rest.

    Returns:
        Features in float32 or better, torsions 0 where unknown; and where psi is known, which is where they count.
    """
    sequence, atoms, known = _side_by_side(templates)
    missing = len(ATOMS) - atoms.shape[-2]
    atoms, known = F.pad(atoms, (0, 0, 0, missing)), F.pad(known, (0, missing))
    kinds = sequence.clamp(max=len(LETTERS))  # a gap has the angles of X: none
    places = residue_index.repeat_interleave(templates.mask.shape[1], 0)
    angles, told = torsion_angles(atoms, known, kinds, places, tables)
    angles = angles.masked_fill(~told[..., None], 0.0)
    symmetric = F.pad(tables.chi_symmetric[kinds], (3, 0))
    turned = torch.where(symmetric[..., None], -angles, angles)
    letters = F.one_hot(sequence.long(), TEMPLATE_KINDS).to(angles.dtype)
    features = torch.cat((letters, angles.flatten(-2), turned.flatten(-2), told.to(angles.dtype)), -1)
    return features.unflatten(0, templates.mask.shape), told[..., 2].unflatten(0, templates.mask.shape)


def _side_by_side(templates: Templates) -> tuple[Tensor, Tensor, Tensor]:
    """Letters, atoms and which are known, as if each template were a protein; unknown atoms are 0."""
    known = templates.atom_mask & templates.mask[..., None, None]
    atoms = precise(templates.atoms).masked_fill(~known[..., None], 0.0)
    return templates.sequence.flatten(0, 1), atoms.flatten(0, 1), known.flatten(0, 1)


def _both(mask: Bool[Tensor, "N R"]) -> Bool[Tensor, "N R R"]:
    return mask[:, :, None] & mask[:, None]


def _distances(points: Float[Tensor, "N R 3"], known: Bool[Tensor, "N R R"]) -> Float[Tensor, "N R R 39"]:
    """The bin of each distance: how many edges it exceeds; none where it is unknown."""
    squared = (points[:, :, None] - points[:, None]).square().sum(-1)
    edges = torch.linspace(FIRST_EDGE, LAST_EDGE, BINS, device=points.device, dtype=points.dtype).square()
    place = torch.bucketize(squared, edges).masked_fill(~known, 0)
    return F.embedding(place, F.pad(torch.eye(BINS, device=points.device), (0, 0, 1, 0)))


def _directions(frames: Frames) -> Float[Tensor, "N R R 3"]:
    """From each frame the unit vector to the origin of every other; 0 to its own."""
    seen = frames.at(..., None).invert_apply(frames.translation[:, None])
    return seen * torch.rsqrt(seen.square().sum(-1, keepdim=True) + 1e-6)
