"""Tokens by cluster, of whatever sizes: the mean of each, and chunks that hold tokens of one cluster only.

A token without a cluster has the number C, one more than the last.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


class Chunks(NamedTuple):
    """S chunks of L slots a head: as many as there can be, whatever the sizes of the clusters.

    Attributes:
        token: the token in each slot, any where there is none.
        place: the slot of each token.
        cluster: that of each chunk; any for chunks of tokens without one, and for empty chunks.
    """

    token: Int[Tensor, "B H S L"]
    place: Int[Tensor, "B H N"]
    cluster: Int[Tensor, "B H S"]


def cluster_chunks(groups: Int[Tensor, "B H N"], clusters: int, length: int) -> Chunks:
    """Lay the tokens of each cluster out in chunks of their own.

    Args:
        groups: the cluster of each token.
        clusters: C.
        length: L. There are N // L + C + 1 chunks.

    Example:
        >>> chunks = cluster_chunks(torch.tensor([[[1, 0, 1, 1]]]), 2, 2)
        >>> chunks.place.tolist(), chunks.cluster.tolist()
        ([[[2, 0, 3, 4]]], [[[0, 1, 1, 1, 1]]])
    """
    batch, heads, n = groups.shape
    size = groups.new_zeros(batch, heads, clusters + 1).scatter_add(-1, groups, torch.ones_like(groups))
    chunks = (size + length - 1) // length
    behind = chunks.cumsum(-1)  # the chunk after the last one of each cluster
    order = groups.argsort(dim=-1, stable=True)
    number = groups.gather(-1, order)
    rank = torch.arange(n, device=groups.device) - (size.cumsum(-1) - size).gather(-1, number)
    slot = (behind - chunks).gather(-1, number) * length + rank
    count = n // length + clusters + 1
    token = groups.new_zeros(batch, heads, count * length).scatter(-1, slot, order)
    step = torch.arange(count, device=groups.device).expand(batch, heads, -1).contiguous()
    owner = torch.searchsorted(behind, step, right=True).clamp(max=clusters - 1)
    return Chunks(token.unflatten(-1, (count, length)), torch.zeros_like(groups).scatter(-1, order, slot), owner)


def cluster_means(x: Float[Tensor, "B H N D"], groups: Int[Tensor, "B H N"], clusters: int) -> Float[Tensor, "B H C D"]:
    """The mean of the tokens of each cluster, 0 for an empty one.

    Example:
        >>> cluster_means(torch.tensor([[[[1.0], [3.0], [7.0]]]]), torch.tensor([[[1, 1, 2]]]), 2).flatten().tolist()
        [0.0, 2.0]
    """
    batch, heads, _, width = x.shape
    row = groups + torch.arange(batch * heads, device=x.device).view(batch, heads, 1) * (clusters + 1)
    sums = x.new_zeros(batch * heads * (clusters + 1), width).index_add(0, row.flatten(), x.flatten(0, 2))
    count = x.new_zeros(len(sums)).index_add(0, row.flatten(), torch.ones_like(x[..., 0]).flatten())
    return (sums / count.clamp(min=1)[:, None]).view(batch, heads, clusters + 1, width)[:, :, :-1]


def of_member(table: Float[Tensor, "B H C E"], groups: Int[Tensor, "B H N"]) -> Float[Tensor, "B H N E"]:
    """The row of its cluster for each token, 0 for those without one."""
    return take_rows(torch.cat((table, torch.zeros_like(table[:, :, :1])), 2), groups)


def take_rows(x: Shaped[Tensor, "B H M E"], index: Int[Tensor, "B H *R"]) -> Shaped[Tensor, "B H *R E"]:
    """Rows ``index`` of each head, copied whole.

    Example:
        >>> take_rows(torch.arange(4.0).view(1, 2, 2, 1), torch.tensor([[[1], [0]]])).flatten().tolist()
        [1.0, 2.0]
    """
    batch, heads, length, width = x.shape
    first = torch.arange(batch * heads, device=x.device).view(batch, heads, *[1] * (index.ndim - 2)) * length
    return x.reshape(-1, width).index_select(0, (first + index).flatten()).view(*index.shape, width)
