"""How well a distance map and a trace are met: contact probabilities, contact precision, confidence.

Two residues are in contact where their C-betas (C-alpha of glycine) are less than 8 Angstrom apart; a contact is of
long range where they are at least 24 places apart along the chain. The precision of the top L / k is the share of true
contacts among the L / k most probable pairs of long range, L being the number of residues whose place is known.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.models.structure_losses import distogram_edges

CONTACT = 8.0
"""Angstrom."""

LONG_RANGE = 24
"""Places along the chain."""

TOPS = {"L": 1, "L/2": 2, "L/5": 5}

TOLERANCES = (0.5, 1.0, 2.0, 4.0)
INCLUDED = 15.0
"""Angstrom: the tolerances of lDDT, and the distance up to which a pair counts in it."""


def contact_probabilities(logits: Float[Tensor, "*B 64"]) -> Float[Tensor, "*B"]:
    """The probability that a distance is below 8 Angstrom; the bin that holds the limit gives its share.

    Example:
        >>> contact_probabilities(torch.zeros(2, 2, 64))[0, 0].item()  # 19.2 of 64 bins are below 8 A
        0.30000001192092896
    """
    return mass_below(logits, torch.full(logits.shape[:-1], CONTACT, device=logits.device))


def mass_below(logits: Float[Tensor, "*B 64"], distance: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """The probability that a distance is below a number, evenly spread within each bin; the last bin has no end.

    Within the last bin, and beyond, the probability is 1: nothing tells how far its distances go.
    """
    edges = distogram_edges(device=logits.device)
    total = logits.float().softmax(-1).cumsum(-1)
    total = torch.cat((torch.zeros_like(total[..., :1]), total[..., :-1], torch.ones_like(total[..., :1])), -1)
    place = (distance - edges[0]) / (edges[1] - edges[0]) + 1  # the first bin is as wide as the others here
    place = place.clamp(0, 64)
    low = place.floor().long().clamp(max=63)
    below, above = (total.gather(-1, (low + more)[..., None])[..., 0] for more in (0, 1))
    return below + (above - below) * (place - low)


def contact_precision(
    probabilities: Float[Tensor, "R R"],
    points: Float[Tensor, "R 3"],
    mask: Bool[Tensor, " R"],
    places: Int[Tensor, " R"],
) -> dict[str, float]:
    """Precision of the top L, L / 2 and L / 5 of long range; NaN where no pair is of long range.

    Args:
        probabilities: of a contact, symmetric.
        points: C-betas, or C-alphas of glycine.
        mask: True where the point is known; other residues take no part.
        places: along the chain.

    Example:
        >>> points = torch.zeros(30, 3)  # all in one place: every pair is a contact
        >>> contact_precision(torch.rand(30, 30), points, torch.ones(30).bool(), torch.arange(30))["L/5"]
        1.0
    """
    row, column = torch.triu_indices(len(mask), len(mask), 1, device=mask.device)
    counted = mask[row] & mask[column] & ((places[row] - places[column]).abs() >= LONG_RANGE)
    row, column = row[counted], column[counted]
    if not len(row):
        return dict.fromkeys(TOPS, float("nan"))
    true = (points[row] - points[column]).norm(dim=-1) < CONTACT
    ranked = true[probabilities[row, column].argsort(descending=True, stable=True)]
    residues = int(mask.sum())
    return {name: float(ranked[: max(1, residues // part)].float().mean()) for name, part in TOPS.items()}


def expected_lddt(logits: Float[Tensor, "R R 64"], points: Float[Tensor, "R 3"]) -> Float[Tensor, " R"]:
    """The lDDT of each residue that a distance map leads one to expect of points, 0 to 1.

    For every pair within 15 Angstrom in the points, the probability that the true distance is within 0.5, 1, 2 and 4
    Angstrom of theirs, averaged. It is a confidence for a model that has no head of its own for it.

    Example:
        >>> bool((expected_lddt(torch.zeros(3, 3, 64), torch.rand(3, 3)) < 0.5).all())  # nothing is known
        True
    """
    distance = torch.cdist(points, points)
    counted = (distance < INCLUDED) & ~torch.eye(len(points), dtype=torch.bool, device=points.device)
    near = sum(mass_below(logits, distance + t) - mass_below(logits, distance - t) for t in TOLERANCES)
    total = (near * counted).sum(-1) / len(TOLERANCES)
    return total / counted.sum(-1).clamp(min=1)
