"""What can be said of a protein's distances without a network, as the logits of a distogram or scores of contacts.

* By separation: how often each distance occurs at each number of places along the chain, in training.
* The family's mean: how often each distance occurs between two columns of the alignment, in trained chains of the
  family; where few are known, by separation. It needs relatives of known structure.
* Mutual information of the columns, less what each column has with all (APC, Dunn et al. 2008): contacts from the
  alignment alone, nothing is learned.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.models.structure_losses import distogram_bins
from regard.models.structure_truth import pseudo_beta
from regard.tasks.protein_files import GAP
from regard.tasks.protein_split import FamilySplit, Member
from regard.tasks.protein_structures import Chain

BINS = 64
EXACT, POOL, POOLS = 64, 16, 20
"""Separations below 64 are counted one by one, further ones in groups of 16; the last group has no end."""

SMOOTHED = 1.0
"""As many chains of the family count for as much as what is known by separation."""

ALIKE = 0.8
"""Rows at least so identical share one vote in mutual information."""


def points_of(chain: Chain) -> tuple[Float[Tensor, "R 3"], Bool[Tensor, " R"]]:
    """C-betas, C-alphas of glycine, and where there are any."""
    points, mask = pseudo_beta(chain.atoms[None], chain.atom_mask[None])
    return points[0], mask[0]


class BySeparation:
    """Distances by separation.

    Args:
        chains: to count in.
    """

    def __init__(self, chains: Iterable[Chain]) -> None:
        counts = torch.ones((EXACT + POOLS) * BINS) / BINS
        for chain in chains:
            points, mask = points_of(chain)
            real = (mask[:, None] & mask).flatten()
            joint = self._group(chain.places) * BINS + distogram_bins(points)
            counts += torch.bincount(joint.flatten()[real], minlength=len(counts))
        counts = counts.view(-1, BINS)
        self.table = (counts / counts.sum(-1, keepdim=True)).log()

    def logits(self, places: Int[Tensor, " R"]) -> Float[Tensor, "R R 64"]:
        """Log-probabilities for residues at these places."""
        return self.table[self._group(places)]

    @staticmethod
    def _group(places: Int[Tensor, " R"]) -> Int[Tensor, "R R"]:
        apart = (places[:, None] - places).abs()
        pooled = EXACT + ((apart - EXACT) // POOL).clamp(max=POOLS - 1)
        return torch.where(apart < EXACT, apart, pooled)


class FamilyMean:
    """Distances between columns in trained chains of the same family.

    Args:
        split: whose training part is counted.
        by_separation: what stands in where the family tells little.
    """

    def __init__(self, split: FamilySplit, by_separation: BySeparation) -> None:
        self.split, self.by_separation = split, by_separation

    def logits(self, target: Member) -> Float[Tensor, "R R 64"]:
        """Log-probabilities for one chain; only columns in which it has a residue are looked at."""
        family = self.split.families[target.family]
        columns = (family.alignment.letters[target.row] != GAP).nonzero().flatten()
        prior = self.by_separation.logits(self.split.chain(target).places).exp()
        counts = SMOOTHED * prior.reshape(-1, BINS)
        size = len(columns)
        for member in self.split.train:
            if member.family != target.family or member == target:
                continue
            chain, letters = self.split.chain(member), family.alignment.letters[member.row]
            residue = (letters != GAP).cumsum(0) - 1  # of each column
            there = (letters != GAP)[columns]
            points, mask = points_of(chain)
            mask, points = mask[residue[columns]] & there, points[residue[columns]]
            pair = (mask[:, None] & mask).flatten().nonzero().flatten()
            counts[pair, distogram_bins(points).flatten()[pair]] += 1
        return (counts / counts.sum(-1, keepdim=True)).log().view(size, size, BINS)


def mutual_information(letters: Int[Tensor, "S R"]) -> Float[Tensor, "R R"]:
    """Mutual information of the columns of an alignment with APC; more means a likelier contact.

    Rows that are alike share one vote; half a vote is spread evenly over all pairs of letters.

    Example:
        >>> rows = torch.tensor([[0, 0, 1], [1, 1, 1], [0, 0, 2], [1, 1, 2]])  # the first two columns go together
        >>> found = mutual_information(rows)
        >>> bool(found[0, 1] > found[0, 2])
        True
    """
    kinds = GAP + 1
    same = (letters[:, None] == letters).float().mean(-1)
    votes = 1 / (same >= ALIKE).sum(1)
    chosen = F.one_hot(letters, kinds).float()
    total = votes.sum() + 0.5
    single = (torch.einsum("s,sra->ra", votes, chosen) + 0.5 / kinds) / total
    rows: list[Tensor] = []
    for column in range(letters.shape[1]):  # the whole of it, (R kinds)^2, would take hundreds of megabytes
        joint = torch.einsum("s,sa,srb->rab", votes, chosen[:, column], chosen)
        joint = (joint + 0.5 / kinds**2) / total
        apart = single[column][:, None] * single[:, None]
        rows.append((joint * (joint / apart).log()).sum((1, 2)))
    found = torch.stack(rows)
    found = found.masked_fill(torch.eye(len(found), dtype=torch.bool), 0.0)
    mean = found.sum(1) / max(1, len(found) - 1)
    return found - mean[:, None] * mean / mean.mean().clamp(min=1e-9)
