"""A problem laid out along one part of a plan: tensors cut into tiles, and the chunks that are worked off one by one.

A unit is what one matrix product serves: a key head with all its query heads (their rows stacked, so that keys are read
once), or a single query head where heads follow different patterns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.engines.problem import Problem
from regard.engines.tile_lanes import Lane, lanes
from regard.patterns.plan import Part

_AT_ONCE = {"cpu": 1 << 18}  # pairs of a chunk: two buffers of it stay in a core's cache
_AT_ONCE_ELSEWHERE = 1 << 24


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some rows of tiles of one lane for some units.

    Attributes:
        unit: Long[u].
        key_unit: the key head of each unit, Long[u].
        lane: sliced to the chunk's rows.
        number: place in the order of chunks, the same in every pass.
    """

    unit: Tensor
    key_unit: Tensor
    lane: Lane
    number: int

    @property
    def _strided(self) -> bool:
        """Keys can be read as a view: one of the two batch dimensions (units, rows) is trivial."""
        return self.lane.band and (len(self.unit) == 1 or (len(self.lane.row) == 1 and self._neighbours))

    @cached_property
    def _neighbours(self) -> bool:
        return bool((self.key_unit.diff() == 1).all())

    def queries(self, tiles: Tensor) -> Tensor:
        """(U, rows, L, ...) -> (u * r, L, ...)."""
        if self.lane.band and len(self.unit) == 1:
            return tiles[int(self.unit[0]), int(self.lane.row[0]) :][: len(self.lane.row)]
        device = tiles.device
        return tiles[self.unit.to(device)[:, None], self.lane.row.to(device)].flatten(0, 1)

    def keys(self, tiles: Tensor) -> Tensor:
        """(key units, columns, tile, D) contiguous -> (u * r, c * tile, D), overlapping views for a band."""
        columns, tile, width = tiles.shape[1:]
        if not self._strided:
            device = tiles.device
            found = tiles[self.key_unit.to(device)[:, None, None], self.lane.column.to(device)]
            return found.flatten(0, 1).flatten(1, 2)
        first, step = int(self.key_unit[0]) * columns + int(self.lane.column[0, 0]), tile * width
        stride = step if len(self.unit) == 1 else columns * step
        size = (len(self.unit) * len(self.lane.row), self.lane.width * tile, width)
        return tiles.as_strided(size, (stride, width, 1), tiles.storage_offset() + first * step)

    def put(self, tiles: Tensor, rows: Tensor) -> None:
        """Write (u * r, L, ...) to where :meth:`queries` reads."""
        if self.lane.band and len(self.unit) == 1:
            self.queries(tiles).copy_(rows)
        else:
            device = tiles.device
            rows = rows.unflatten(0, (len(self.unit), -1))
            tiles[self.unit.to(device)[:, None], self.lane.row.to(device)] = rows

    def put_more(self, tiles: Tensor, rows: Tensor) -> None:
        """Add (u * r, L, ...) to what :meth:`queries` reads."""
        self.put(tiles, rows if self.lane.alone else self.queries(tiles) + rows)

    def add_product(self, tiles: Tensor, weights: Tensor, rows: Tensor) -> None:
        """Add weights^T rows, (u * r, L, c * tile)^T (u * r, L, D), to the tiles that :meth:`keys` reads."""
        columns, tile, width = tiles.shape[1:]
        if self.lane.band and len(self.unit) == 1:
            own = tiles[int(self.key_unit[0])]
            for position in range(self.lane.width):
                first = int(self.lane.column[0, position])
                target = own[first : first + len(self.lane.row)]
                part = weights[..., position * tile : (position + 1) * tile].mT
                torch.baddbmm(target, part, rows, out=target)
            return
        place = (self.key_unit[:, None, None] * columns + self.lane.column).flatten().to(tiles.device)
        tiles.view(-1, tile * width).index_add_(0, place, torch.bmm(weights.mT, rows).view(-1, tile * width))


class Layout:
    """One part of a plan for one problem.

    Attributes:
        units: how many; unit u is ``batch[u]`` and ``head[u]`` (Long[U, R]: the query heads whose rows it stacks).
        query_row, key_row: the row at each place of each tile, Long[tiles, tile]; 0 where there is none.
        padding: places of a unit's queries where there is none, Bool[rows of tiles, R * tile].
    """

    def __init__(self, problem: Problem, part: Part) -> None:
        self.problem, self.part, self.tile = problem, part, part.tile
        batches, heads, rep = problem.query.shape[0], problem.query.shape[1], problem.rep
        self.stacked = part.heads is None and not part.by_head
        groups = torch.arange(heads).view(-1, rep) if self.stacked else torch.tensor(part.heads)[:, None]
        self.batch = torch.arange(batches).repeat_interleave(len(groups))
        self.head = groups.repeat(batches, 1)
        self.key_unit = self.batch * (heads // rep) + self.head[:, 0] // rep
        plane_batch = self.batch if part.batch > 1 else torch.zeros_like(self.batch)
        own = torch.arange(len(groups)).repeat(batches)
        self.plane = plane_batch * len(groups) + own if part.by_head else plane_batch
        self.units = len(self.batch)
        self.query_row, self.key_row = (
            rows.clamp(min=0).view(-1, self.tile) for rows in (part.query_rows, part.key_rows)
        )
        self.padding = (part.query_rows < 0).view(-1, self.tile).repeat(1, self.head.shape[1])

    def cut_queries(self, rows: Tensor) -> Tensor:
        """(B, H, N, ...) -> (U, rows of tiles, R * tile, ...), the rows of a unit's heads stacked."""
        tail = rows.shape[3:]
        if not self.stacked and self.part.heads != tuple(range(rows.shape[1])):
            rows = rows[:, torch.tensor(self.part.heads, device=rows.device)]
        tiles = self._cut(rows, self.part.query_rows)
        tiles = tiles.unflatten(1, (-1, self.head.shape[1])).transpose(2, 3)
        return tiles.reshape(self.units, self.part.rows, -1, *tail)

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
        batches = self.problem.query.shape[0]
        stacked = tiles.unflatten(2, (self.head.shape[1], self.tile)).transpose(1, 2)
        return self._join(
            stacked.reshape(batches, -1, len(self.part.query_rows), *tiles.shape[3:]), self.part.query_rows
        )

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

    def chunks(self) -> Iterator[Chunk]:
        """All tiles of the part, a bounded number of pairs at a time; always in the same order."""
        at_once = _AT_ONCE.get(self.problem.query.device.type, _AT_ONCE_ELSEWHERE)
        number = 0
        for lane in lanes(self.part):
            units = (self.plane == lane.plane).nonzero().flatten()
            fits = max(1, at_once // (self.head.shape[1] * self.tile**2 * lane.width))
            unit_step = 1 if lane.band and len(lane.row) > 1 else min(len(units), fits)
            row_step = max(1, fits // unit_step)
            for u in range(0, len(units), unit_step):
                for r in range(0, len(lane.row), row_step):
                    unit = units[u : u + unit_step]
                    yield Chunk(unit, self.key_unit[unit], lane.slice(r, r + row_step), number)
                    number += 1
