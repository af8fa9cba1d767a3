"""Clusters of similar vectors: codes of signs, and k-means between codes in Hamming distance.

Vyas et al. 2020, arXiv:2007.04825, section 3.1. A code is a row of +1 and -1, so that the Hamming distance of two codes
is (bits - a . b) / 2, and the nearest centroid the one with the largest product: a matrix product finds them all.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

TOKENS_AT_ONCE = 512
"""Compared with all centroids in one go; their products stay in the cache."""


def sign_codes(x: Float[Tensor, "*B N D"], planes: Float[Tensor, "bits D1"]) -> Float[Tensor, "*B N bits"]:
    """+1 where x . p > t and -1 elsewhere, for each plane (p, t); in float32 at least, without gradient.

    Args:
        x: what is hashed.
        planes: normals of width D and, in the last column, thresholds.

    Example:
        >>> planes = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.5]])
        >>> sign_codes(torch.tensor([[3.0, 1.0], [0.0, 2.0]]), planes).tolist()
        [[1.0, -1.0], [-1.0, 1.0]]
    """
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        planes = planes.to(torch.promote_types(x.dtype, torch.float32))
        above = x.to(planes.dtype) @ planes[:, :-1].mT > planes[:, -1]
        return above.to(planes.dtype).mul_(2).sub_(1)


def spread_evenly(real: Bool[Tensor, "B N"], count: int) -> Int[Tensor, "B count"]:
    """The places of ``count`` real tokens at equal distances; all different where there are as many real tokens.

    Example:
        >>> spread_evenly(torch.tensor([[False, True, True, True, True]]), 2).tolist()
        [[2, 4]]
    """
    step = torch.arange(count, device=real.device)
    rank = (2 * step + 1) * real.sum(-1, keepdim=True) // (2 * count)
    return real.logical_not().to(torch.uint8).argsort(dim=-1, stable=True).gather(-1, rank)


def hamming_kmeans(
    codes: Float[Tensor, "B H N bits"],
    centroids: Float[Tensor, "B H C bits"],
    iterations: int,
    real: Bool[Tensor, "B N"],
) -> Int[Tensor, "B H N"]:
    """The cluster of each code, after Lloyd's rounds of assignment and vote.

    A token goes to the nearest centroid, among equally near ones to the first. Each bit of a centroid is then what most
    of its tokens have, and -1 where the votes are equal. A centroid without tokens stays as it is.

    Args:
        codes: rows of +1 and -1.
        centroids: where to start, likewise.
        iterations: assignments, with a vote between each two.
        real: True for tokens that are assigned and vote.

    Returns:
        Numbers below C, and C for tokens that are not real.

    Example:
        >>> codes = torch.tensor([[[[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]]])
        >>> hamming_kmeans(codes, codes[:, :, :2], 2, torch.ones(1, 3, dtype=torch.bool)).tolist()
        [[[0, 0, 1]]]
    """
    (batch, heads, _, bits), count = codes.shape, centroids.shape[2]
    table = torch.arange(batch * heads, device=codes.device).view(batch, heads, 1) * (count + 1)
    with torch.no_grad(), torch.autocast(codes.device.type, enabled=False):
        groups = _nearest(codes, centroids, real)
        for _ in range(iterations - 1):
            votes = codes.new_zeros(batch * heads * (count + 1), bits)
            votes.index_add_(0, (table + groups).flatten(), codes.flatten(0, 2))
            votes = votes.view(batch, heads, count + 1, bits)[:, :, :-1]
            taken = torch.zeros_like(groups[..., :1]).expand(-1, -1, count + 1).scatter(-1, groups, 1)[..., :-1, None]
            centroids = torch.where(taken > 0, (votes > 0).to(codes.dtype).mul_(2).sub_(1), centroids)
            groups = _nearest(codes, centroids, real)
    return groups


def _nearest(codes: Tensor, centroids: Tensor, real: Tensor) -> Tensor:
    # in pieces that stay in the cache, but in one graph for every length
    pieces = [codes] if torch.compiler.is_compiling() else codes.split(TOKENS_AT_ONCE, 2)
    found = torch.cat([(piece @ centroids.mT).max(-1).indices for piece in pieces], -1)
    return found.masked_fill(~real[:, None], centroids.shape[2])
