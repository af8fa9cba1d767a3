"""Landmarks: a long sequence told by the means of a few segments of consecutive tokens."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.ops.masks import positions


def segment_means(
    x: Float[Tensor, "B H N D"], segments: int, mask: Bool[Tensor, "B N"] | None = None
) -> tuple[Float[Tensor, "B H m D"], Int[Tensor, "B m"]]:
    """The means of m segments of consecutive real tokens, and how many tokens each of them holds.

    Args:
        x: heads first.
        segments: m; the last segments are longer by one where m does not divide the number of real tokens.
        mask: True for real tokens.

    Returns:
        The means, 0 for a segment without a token, and the counts.

    Example:
        >>> means, count = segment_means(torch.arange(5.0).reshape(1, 1, 5, 1), 2)
        >>> means.flatten().tolist(), count.tolist()
        ([0.5, 3.0], [[2, 3]])
    """
    batch, heads, length, width = x.shape
    real = torch.ones(batch, length, dtype=torch.bool, device=x.device) if mask is None else mask
    total = real.sum(-1, keepdim=True)
    short = total // segments
    first = (short + 1) * segments - total  # so many segments hold ``short`` tokens, the others one more
    rank = positions(real, mask)
    beyond = rank - first * short
    segment = torch.where(beyond < 0, rank // short.clamp(min=1), first + beyond // (short + 1))
    segment = torch.where(real, segment, segments)  # a segment for padding, dropped below
    row = segment + (segments + 1) * torch.arange(batch, device=x.device)[:, None]
    sums = x.new_zeros(batch * (segments + 1), heads, width)
    sums = sums.index_add(0, row.flatten(), x.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, segments + 1))
    count = short + (torch.arange(segments, device=x.device) >= first)
    return sums[:, :-1].transpose(1, 2) / count.clamp(min=1)[:, None, :, None], count
