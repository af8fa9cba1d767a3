"""Two sorted lists cut into equally many clusters: the queries and the keys of a cluster meet.

The number of clusters follows from the real tokens of each sequence, and the clusters of one list differ in size by
no more than the last one's rest, so padding and lengths that do not divide change nothing.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Clusters(NamedTuple):
    """L clusters of up to c tokens, in each of R lists.

    Attributes:
        token: the token in each slot, any where there is none.
        filled: the slots that hold a real token.
        place: the slot of each token; any for tokens that are not real.
    """

    token: Int[Tensor, "B H R L c"]
    filled: Bool[Tensor, "B #H #R L c"]
    place: Int[Tensor, "B H R N"]


def count_clusters(*sides: tuple[Int[Tensor, " B"], int]) -> Int[Tensor, " B"]:
    """The fewest clusters, at least 1, in which each side has no more tokens in one than its size allows.

    Args:
        sides: real tokens of each sequence, and the size.

    Example:
        >>> count_clusters((torch.tensor([9, 0]), 4), (torch.tensor([4, 0]), 4)).tolist()
        [3, 1]
    """
    counts = [(real + size - 1) // size for real, size in sides]
    return torch.stack(counts).amax(0).clamp(min=1)


def cut(
    order: Int[Tensor, "B H R N"], real: Int[Tensor, " B"], clusters: Int[Tensor, " B"], most: int, size: int
) -> Clusters:
    """Cut sorted lists into consecutive clusters of ceil(real / clusters) tokens.

    Args:
        order: the tokens of each list, those that are not real last.
        real: how many are real.
        clusters: into how many to cut.
        most: L, no sequence has more clusters.
        size: c, no cluster has more tokens.

    Example:
        >>> clusters = cut(torch.arange(5).view(1, 1, 1, 5), torch.tensor([5]), torch.tensor([2]), 2, 4)
        >>> clusters.token[clusters.filled].tolist(), clusters.place.flatten().tolist()
        ([0, 1, 2, 3, 4], [0, 1, 2, 4, 5])
    """
    n, device = order.shape[-1], order.device
    width = ((real + clusters - 1) // clusters).clamp(min=1)[:, None]  # tokens in a cluster, (B, 1)
    slot = torch.arange(size, device=device)
    rank = torch.arange(most, device=device)[:, None] * width[..., None] + slot  # (B, L, c)
    filled = (slot < width[..., None]) & (rank < real[:, None, None])
    index = rank.clamp(max=n - 1).flatten(1)[:, None, None].expand(-1, *order.shape[1:3], -1)
    token = order.gather(-1, index).unflatten(-1, (most, size))
    step = torch.arange(n, device=device)
    slots = (step // width * size + step % width).clamp(max=most * size - 1)[:, None, None].expand_as(order)
    return Clusters(token, filled[:, None, None], torch.zeros_like(order).scatter(-1, order, slots))


def asymmetric_hashes(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H M D"],
    directions: Float[Tensor, "D2 R"],
    query_mask: Bool[Tensor, "B N"] | None = None,
    key_mask: Bool[Tensor, "B M"] | None = None,
) -> tuple[Float[Tensor, "B H R N"], Float[Tensor, "B H R M"]]:
    """Projections of [q, 0, s] and [k, t, 0], all of the same length, so that a large product means a small distance.

    s = sqrt(MQ^2 + MK^2 - |q|^2) and t likewise for k, MQ and MK the largest lengths of real queries and keys. Tokens
    that are not real get infinity. In float32 at least, without gradient.

    Args:
        q, k: queries and keys.
        directions: normal random columns, D + 2 high, one for each list.
        query_mask, key_mask: True for real tokens.

    Example:
        >>> q, k = torch.tensor([[[[1.0], [-1.0]]]]), torch.tensor([[[[1.0], [2.0]]]])
        >>> [h.flatten().tolist() for h in asymmetric_hashes(q, k, torch.tensor([[1.0], [0.0], [0.0]]))]
        [[1.0, -1.0], [1.0, 2.0]]
    """
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        wide = torch.promote_types(q.dtype, torch.float32)
        q, k, directions = q.to(wide), k.to(wide), directions.to(wide)
        most = _longest(q, query_mask) + _longest(k, key_mask)
        width = q.shape[-1]
        return _project(q, directions, width + 1, most, query_mask), _project(k, directions, width, most, key_mask)


def _longest(x: Tensor, mask: Tensor | None) -> Tensor:
    """The largest |x|^2 of a real token, (B, H, 1)."""
    length = x.square().sum(-1)
    return (length if mask is None else length.masked_fill(~mask[:, None], 0.0)).amax(-1, keepdim=True)


def _project(x: Tensor, directions: Tensor, row: int, most: Tensor, mask: Tensor | None) -> Tensor:
    """[x, sqrt(most - |x|^2)] on directions whose row ``row`` meets the root: (B, H, R, N)."""
    # compiled, the same sum may be rounded in another way; and padding may be longer than any real token
    rest = (most - x.square().sum(-1)).clamp(min=0).sqrt()
    hashes = (x @ directions[: x.shape[-1]] + rest[..., None] * directions[row]).mT
    return hashes if mask is None else hashes.masked_fill(~mask[:, None, None], torch.inf)
