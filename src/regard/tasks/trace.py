"""C-alphas from a distance map alone: for models without a structure module.

A distogram tells distances of C-betas. Multidimensional scaling of the expected ones gives a start, and its mirror
image another: distances cannot tell the two apart. From both, gradient descent moves C-alphas until the C-betas that
follow from them fit::

    E = mean_ij w_ij (|b_i - b_j| - d_ij)^2 + far_ij max(0, 22 - |b_i - b_j|)^2
        + 10 mean_i (|a_i - a_i+1| - 3.8)^2 + 10 mean_ij max(0, 3.8 - |a_i - a_j|)^2,
    b_i = a_i + 1.16 u_i - 0.91 v_i,   u = unit(p - q), v = unit(p x q), p = a_i - a_i-1, q = a_i+1 - a_i.

d is the mean of the distances below 22 Angstrom, w their probability over (1 + their variance), ``far`` the probability
of longer ones. The cross product is what tells hands apart: C-betas of proteins sit on one side of the chain, and the
start that gets to the lower E is taken. (1.16 and 0.91 were fitted to 9,442 residues of theseus-examples: half of their
C-betas lie within 0.4 Angstrom.)
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from regard.models.structure_losses import distogram_edges

BOND = 3.8
"""Angstrom between the C-alphas of neighbours."""

FAR = 22.0
"""Angstrom: where the last bin of a distogram begins, rounded."""

SIDE, TURN = 1.1629, -0.9112
STIFF = 10.0


def trace(logits: Float[Tensor, "R R 64"], places: Int[Tensor, " R"], *, steps: int = 200) -> Float[Tensor, "R 3"]:
    """C-alphas that fit a distogram.

    Args:
        logits: of C-beta distances, in the bins of :func:`regard.models.structure_losses.distogram_edges`.
        places: along the chain; residues at consecutive ones are bonded.
        steps: of gradient descent.

    Returns:
        Places in Angstrom, their mean at 0. Time O(steps R^2 + R^3).

    Raises:
        ValueError: logits that are no numbers.

    Example:
        >>> trace(torch.zeros(5, 5, 64), torch.arange(5), steps=5).shape
        torch.Size([5, 3])
    """
    if not logits.isfinite().all():
        raise ValueError("the distogram is not finite: there is nothing to trace")
    wanted = _expectations(logits)
    start = _scaled(_completed(wanted, places))
    both = torch.stack((start, start * start.new_tensor([1.0, 1.0, -1.0])))
    first = max(1, steps // 4)  # enough to tell the hands apart
    both = _descent(both, wanted, places, 0.5, first)
    best = both[_energy(both, wanted, places).argmin(), None]
    best = _descent(best, wanted, places, 0.5, max(1, steps - first))[0]
    return best - best.mean(0)


def virtual_beta(trace: Float[Tensor, "*B R 3"]) -> Float[Tensor, "*B R 3"]:
    """Where the C-betas of a trace are as a rule; the ends take their C-alpha.

    Example:
        >>> virtual_beta(torch.rand(7, 3)).shape
        torch.Size([7, 3])
    """
    if trace.shape[-2] < 3:
        return trace
    before, after = trace[..., 1:-1, :] - trace[..., :-2, :], trace[..., 2:, :] - trace[..., 1:-1, :]
    side, turn = F.normalize(before - after, dim=-1), F.normalize(torch.linalg.cross(before, after), dim=-1)
    return trace + F.pad(SIDE * side + TURN * turn, (0, 0, 1, 1))


class _Wanted(NamedTuple):
    """Of each pair: the mean distance where it is not far, w, and the probability that it is far."""

    mean: Tensor
    certainty: Tensor
    far: Tensor


def _descent(points: Tensor, wanted: _Wanted, places: Tensor, rate: float, steps: int) -> Tensor:
    """Adam with a rate that falls to 0 as half a cosine."""
    with torch.enable_grad():
        points = points.clone().requires_grad_()
        optimizer = torch.optim.Adam([points], lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            optimizer.zero_grad()
            _energy(points, wanted, places).sum().backward()
            optimizer.step()
            schedule.step()
    return points.detach()


def _expectations(logits: Tensor) -> _Wanted:
    edges = distogram_edges(device=logits.device)
    width = edges[1] - edges[0]
    centres = edges - width / 2
    probabilities = (0.5 * (logits + logits.transpose(0, 1))).float().softmax(-1)
    near = probabilities[..., :-1]
    total = near.sum(-1)
    share = near / total[..., None].clamp(min=1e-9)
    mean = share @ centres
    variance = share @ centres.square() - mean.square()
    return _Wanted(mean, total / (1 + variance), probabilities[..., -1])


def _completed(wanted: _Wanted, places: Tensor) -> Tensor:
    """All distances: the expected ones where they are rather not far, else the shortest way through others."""
    distance = wanted.mean.where(wanted.far < 0.5, torch.inf)
    bonded = (places[:, None] - places).abs() == 1
    distance = distance.where(~bonded, BOND).fill_diagonal_(0.0)
    for middle in range(len(distance)):
        distance = torch.minimum(distance, distance[:, middle, None] + distance[middle])
    top = distance[distance.isfinite()].amax()
    return distance.clamp(max=top)  # pieces that nothing joins


def _scaled(distance: Tensor) -> Tensor:
    """Classical multidimensional scaling into three dimensions."""
    squared = distance.double().square()
    centred = squared - squared.mean(0) - squared.mean(1, keepdim=True) + squared.mean()
    values, vectors = torch.linalg.eigh(-0.5 * centred)
    found = vectors[:, -3:] * values[-3:].clamp(min=0).sqrt()
    return F.pad(found, (3 - found.shape[1], 0)).to(distance.dtype)


def _energy(points: Tensor, wanted: _Wanted, places: Tensor) -> Tensor:
    """E of each trace."""
    apart = ~torch.eye(len(places), dtype=torch.bool, device=points.device)
    beta, alpha = _distances(virtual_beta(points)), _distances(points)
    fit = wanted.certainty * (beta - wanted.mean).square() + wanted.far * (FAR - beta).clamp(min=0).square()
    clash = (BOND - alpha).clamp(min=0).square()
    bonded = places.diff() == 1
    bond = (alpha.diagonal(1, -2, -1) - BOND).square() * bonded
    length = bond.sum(-1) / bonded.sum().clamp(min=1)
    return (fit * apart).mean((-2, -1)) + STIFF * ((clash * apart).mean((-2, -1)) + length)


def _distances(points: Tensor) -> Tensor:
    """With a gradient everywhere, also where two points are one."""
    return ((points[..., :, None, :] - points[..., None, :, :]).square().sum(-1) + 1e-6).sqrt()
