"""Chunks of tiles on the CPU by torch's flash kernel: it stores no weights, and lse comes with the output.

Forward only: over 64 queries at a time its backward is slower than ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regard.engines.tile_schedule import Chunk
from regard.engines.tile_scores import TileScores
from regard.patterns.plan import FULL

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


class FlashChunks:
    """Attention of the chunks of one part, where the kernel can have it.

    Args:
        scores: of the part; its queries are scaled already.
        value: cut into tiles as the keys are.
    """

    def __init__(self, scores: TileScores, value: Tensor) -> None:
        self.scores, self.value = scores, value
        problem = scores.problem
        changed = problem.terms or problem.attn_mask is not None or problem.seed is not None
        square = problem.query.shape[-1] == problem.value.shape[-1]
        self.able = problem.query.device.type == "cpu" and square and not changed and problem.key_mask is None
        self._hidden: dict[object, tuple[Tensor | None, Tensor | None]] = {}

    def serve(self, chunk: Chunk) -> bool:
        """Whether nothing stands between products and softmax but one mask for all rows of tiles."""
        return self.able and all(isinstance(number, int) for _, number in chunk.lane.masks)

    def attend(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """out (u * r, R * tile, Dv) and lse (u * r, R * tile); rows without a pair are 0 with lse -inf."""
        query, key = chunk.queries(self.scores.query), chunk.keys(self.scores.key)
        hidden, empty = self._mask(chunk)
        tensors = (t[:, None] for t in (query, key, chunk.keys(self.value)))
        out, lse = (t.squeeze(1) for t in _flash(*tensors, 0.0, False, attn_mask=hidden, scale=1.0))
        if empty is not None:
            out, lse = out.masked_fill(empty[:, None], 0.0), lse.masked_fill(empty, -torch.inf)
        return out, lse

    def _mask(self, chunk: Chunk) -> tuple[Tensor | None, Tensor | None]:
        """What is added to the scores, (1, 1, R * tile, c * tile), and which rows it leaves without a pair."""
        lane = chunk.lane
        if not lane.masks:
            return None, None
        key = (lane.masks, lane.width)
        if key not in self._hidden:
            numbers = torch.full((lane.width,), FULL)
            for position, number in lane.masks:
                numbers[position] = number
            stacked = self.scores.layout.schedule.head.shape[1]
            hidden = self.scores.hidden[numbers].transpose(0, 1).flatten(1).repeat(stacked, 1)
            empty = (hidden == -torch.inf).all(-1)
            self._hidden[key] = hidden[None, None], empty if bool(empty.any()) else None
        return self._hidden[key]
