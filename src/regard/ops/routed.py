"""Tokens that meet in clusters of equal size: each cluster takes those with the largest affinity to it.

A token may be taken by no cluster, by one or by several; what it finds there is averaged.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from regard.attention import attend
from regard.ops.clusters import take_rows


def top_tokens(
    affinity: Float[Tensor, "B H N K"], window: int, mask: Bool[Tensor, "B N"] | None = None
) -> Int[Tensor, "B H K w"]:
    """The ``window`` tokens with the largest affinity to each cluster, or all N, in the order of their positions.

    Args:
        affinity: of each token to each cluster.
        window: tokens in a cluster.
        mask: True for real tokens; the others are taken only where there are too few of these.

    Example:
        >>> top_tokens(torch.tensor([[[[3.0], [1.0], [2.0]]]]), 2).tolist()
        [[[[0, 2]]]]
    """
    if mask is not None:
        affinity = affinity.masked_fill(~mask[:, None, :, None], -torch.inf)
    return affinity.mT.topk(min(window, affinity.shape[2]), sorted=False).indices.sort(-1).values


def meet(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H M D"],
    v: Float[Tensor, "B H M Dv"],
    asking: Int[Tensor, "B H K w"],
    asked: Int[Tensor, "B H K u"],
    *,
    causal: bool = False,
    key_mask: Bool[Tensor, "B M"] | None = None,
    scale: float | None = None,
    attn_drop: float = 0.0,
    generator: Generator | None = None,
) -> Float[Tensor, "B H N Dv"]:
    """softmax(scale q k^T) v between the tokens of each cluster, the mean over the clusters of each token.

    Args:
        q, k, v: queries, keys and values, heads first.
        asking, asked: the queries and the keys of each cluster.
        causal: no query sees a key at a later position.
        key_mask: True for real keys.
        scale: 1 / sqrt(D) by default.
        attn_drop, generator: dropout on the weights, and what draws it.

    Returns:
        One row per query, 0 for one that is in no cluster.

    Example:
        >>> x = torch.randn(1, 1, 3, 4)
        >>> meet(x, x, x, torch.tensor([[[[0, 2]]]]), torch.tensor([[[[0, 2]]]]))[0, 0, 1].tolist()
        [0.0, 0.0, 0.0, 0.0]
    """
    seen = None
    if causal:
        seen = asking[..., None] >= asked[..., None, :]
    if key_mask is not None:
        real = key_mask[:, None].expand(-1, k.shape[1], -1).gather(-1, asked.flatten(2)).view_as(asked)[..., None, :]
        seen = real if seen is None else seen & real
    options: dict[str, Any] = {"scale": scale, "dropout_p": attn_drop, "generator": generator}
    queries, keys, values = (take_rows(t, index).flatten(1, 2) for t, index in ((q, asking), (k, asked), (v, asked)))
    out = attend(queries, keys, values, attn_mask=None if seen is None else seen.flatten(1, 2), **options)
    return scatter_mean(out.view(*asking.shape, -1), asking, q.shape[2])


def scatter_mean(
    rows: Float[Tensor, "B H K w E"], index: Int[Tensor, "B H K w"], length: int, eps: float = 0.0
) -> Float[Tensor, "B H N E"]:
    """The mean of the rows of each token, 0 where it has none.

    Args:
        rows: one for each place in each cluster.
        index: the token in each place.
        length: N.
        eps: added to the number of rows.
    """
    batch, heads, width = *rows.shape[:2], rows.shape[-1]
    first = torch.arange(batch * heads, device=rows.device).view(batch, heads, 1, 1) * length
    place = (first + index).flatten()
    sums = rows.new_zeros(batch * heads * length, width).index_add(0, place, rows.reshape(-1, width))
    count = torch.zeros_like(sums[:, 0]).index_add(0, place, torch.ones_like(index, dtype=rows.dtype).flatten())
    count = count + eps if eps else count.clamp(min=1)
    return (sums / count[:, None]).view(batch, heads, length, width)
