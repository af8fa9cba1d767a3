"""Tiles: positions laid out in some order, cut in groups of equal size, and the ranges that rules ask of each group."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from regard.patterns.rules import Coordinate

PAD_SHARE = 1.25  # classes are padded to whole tiles while the sequence becomes at most this much, and a tile, longer


class Side:
    """The queries (or the keys) of a problem, laid out in an order and cut into tiles.

    Args:
        positions: where each row stands, Long[n].
        tile: rows a tile.
        group: rows with equal numbers are laid side by side, in their old order; None keeps the natural order.
        batch, head: the plane's batch and head number, Long[P, 1] each.

    Attributes:
        rows: the row at each place, Long[tiles * tile]; -1 where there is none.
    """

    def __init__(
        self,
        positions: Tensor,
        tile: int,
        group: Callable[[Tensor], Tensor] | None,
        batch: Tensor,
        head: Tensor,
    ) -> None:
        self.tile, self.batch, self.head = tile, batch, head
        self.natural = group is None
        self.rows = _lay_out(positions, tile, None if group is None else group(positions))
        self.count = len(self.rows) // tile
        self.real = (self.rows >= 0).view(self.count, tile)
        filled = self.rows.view(self.count, tile)
        # An absent row repeats its tile's first row, which always exists: ranges do not notice it.
        self.positions = positions[torch.where(self.real, filled, filled[:, :1])]
        self._ranges: dict[tuple[Coordinate, int], tuple[Tensor, Tensor]] = {}

    def values(self, coordinate: Coordinate) -> Tensor:
        """The coordinate at every place, Int64[P, tiles, tile]."""
        planes = len(self.batch)
        found = coordinate(self.batch, self.head, self.positions.view(1, -1))
        return found.expand(planes, -1).view(planes, self.count, self.tile)

    def range(self, coordinate: Coordinate, level: int) -> tuple[Tensor, Tensor]:
        """Smallest and largest value in each run of 2**level tiles, Int64[P, runs] each."""
        if (coordinate, level) not in self._ranges:
            if level == 0:
                values = self.values(coordinate)
                self._ranges[coordinate, 0] = values.amin(-1), values.amax(-1)
            else:
                low, high = (_in_pairs(side) for side in self.range(coordinate, level - 1))
                self._ranges[coordinate, level] = low.amin(-1), high.amax(-1)
        return self._ranges[coordinate, level]

    def start(self, coordinate: Coordinate) -> Tensor:
        """The value at each tile's first place, Int64[P, tiles]."""
        return self.values(coordinate)[..., 0]

    def shape(self, coordinate: Coordinate) -> Tensor:
        """A number that tells tiles of different values, relative to their first, apart, Int64[P, tiles].

        It is a random hash modulo 2**64: comparing whole rows would sort N numbers a tile at a time.
        """
        values = self.values(coordinate)
        weights = torch.randint(-(2**62), 2**62, (self.tile,), generator=torch.Generator().manual_seed(0))
        return ((values - values[..., :1]) * weights).sum(-1)


def _lay_out(positions: Tensor, tile: int, group: Tensor | None) -> Tensor:
    """Rows by group, each group padded with -1 to whole tiles where that is cheap; else padded at the end only."""
    n = len(positions)
    if group is None:
        rows, sizes = torch.arange(n), torch.tensor([n])
    else:
        rows = group.argsort(stable=True)
        sizes = group.unique(return_counts=True)[1]
    whole = -(-sizes // tile) * tile
    if int(whole.sum()) > PAD_SHARE * n + tile:
        sizes, whole = torch.tensor([n]), torch.tensor([-(-n // tile) * tile])
    laid = torch.full((int(whole.sum()),), -1)
    shift = (whole.cumsum(0) - whole) - (sizes.cumsum(0) - sizes)
    laid[torch.arange(n) + shift.repeat_interleave(sizes)] = rows
    return laid


def _in_pairs(values: Tensor) -> Tensor:
    """(P, c) -> (P, ceil(c / 2), 2), an odd last value paired with itself."""
    if values.shape[1] % 2:
        values = torch.cat([values, values[:, -1:]], 1)
    return values.unflatten(1, (-1, 2))


class Tiles:
    """A set of tiles (plane, row of tiles, column of tiles), or of square runs of 2**level tiles."""

    def __init__(self, queries: Side, keys: Side, level: int, plane: Tensor, row: Tensor, column: Tensor) -> None:
        self.queries, self.keys, self.level = queries, keys, level
        self.plane, self.row, self.column = plane, row, column

    def __len__(self) -> int:
        return len(self.row)

    @property
    def head(self) -> Tensor:
        """The head of each tile's plane."""
        return self.queries.head[self.plane, 0]

    @classmethod
    def everything(cls, queries: Side, keys: Side) -> Tiles:
        """One run per plane that covers all."""
        level = (max(queries.count, keys.count) - 1).bit_length()
        planes = torch.arange(len(queries.batch))
        return cls(queries, keys, level, planes, torch.zeros_like(planes), torch.zeros_like(planes))

    def pick(self, chosen: Tensor) -> Tiles:
        """The tiles where ``chosen`` (Bool[t] or indices) says so."""
        return Tiles(self.queries, self.keys, self.level, self.plane[chosen], self.row[chosen], self.column[chosen])

    def children(self, level: int) -> Tiles:
        """All tiles of a finer level inside these."""
        side = 1 << (self.level - level)
        row = self.row[:, None, None] * side + torch.arange(side)[:, None]
        column = self.column[:, None, None] * side + torch.arange(side)
        plane, row, column = (t.reshape(-1) for t in torch.broadcast_tensors(self.plane[:, None, None], row, column))
        found = Tiles(self.queries, self.keys, level, plane, row, column)
        return found.pick((row << level < self.queries.count) & (column << level < self.keys.count))

    def query_range(self, coordinate: Coordinate) -> tuple[Tensor, Tensor]:
        """Smallest and largest value over each tile's queries."""
        low, high = self.queries.range(coordinate, self.level)
        return low[self.plane, self.row], high[self.plane, self.row]

    def key_range(self, coordinate: Coordinate) -> tuple[Tensor, Tensor]:
        """Smallest and largest value over each tile's keys."""
        low, high = self.keys.range(coordinate, self.level)
        return low[self.plane, self.column], high[self.plane, self.column]

    def query_start(self, coordinate: Coordinate) -> Tensor:
        """The value at each tile's first query."""
        return self.queries.start(coordinate)[self.plane, self.row]

    def key_start(self, coordinate: Coordinate) -> Tensor:
        """The value at each tile's first key."""
        return self.keys.start(coordinate)[self.plane, self.column]

    def query_shape(self, coordinate: Coordinate) -> Tensor:
        """See :meth:`Side.shape`."""
        return self.queries.shape(coordinate)[self.plane, self.row]

    def key_shape(self, coordinate: Coordinate) -> Tensor:
        """See :meth:`Side.shape`."""
        return self.keys.shape(coordinate)[self.plane, self.column]

    def identity(self) -> list[Tensor]:
        """The signature of rules that look at every tile on its own."""
        return [self.plane, self.row, self.column]
