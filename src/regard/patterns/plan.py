"""Plans: a pattern as the sparse list of its non-empty tiles, found without ever looking at N x M.

A plan is a list of disjoint parts, each laid out in the order of positions that makes its tiles densest; attention over
the parts is joined by ``merge``.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from threading import Lock

import torch
from torch import Tensor

from regard.patterns.pattern import Pattern

FULL = -1  # the mask number of a tile whose pairs are all allowed


@dataclass(frozen=True, eq=False)
class Part:
    """Tiles of one layout, sorted by plane, row and column.

    A plane is one sequence and one head as far as the pattern tells them apart: with ``by_head`` plane p is sequence
    p // len(heads) and head ``heads[p % len(heads)]``; without it plane p is sequence p and serves all of ``heads``.

    Attributes:
        order: the name of the order the positions are laid out in.
        batch: sequences told apart; one plane serves all where it is 1.
        heads: the heads this part concerns; None for all.
        query_rows, key_rows: the row at each place, Long[tiles * tile], -1 where there is none (padding).
        natural: both sides are in their natural order, padded at the end only.
        row_pointer: where each (plane, row of tiles) starts in the list, Long[planes * rows + 1].
        column: each tile's column of tiles, Long[t].
        mask: each tile's number in ``masks``, or FULL, Long[t].
        masks: distinct insides of partial tiles, Bool[u, tile, tile].
        pairs: allowed pairs, over all planes.
    """

    order: str
    tile: int
    batch: int
    heads: tuple[int, ...] | None
    by_head: bool
    query_rows: Tensor
    key_rows: Tensor
    natural: bool
    row_pointer: Tensor
    column: Tensor
    mask: Tensor
    masks: Tensor
    pairs: int

    @property
    def planes(self) -> int:
        """Number of planes."""
        return self.batch * (len(self.heads) if self.heads and self.by_head else 1)

    @property
    def rows(self) -> int:
        """Rows of tiles in a plane."""
        return len(self.query_rows) // self.tile

    @property
    def columns(self) -> int:
        """Columns of tiles in a plane."""
        return len(self.key_rows) // self.tile

    @cached_property
    def row(self) -> Tensor:
        """Each tile's (plane, row of tiles) as one number, Long[t]."""
        return torch.repeat_interleave(torch.arange(len(self.row_pointer) - 1), self.row_pointer.diff())

    @cached_property
    def by_columns(self) -> tuple[Tensor, Tensor]:
        """The same list by columns: pointer Long[planes * columns + 1] and, in that order, each tile's place."""
        plane = self.row // max(self.rows, 1)
        key = plane * self.columns + self.column
        counts = torch.bincount(key, minlength=self.planes * self.columns)
        return torch.cat([counts.new_zeros(1), counts.cumsum(0)]), key.argsort(stable=True)


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything an engine needs to know about a pattern at given lengths.

    Attributes:
        n, m: queries and keys.
        heads: number of heads where the pattern tells them apart.
        parts: disjoint parts; every allowed pair is in exactly one.
    """

    n: int
    m: int
    heads: int | None
    parts: tuple[Part, ...]

    @cached_property
    def pairs(self) -> int:
        """Allowed pairs, summed over the sequences and heads that the pattern tells apart."""
        return sum(p.pairs * self._spread(p) for p in self.parts)

    @property
    def tiles(self) -> int:
        """Tiles to be computed, counted like ``pairs``."""
        return sum(len(p.column) * self._spread(p) for p in self.parts)

    @property
    def density(self) -> float:
        """Share of pairs that is allowed."""
        return self.pairs / max(1, self._batch * (self.heads or 1) * self.n * self.m)

    @cached_property
    def _batch(self) -> int:
        return max((p.batch for p in self.parts), default=1)

    def _spread(self, part: Part) -> int:
        """How many of the planes that are told apart each plane of the part stands for."""
        served = 1 if part.by_head else len(part.heads) if part.heads else self.heads or 1
        return (self._batch // part.batch) * served


class PlanCache:
    """The plans used last, by text and sizes, and by identity and version of the tensors a pattern holds."""

    def __init__(self, size: int = 64) -> None:
        self._size, self._lock = size, Lock()
        self._kept: OrderedDict[tuple[object, ...], tuple[tuple[Tensor, ...], Plan]] = OrderedDict()

    def get(
        self, pattern: Pattern, n: int, m: int, heads: int | None, q_offset: int | None, tile: int, reorder: bool = True
    ) -> Plan:
        """``pattern.plan(...)``, remembered; the tensors are kept alive with their plan, so identity is safe."""
        if any(t.is_inference() for t in pattern.tensors):  # they do not tell when they are written to
            return pattern.plan(n, m, heads, q_offset, tile, reorder)
        tensors = tuple((id(t), t._version) for t in pattern.tensors)
        key = (pattern.spec, tensors, n, m, heads if pattern.by_head else None, q_offset, tile, reorder)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][1]
        found = pattern.plan(n, m, heads, q_offset, tile, reorder)
        with self._lock:
            self._kept[key] = pattern.tensors, found
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return found


plans = PlanCache()
