"""Tiles on the CPU by torch's flash kernel: it stores no weights, and lse comes with the output.

Forward only: over 64 queries at a time its backward is slower than ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regard.engines.problem import Problem
from regard.engines.sdpa import flash
from regard.engines.tile_schedule import Chunk
from regard.engines.tile_scores import TileScores
from regard.patterns.plan import FULL, Part

Mask = tuple[Tensor | None, Tensor | None]


def able(problem: Problem) -> bool:
    """Whether nothing but the pattern stands between products and softmax."""
    masked = problem.key_mask is not None or problem.attn_mask is not None
    square = problem.query.shape[-1] == problem.value.shape[-1]
    return problem.query.device.type == "cpu" and square and not (masked or problem.terms or problem.seed is not None)


def hidden_pairs(part: Part, masks: Sequence[tuple[int, int]], width: int, stacked: int, dtype: torch.dtype) -> Mask:
    """What the masks of a row of tiles add to its scores, and which of its queries they leave without a pair.

    Args:
        part: of a plan.
        masks: (position, mask number) of partial tiles.
        width: columns of tiles.
        stacked: query heads whose rows are stacked.
        dtype: of the scores.

    Returns:
        0 or -inf (1, 1, R * tile, c * tile), and Bool (R * tile); None each where there is no such thing.
    """
    if not masks:
        return None, None
    numbers = torch.full((width,), FULL)
    for position, number in masks:
        numbers[position] = number
    # One mask more: FULL, which is -1, reads the last, which hides nothing.
    allowed = torch.cat([part.masks, part.masks.new_ones(1, part.tile, part.tile)])[numbers]
    allowed = allowed.transpose(0, 1).flatten(1).repeat(stacked, 1)
    hidden = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, -torch.inf)
    empty = ~allowed.any(-1)
    return hidden[None, None], empty if bool(empty.any()) else None


def attend(
    query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, empty: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """The kernel on (a, b, L, D) and (a, b, S, D); the queries that are ``empty`` give 0 with lse -inf."""
    out, lse = flash(query, key, value, 0.0, False, attn_mask=hidden, scale=scale)
    if empty is None:
        return out, lse
    return out.masked_fill(empty[:, None], 0.0), lse.masked_fill(empty, -torch.inf)


class FlashChunks:
    """Attention of the chunks of one part, where the kernel can have it.

    Args:
        scores: of the part; its queries are scaled already.
        value: cut into tiles as the keys are.
    """

    def __init__(self, scores: TileScores, value: Tensor) -> None:
        self.scores, self.value = scores, value
        self.able = able(scores.problem)
        self._masks: dict[object, Mask] = {}

    def serve(self, chunk: Chunk) -> bool:
        """Whether one mask serves all its rows of tiles."""
        return self.able and all(isinstance(number, int) for _, number in chunk.lane.masks)

    def attend(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """out (u * r, R * tile, Dv) and lse (u * r, R * tile)."""
        lane, layout = chunk.lane, self.scores.layout
        if (lane.masks, lane.width) not in self._masks:
            masks, stacked = [(p, int(number)) for p, number in lane.masks], layout.schedule.head.shape[1]
            found = hidden_pairs(layout.part, masks, lane.width, stacked, self.value.dtype)
            self._masks[lane.masks, lane.width] = found
        tensors = (chunk.queries(self.scores.query), chunk.keys(self.scores.key), chunk.keys(self.value))
        query, key, value = (t[:, None] for t in tensors)
        out, lse = attend(query, key, value, *self._masks[lane.masks, lane.width], 1.0)
        return out.squeeze(1), lse.squeeze(1)
