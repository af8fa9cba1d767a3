"""What a fold is trained and judged by: FAPE, torsions, distogram, masked letters, lDDT.

Jumper et al. 2021, supplement 1.9, algorithms 27, 28 and 29. All lengths are in Angstrom. Each loss is one number a
protein; what is masked changes none of them.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.ops.frames import Frames, precise

BINS = 64
CONFIDENCES = 50
"""Classes of the predicted lDDT, each two hundredths wide."""

_THRESHOLDS = (0.5, 1.0, 2.0, 4.0)


def fape(
    frames: Frames,
    points: Float[Tensor, "*#B P 3"],
    true_frames: Frames,
    true_points: Float[Tensor, "*#B P 3"],
    frame_mask: Bool[Tensor, "*#B F"],
    point_mask: Bool[Tensor, "*#B P"],
    *,
    clamp: float | Float[Tensor, "*#B"] = 10.0,
    scale: float = 10.0,
    floor: float = 1e-4,
) -> Float[Tensor, "*B"]:
    """Frame aligned point error (algorithm 28): how far each point is off, seen from each frame.

    L = 1 / scale * mean_ij min(clamp, sqrt(|T_i^-1 x_j - T*_i^-1 x*_j|^2 + floor)). It does not change when the
    prediction is moved as a whole, but a mirror image is not the same.

    Args:
        frames, points: predicted, (..., F) and (..., P, 3).
        true_frames, true_points: the truth; leading sizes broadcast.
        frame_mask, point_mask: those that are known.
        clamp: the most that counts; infinity: all of it.
        scale: Z.
        floor: keeps the gradient of 0 finite.

    Returns:
        One number for each of the leading sizes; 0 where nothing is known. Memory O(F P).

    Example:
        >>> from regard.ops.frames import identity
        >>> frames, points, known = identity(1, 4, like=torch.zeros(1)), torch.randn(1, 4, 3), torch.ones(1, 4).bool()
        >>> bool(fape(frames, points, frames, points, known, known) < 0.0011)
        True
    """
    off = _seen(frames, points) - _seen(true_frames, true_points)
    distance = (off.square().sum(-1) + floor).sqrt()
    most = torch.as_tensor(clamp, device=distance.device, dtype=distance.dtype)[..., None, None]
    weight = (point_mask[..., :, None] & frame_mask[..., None, :]).to(distance.dtype)
    total = (distance.minimum(most) * weight).sum((-2, -1))
    return total / weight.sum((-2, -1)).clamp(min=1.0) / scale


def _seen(frames: Frames, points: Tensor) -> Float[Tensor, "*B P F 3"]:
    """Every point in the coordinates of every frame: one product with all rotations side by side."""
    turns = precise(frames.rotation).movedim(-3, -2).flatten(-2)
    origins = (frames.rotation.mT * frames.translation[..., None, :]).sum(-1).flatten(-2)
    with torch.autocast(points.device.type, enabled=False):  # places need all their digits
        return (precise(points) @ turns - origins[..., None, :]).unflatten(-1, (-1, 3))


def torsion_loss(
    angles: Float[Tensor, "*B R 7 2"],
    raw_angles: Float[Tensor, "*B R 7 2"],
    true_angles: Float[Tensor, "*#B R 7 2"],
    symmetric: Bool[Tensor, "*#B R 7"],
    angle_mask: Bool[Tensor, "*#B R 7"],
    mask: Bool[Tensor, "*#B R"],
) -> Float[Tensor, "*B"]:
    """Squared distances on the unit circle, and 0.02 | |raw| - 1 | (algorithm 27).

    Args:
        angles, raw_angles: predicted (sine, cosine), of length 1 and as they came.
        true_angles: the truth.
        symmetric: angles that look the same after half a turn: the nearer of both counts.
        angle_mask, mask: angles that are known, and real residues; angles without truth still have length 1.
    """
    miss = (angles - true_angles).square().sum(-1)
    turned = (angles + true_angles).square().sum(-1)
    off = torch.where(symmetric, miss.minimum(turned), miss)
    length = (raw_angles.square().sum(-1) + 1e-8).sqrt()
    real = mask[..., None].expand(angle_mask.shape)
    return _mean(off, angle_mask) + 0.02 * _mean((length - 1).abs(), real)


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    """Over the last two axes, where the mask is True."""
    weight = mask.to(x.dtype)
    return (x * weight).sum((-2, -1)) / weight.sum((-2, -1)).clamp(min=1.0)


def distogram_edges(
    first: float = 2.3125, last: float = 21.6875, bins: int = BINS, device: torch.device | str | None = None
) -> Float[Tensor, " E"]:
    """The borders between the bins of distance.

    Example:
        >>> distogram_edges()[:2]
        tensor([2.3125, 2.6250])
    """
    return torch.linspace(first, last, bins - 1, device=device)


def distogram_bins(points: Float[Tensor, "*B R 3"], edges: Float[Tensor, " E"] | None = None) -> Int[Tensor, "*B R R"]:
    """The bin of each distance: how many edges it exceeds; edges as from :func:`distogram_edges` by default.

    Example:
        >>> distogram_bins(torch.tensor([[0.0, 0, 0], [2.5, 0, 0]]))
        tensor([[0, 1],
                [1, 0]])
    """
    points = precise(points)
    edges = distogram_edges(device=points.device) if edges is None else edges
    squared = (points[..., :, None, :] - points[..., None, :, :]).square().sum(-1)
    return torch.bucketize(squared, edges.to(squared).square())


def distogram_loss(
    logits: Float[Tensor, "B R R K"],
    points: Float[Tensor, "B R 3"],
    mask: Bool[Tensor, "B R"],
    edges: Float[Tensor, " E"] | None = None,
) -> Float[Tensor, " B"]:
    """Mean cross-entropy of the bins of all pairs of known points, in nats (supplement 1.9.8).

    Example:
        >>> loss = distogram_loss(torch.zeros(1, 5, 5, 64), torch.randn(1, 5, 3), torch.ones(1, 5).bool())
        >>> round(float(loss.exp()), 3)
        64.0
    """
    points = points.masked_fill(~mask[..., None], 0.0)
    errors = F.cross_entropy(precise(logits).movedim(-1, 1), distogram_bins(points, edges), reduction="none")
    return _mean(errors, mask[:, :, None] & mask[:, None])


def masked_msa_loss(
    logits: Float[Tensor, "B S R K"], msa: Int[Tensor, "B S R"], corrupted: Bool[Tensor, "B S R"]
) -> Float[Tensor, " B"]:
    """Mean cross-entropy of the letters that were corrupted, in nats (supplement 1.9.9)."""
    letters = msa.long().masked_fill(~corrupted, 0)
    errors = F.cross_entropy(precise(logits).movedim(-1, 1), letters, reduction="none")
    return _mean(errors, corrupted)


def lddt_ca(
    predicted: Float[Tensor, "*B R 3"], true: Float[Tensor, "*B R 3"], mask: Bool[Tensor, "*B R"]
) -> Float[Tensor, "*B R"]:
    """lDDT of one atom a residue (Mariani et al. 2013, doi:10.1093/bioinformatics/btt473), without superposition.

    Of the true distances below 15 Angstrom from a residue to the others, the share that is predicted with an error
    below 0.5, 1, 2 and 4 Angstrom, meaned over these four.

    Args:
        predicted, true: positions, as a rule of C-alpha.
        mask: residues that are known; the others are in no pair.

    Returns:
        0 .. 1 a residue; 0 for one that is masked or has no neighbour.

    Example:
        >>> points, known = torch.randn(4, 3), torch.ones(4).bool()
        >>> lddt_ca(points, points, known)
        tensor([1., 1., 1., 1.])
    """
    predicted, true = (precise(points).masked_fill(~mask[..., None], 0.0) for points in (predicted, true))
    expected, found = _distances(true), _distances(predicted)
    others = ~torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
    near = (expected < 15.0) & mask[..., :, None] & mask[..., None, :] & others
    off = (expected - found).abs()
    kept = torch.stack([off < threshold for threshold in _THRESHOLDS]).to(off.dtype).mean(0)
    return (kept * near).sum(-1) / near.sum(-1).clamp(min=1)


def _distances(points: Tensor) -> Tensor:
    """Of all pairs, by differences: the short cut through a product would cost digits."""
    return (points[..., :, None, :] - points[..., None, :, :]).square().sum(-1).sqrt()


def confidence(logits: Float[Tensor, "*B K"]) -> Float[Tensor, "*B"]:
    """The expected lDDT, 0 .. 100, of logits over equal bins.

    Example:
        >>> round(float(confidence(torch.zeros(50))), 4)
        50.0
    """
    bins = logits.shape[-1]
    centres = (torch.arange(bins, device=logits.device) + 0.5) * (100 / bins)
    return (precise(logits).softmax(-1) * centres).sum(-1)


def confidence_loss(
    logits: Float[Tensor, "B R K"], lddt: Float[Tensor, "B R"], mask: Bool[Tensor, "B R"]
) -> Float[Tensor, " B"]:
    """Mean cross-entropy of the bin that the lDDT (0 .. 1) fell into, in nats (algorithm 29)."""
    bins = logits.shape[-1]
    target = (lddt.detach() * bins).long().clamp(max=bins - 1)
    errors = F.cross_entropy(precise(logits).movedim(-1, 1), target, reduction="none")
    weight = mask.to(errors.dtype)
    return (errors * weight).sum(-1) / weight.sum(-1).clamp(min=1.0)
