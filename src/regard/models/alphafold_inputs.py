"""What AlphaFold makes of letters: an alignment of vectors and a map of pairs, and what the last pass found out.

Jumper et al. 2021, supplement algorithms 3, 4 and 32. The released network sees clusters of sequences with their
profiles (49 numbers a letter); here each sequence of the alignment stands for itself, so a letter is 25 numbers, as in
the paper's extra alignment: its kind, whether letters were deleted in front of it, and how many.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.ops.frames import precise
from regard.ops.projection import Projection

LETTER_KINDS, RESIDUE_KINDS = 23, 21
"""Letters of an alignment (twenty residues, X, gap, mask), and kinds of residues (twenty and X)."""

UNKNOWN, GAP = 20, 21
"""Two of the letters."""

FARTHEST = 32
"""Places in the chain that are told apart, to each side."""


def letter_features(msa: Int[Tensor, "B S R"], deletions: Float[Tensor, "B S R"] | None) -> Float[Tensor, "B S R 25"]:
    """The kind of each letter, has a deletion, and 2/pi arctan(deletions / 3).

    Example:
        >>> letter_features(torch.tensor([[[22]]]), torch.tensor([[[3.0]]]))[0, 0, 0, -3:]
        tensor([1.0000, 1.0000, 0.5000])
    """
    kinds = F.one_hot(msa.long(), LETTER_KINDS).float()
    count = torch.zeros_like(kinds[..., 0]) if deletions is None else deletions.float()
    return torch.cat((kinds, (count > 0).float()[..., None], (2 / math.pi * (count / 3).atan())[..., None]), -1)


class InputEmbedder(nn.Module):
    """Algorithm 3: m_si = L(letter) + L(residue i), z_ij = a_i + b_j + relative position (algorithm 4).

    Args:
        msa_dim, pair_dim: c_m and c_z.

    Example:
        >>> embed = InputEmbedder(8, 6)
        >>> sequence = torch.randint(20, (1, 5))
        >>> msa, pair = embed(letter_features(sequence[:, None], None), sequence, torch.arange(5)[None])
        >>> msa.shape, pair.shape
        (torch.Size([1, 1, 5, 8]), torch.Size([1, 5, 5, 6]))
    """

    def __init__(self, msa_dim: int, pair_dim: int, **factory: Any) -> None:
        super().__init__()
        self.letter = Projection(LETTER_KINDS + 2, msa_dim, **factory)
        self.residue = Projection(RESIDUE_KINDS, msa_dim, **factory)
        self.left, self.right = (Projection(RESIDUE_KINDS, pair_dim, **factory) for _ in range(2))
        self.relative = Projection(2 * FARTHEST + 1, pair_dim, **factory)

    def forward(
        self, letters: Float[Tensor, "B S R F"], sequence: Int[Tensor, "B R"], residue_index: Int[Tensor, "B R"]
    ) -> tuple[Float[Tensor, "B S R C"], Float[Tensor, "B R R Cz"]]:
        """m and z.

        Args:
            letters: features of the alignment.
            sequence: kinds of residues, 0 .. 20.
            residue_index: places in the chain.
        """
        kinds = F.one_hot(sequence.long(), RESIDUE_KINDS).to(self.residue.weight.dtype)
        msa = self.letter(letters.to(self.letter.weight.dtype)) + self.residue(kinds)[:, None]
        apart = (residue_index[:, :, None] - residue_index[:, None]).clamp(-FARTHEST, FARTHEST) + FARTHEST
        pair = self.left(kinds)[:, :, None] + self.right(kinds)[:, None]
        return msa, pair + F.embedding(apart.long(), self.relative.weight.T) + self.relative.bias


class RecyclingEmbedder(nn.Module):
    """Algorithm 32: what the pass before made of the target's row, of the pairs, and where it put the residues.

    Args:
        msa_dim, pair_dim: c_m and c_z.
        structure: the pass before has places.

    Example:
        >>> embed = RecyclingEmbedder(8, 6, structure=True)
        >>> row, pair = embed(torch.zeros(1, 5, 8), torch.zeros(1, 5, 5, 6), torch.zeros(1, 5, 3))
        >>> row.shape, pair.shape
        (torch.Size([1, 5, 8]), torch.Size([1, 5, 5, 6]))
    """

    def __init__(self, msa_dim: int, pair_dim: int, *, structure: bool, **factory: Any) -> None:
        super().__init__()
        self.row_norm, self.pair_norm = nn.LayerNorm(msa_dim, **factory), nn.LayerNorm(pair_dim, **factory)
        self.distance = Projection(15, pair_dim, **factory) if structure else None

    def forward(
        self, row: Float[Tensor, "B R C"], pair: Float[Tensor, "B R R Cz"], points: Float[Tensor, "B R 3"] | None
    ) -> tuple[Float[Tensor, "B R C"], Float[Tensor, "B R R Cz"]]:
        """What is added to the first row of the alignment, and to the pairs.

        Args:
            row: the first row of the alignment, as the pass before left it; 0 in the first pass.
            pair: the same of the pairs.
            points: C-beta (C-alpha where there is none) of the pass before, in Angstrom; used with ``structure``.
        """
        pair = self.pair_norm(pair)
        if self.distance is not None and points is not None:
            points = precise(points)
            squared = (points[:, :, None] - points[:, None]).square().sum(-1)
            edges = torch.linspace(3.25, 20.75, 15, device=points.device).square()
            place = torch.bucketize(squared, edges.to(squared))  # 0: nearer than the first bin, which is none of them
            table = F.pad(self.distance.weight.T, (0, 0, 1, 0))
            pair = pair + F.embedding(place, table) + self.distance.bias
        return self.row_norm(row), pair
