"""Tensors laid out along one part of a plan: cut into tiles in the part's order of positions, and joined again."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.engines.problem import Problem
from regard.engines.tile_schedule import schedule
from regard.patterns.plan import Part, Plan, plans

TILE = 64


class Layout:
    """One part of a plan for one problem.

    Args:
        problem: what is computed.
        part: of its plan.

    Attributes:
        schedule: the units and chunks that it is worked off in.
    """

    def __init__(self, problem: Problem, part: Part) -> None:
        batches, heads = problem.query.shape[:2]
        self.problem, self.part, self.tile = problem, part, part.tile
        self.schedule = schedule(part, batches, heads, problem.rep, problem.query.device.type)

    def cut_queries(self, rows: Tensor) -> Tensor:
        """(B, H, N, ...) -> (U, rows of tiles, R * tile, ...) contiguous, the rows of a unit's heads stacked."""
        stacked, tail = self.schedule.head.shape[1], rows.shape[3:]
        if not self.schedule.stacked and self.part.heads != tuple(range(rows.shape[1])):
            rows = rows[:, torch.tensor(self.part.heads, device=rows.device)]
        tiles = self._cut(rows, self.part.query_rows)
        tiles = tiles.unflatten(1, (-1, stacked)).transpose(2, 3)
        return tiles.reshape(self.schedule.units, self.part.rows, -1, *tail).contiguous()

    def cut_keys(self, rows: Tensor) -> Tensor:
        """(B, G, M, D) -> (B * G, columns of tiles, tile, D), contiguous."""
        return self._cut(rows, self.part.key_rows).flatten(0, 1).contiguous()

    def _cut(self, rows: Tensor, places: Tensor) -> Tensor:
        extra = len(places) - rows.shape[2]
        if not self.part.natural:
            rows = rows.index_select(2, places.clamp(min=0).to(rows.device))
        elif extra:
            rows = F.pad(rows, (0, 0) * (rows.ndim - 3) + (0, extra))
        return rows.unflatten(2, (-1, self.tile))

    def join_queries(self, tiles: Tensor) -> Tensor:
        """The inverse of :meth:`cut_queries`: (B, heads of the part, N, ...)."""
        batches, places = self.problem.query.shape[0], self.part.query_rows
        by_head = tiles.unflatten(2, (self.schedule.head.shape[1], self.tile)).transpose(1, 2)
        return self._join(by_head.reshape(batches, -1, len(places), *tiles.shape[3:]), places)

    def join_keys(self, tiles: Tensor) -> Tensor:
        """The inverse of :meth:`cut_keys`."""
        return self._join(tiles.flatten(1, 2).unflatten(0, self.problem.key.shape[:2]), self.part.key_rows)

    def _join(self, rows: Tensor, places: Tensor) -> Tensor:
        real = places >= 0
        if self.part.natural:
            return rows[:, :, : int(real.sum())]
        inverse = torch.empty(int(real.sum()), dtype=torch.long)
        inverse[places[real]] = torch.arange(len(places))[real]
        return rows.index_select(2, inverse.to(rows.device))


def plan_of(problem: Problem) -> Plan:
    """The plan that this engine works off."""
    n, m = problem.query.shape[2], problem.key.shape[2]
    offset = None if problem.pattern.rectangular else problem.q_offset
    return plans.get(problem.pattern, n, m, problem.query.shape[1], offset, TILE)


def serves_all_heads(part: Part, problem: Problem) -> bool:
    """Whether a part concerns every head, in order."""
    return part.heads in (None, tuple(range(problem.query.shape[1])))
