"""Schedules: one part of a plan spread over sequences and heads, as a fixed list of chunks.

A unit is what one matrix product serves: a key head with all its query heads (their rows stacked, so that keys are read
once), or a single query head where heads follow different patterns. Schedules depend on sizes only and are remembered.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from regard.engines.tile_lanes import Lane, lanes
from regard.patterns.plan import Part

_AT_ONCE = {"cpu": 1 << 19}  # pairs of a chunk: its buffers stay in the caches of a core
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

    @cached_property
    def _sliding(self) -> tuple[int, int, int] | None:
        """Unit, key unit and first row of a band in one unit, whose rows are a slice; None for any other chunk."""
        if self.lane.band and len(self.unit) == 1:
            return int(self.unit), int(self.key_unit), int(self.lane.row[0])
        return None

    @cached_property
    def _strided(self) -> bool:
        """Keys can be read as a view: one of the two batch dimensions (units, rows) is trivial."""
        neighbours = bool((self.key_unit.diff() == 1).all())
        return self._sliding is not None or (self.lane.band and len(self.lane.row) == 1 and neighbours)

    @cached_property
    def _first_key(self) -> tuple[int, int]:
        """Key unit and column of the first tile of keys."""
        return int(self.key_unit[0]), int(self.lane.column[0, 0])

    def queries(self, tiles: Tensor) -> Tensor:
        """(U, rows, L, ...) -> (u * r, L, ...)."""
        if self._sliding is not None:
            unit, _, row = self._sliding
            return tiles[unit, row : row + len(self.lane.row)]
        return tiles.flatten(0, 1).index_select(0, self._places(tiles))

    def keys(self, tiles: Tensor) -> Tensor:
        """(key units, columns, tile, D) contiguous -> (u * r, c * tile, D), overlapping views for a band."""
        columns, tile, width = tiles.shape[1:]
        if not self._strided:  # index_select copies whole tiles, twice as fast as an index for each dimension
            place = (self.key_unit[:, None, None] * columns + self.lane.column).flatten().to(tiles.device)
            found = tiles.view(-1, tile * width).index_select(0, place)
            return found.view(len(self.unit) * len(self.lane.row), -1, width)
        (unit, column), step = self._first_key, tile * width
        stride = columns * step if self._sliding is None else step
        size = (len(self.unit) * len(self.lane.row), self.lane.width * tile, width)
        return tiles.as_strided(size, (stride, width, 1), tiles.storage_offset() + (unit * columns + column) * step)

    def put(self, tiles: Tensor, rows: Tensor) -> None:
        """Write (u * r, L, ...) to where :meth:`queries` reads."""
        if self._sliding is not None:
            self.queries(tiles).copy_(rows)
        else:
            tiles.view(-1, *tiles.shape[2:]).index_copy_(0, self._places(tiles), rows)

    def _places(self, tiles: Tensor) -> Tensor:
        """The chunk's rows of tiles among those of all units, Long[u * r]."""
        return (self.unit[:, None] * tiles.shape[1] + self.lane.row).flatten().to(tiles.device)

    def put_more(self, tiles: Tensor, rows: Tensor) -> None:
        """Add (u * r, L, ...) to what :meth:`queries` reads."""
        self.put(tiles, rows if self.lane.alone else self.queries(tiles) + rows)

    def add_product(self, tiles: Tensor, weights: Tensor, rows: Tensor) -> None:
        """Add weights^T rows, (u * r, L, c * tile)^T (u * r, L, D), to the tiles that :meth:`keys` reads."""
        columns, tile, width = tiles.shape[1:]
        if self._sliding is not None:
            (unit, first), count = self._first_key, len(self.lane.row)
            for position, part in enumerate(weights.split(tile, -1)):
                target = tiles[unit, first + position : first + position + count]
                torch.baddbmm(target, part.mT, rows, out=target)
            return
        place = (self.key_unit[:, None, None] * columns + self.lane.column).flatten().to(tiles.device)
        tiles.view(-1, tile * width).index_add_(0, place, torch.bmm(weights.mT, rows).view(-1, tile * width))


class Schedule:
    """One part of a plan for some number of sequences and heads.

    Attributes:
        stacked: a unit is a key head with all its query heads.
        units: how many; unit u is ``batch[u]`` and ``head[u]`` (Long[U, R]: the query heads whose rows it stacks), and
            reads the keys of ``key_unit[u]``.
        query_row, key_row: the row at each place of each tile, Long[tiles, tile]; 0 where there is none.
        padding: places of a unit's queries where there is none, Bool[rows of tiles, R * tile].
        chunks: all tiles of the part, a bounded number of pairs each.
    """

    def __init__(self, part: Part, batches: int, heads: int, rep: int, at_once: int) -> None:
        self.stacked = part.heads is None and not part.by_head
        groups = torch.arange(heads).view(-1, rep) if self.stacked else torch.tensor(part.heads)[:, None]
        self.batch = torch.arange(batches).repeat_interleave(len(groups))
        self.head = groups.repeat(batches, 1)
        self.key_unit = self.batch * (heads // rep) + self.head[:, 0] // rep
        self.units = len(self.batch)
        self.query_row, self.key_row = (
            rows.clamp(min=0).view(-1, part.tile) for rows in (part.query_rows, part.key_rows)
        )
        self.padding = (part.query_rows < 0).view(-1, part.tile).repeat(1, self.head.shape[1])
        plane = self.batch if part.batch > 1 else torch.zeros_like(self.batch)
        if part.by_head:
            plane = plane * len(groups) + torch.arange(len(groups)).repeat(batches)
        self.chunks = self._cut(part, plane, at_once)

    def _cut(self, part: Part, plane: Tensor, at_once: int) -> tuple[Chunk, ...]:
        chunks: list[Chunk] = []
        for lane in lanes(part):
            units = (plane == lane.plane).nonzero().flatten()
            fits = max(1, at_once // (self.head.shape[1] * part.tile**2 * lane.width))
            unit_step = 1 if lane.band and len(lane.row) > 1 else min(len(units), fits)
            row_step = max(1, fits // unit_step)
            for unit in units.split(unit_step):
                for start in range(0, len(lane.row), row_step):
                    few = lane.slice(start, start + row_step)
                    chunks.append(Chunk(unit, self.key_unit[unit], few, len(chunks)))
        return tuple(chunks)


def schedule(part: Part, batches: int, heads: int, rep: int, device: str) -> Schedule:
    """The schedule for a kind of device, remembered."""
    return _schedule(part, batches, heads, rep, _AT_ONCE.get(device, _AT_ONCE_ELSEWHERE))


_schedule = lru_cache(maxsize=64)(Schedule)
