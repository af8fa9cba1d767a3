"""Sharpness: how far a query's scores are from all alike, estimated from a few keys that are drawn for it.

Zhou et al. 2020, arXiv:2012.07436, eq. 4 and algorithm 1. Of the n keys that query i may see, U = min(n, c ceil(ln n))
are drawn, and with their unscaled scores s::

    M_i = max_u s_iu - (1/n) sum_u s_iu

The sum is divided by n, not by U, as in the authors' code: keys that were not drawn count as zeros. A draw is a number
in [0, 1), of which the key ``floor(draw n)`` of the real ones is made, so it means the same whatever padding there is.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

GATHERED_AT_ONCE = {"cpu": 1 << 19, "cuda": 1 << 26}
"""Numbers of gathered keys in memory: on the CPU they stay in cache."""

LONGEST = 31
"""log2 of the longest sequence: a compiled graph serves every length, and reserves what this one would need."""


def log_count(n: Int[Tensor, "*B"]) -> Int[Tensor, "*B"]:
    """ceil(ln n), at least 1.

    Example:
        >>> log_count(torch.tensor([0, 1, 2, 3, 48])).tolist()
        [1, 1, 1, 2, 4]
    """
    return n.double().clamp(min=1).log().ceil().long().clamp(min=1)


def most(length: int) -> int:
    """``log_count`` of the longest sequence there can be: of ``length``, or in a compiled graph of any."""
    if torch.compiler.is_compiling():
        return math.ceil(LONGEST * math.log(2))
    return max(1, math.ceil(math.log(max(1, length))))


def even_draws(position: Int[Tensor, "B N"], columns: int) -> Float[Tensor, "B N U"]:
    """Draws without chance: multiples of the golden ratio, which are spread evenly, from another start for each query.

    Example:
        >>> even_draws(torch.tensor([[0, 1]]), 3).mul(10).long().tolist()
        [[[5, 1, 7], [2, 8, 4]]]
    """
    column = torch.arange(columns, device=position.device, dtype=torch.float64)
    return (0.5 + column * 0.6180339887498949 + position[..., None] * 0.7548776662466927) % 1


@torch.no_grad()
def sharpness(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H M D"],
    draws: Float[Tensor, "#B N U"],
    seen: Int[Tensor, "B N"],
    factor: int,
    key_order: Int[Tensor, "B M"] | None = None,
) -> Float[Tensor, "B H N"]:
    """M of every query, without gradients: it only serves to choose.

    Args:
        q, k: queries and keys, heads first.
        draws: in [0, 1), at least ``factor * ceil(ln n)`` for each query, the same for all heads.
        seen: n, how many real keys each query may see, the first ones in ``key_order``.
        factor: c.
        key_order: where the real keys stand; None: everywhere.

    Returns:
        M in float32 or more; 0 for a query that sees no key.
    """
    index = (draws * seen[..., None]).long()
    taken = torch.arange(draws.shape[-1], device=q.device) < (factor * log_count(seen)).minimum(seen)[..., None]
    if key_order is not None:
        index = key_order.gather(1, index.flatten(1)).view_as(index)
    batch, heads, m, width = k.shape
    place = index + m * torch.arange(batch, device=k.device)[:, None, None]
    # all heads of a key lie side by side, so they are copied at once
    keys, q = k.transpose(1, 2).reshape(batch * m, heads, width), q.transpose(1, 2)
    parts = [
        _sharpness(q[:, rows], keys, place[:, rows], taken[:, rows], seen[:, rows])
        for rows in _runs(q, place.shape[-1])
    ]
    return torch.cat(parts, 1).transpose(1, 2)


def _runs(q: Tensor, columns: int) -> Iterator[slice]:
    """Runs of queries whose gathered keys fit."""
    if torch.compiler.is_compiling():
        yield slice(None)
        return
    batch, length, heads, width = q.shape
    room = GATHERED_AT_ONCE.get(q.device.type, GATHERED_AT_ONCE["cuda"])
    size = max(1, room // (batch * heads * width * columns))
    for start in range(0, length, size):
        yield slice(start, start + size)


def _sharpness(
    q: Float[Tensor, "B n H D"],
    keys: Float[Tensor, "T H D"],
    place: Int[Tensor, "B n U"],
    taken: Bool[Tensor, "B n U"],
    seen: Int[Tensor, "B n"],
) -> Float[Tensor, "B n H"]:
    wide = torch.promote_types(q.dtype, torch.float32)
    drawn = keys.index_select(0, place.flatten()).view(*place.shape, *keys.shape[1:]).to(wide)
    scores = (drawn * q[:, :, None].to(wide)).sum(-1)
    largest = scores.masked_fill(~taken[..., None], -torch.inf).amax(2)
    total = scores.masked_fill(~taken[..., None], 0.0).sum(2)
    n = seen[..., None]
    return torch.where(n > 0, largest - total / n.clamp(min=1), 0.0)
