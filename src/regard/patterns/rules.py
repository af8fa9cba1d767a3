"""Rules: what a pattern says about one pair, and what it can promise about a whole tile of pairs.

Every pattern becomes a small tree of rules. A rule answers three questions with the same numbers: is this pair allowed
(``allows``, elementwise, FlexAttention's mask_mod); may some pair of a tile be allowed and must all of them be
(``judge``: three-valued logic on ranges, so that no N x M is ever looked at); and which tiles have the same inside
(``signature``), so that a million equal tiles are evaluated once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property, reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from regard.patterns.tiling import Tiles

# (b, h, position) -> a number for that position; arguments are int64 tensors that broadcast.
Coordinate = Callable[[Tensor, Tensor, Tensor], Tensor]
Verdict = tuple[Tensor, Tensor]  # (may some pair be allowed, must every pair be allowed), Bool[t] each


def position(b: Tensor, h: Tensor, x: Tensor) -> Tensor:
    """The identity coordinate: where a query or key stands."""
    return x


def block_of(block: int, start: int = 0) -> Coordinate:
    """The number of the block, ``block`` positions each from ``start`` on."""
    return lambda b, h, x: (x - start) // block


class Table:
    """A tensor in which places on any device are looked up; it is copied there once.

    A compiled kernel cannot copy: what compiles a ``mask_mod`` calls it once on the device before
    (:mod:`regard.patterns.block_mask`).
    """

    def __init__(self, values: Tensor) -> None:
        self._copies = {values.device: values}
        self._first = values

    def on(self, device: torch.device) -> Tensor:
        """The values, on that device."""
        if device not in self._copies:
            self._copies[device] = self._first.to(device)
        return self._copies[device]


class Rule(ABC):
    """A predicate on pairs (batch b, head h, query position i, key position j)."""

    @abstractmethod
    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Bool of the broadcast shape: is the pair allowed."""

    @abstractmethod
    def judge(self, tiles: Tiles) -> Verdict:
        """Bounds for whole tiles; both may err, but only towards (True, False), which means "look inside"."""

    @abstractmethod
    def signature(self, tiles: Tiles) -> list[Tensor]:
        """Int64[t] columns; two tiles with equal columns have equal pairs inside."""


class Within(Rule):
    """low(i) <= coordinate(j) <= high(i): windows, blocks, rows, residues and neighbourhoods are all of this one form.

    Args:
        coordinate: a number for each key.
        low, high: bounds set by each query; None leaves that side open.
    """

    def __init__(self, coordinate: Coordinate, low: Coordinate | None = None, high: Coordinate | None = None) -> None:
        self.coordinate, self.low, self.high = coordinate, low, high

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        c = self.coordinate(b, h, j)
        checks = [c >= self.low(b, h, i)] if self.low else []
        checks += [c <= self.high(b, h, i)] if self.high else []
        return reduce(torch.logical_and, checks, torch.ones_like(i + j, dtype=torch.bool))

    def judge(self, tiles: Tiles) -> Verdict:
        least, most = tiles.key_range(self.coordinate)
        may = torch.ones_like(least, dtype=torch.bool)
        must = may.clone()
        if self.low:
            low_least, low_most = tiles.query_range(self.low)
            may &= most >= low_least
            must &= least >= low_most
        if self.high:
            high_least, high_most = tiles.query_range(self.high)
            may &= least <= high_most
            must &= most <= high_least
        return may, must

    def signature(self, tiles: Tiles) -> list[Tensor]:
        """The bounds and the coordinate as shapes relative to one base, and the distance between the bases."""
        may, must = self.judge(tiles)
        start = tiles.key_start(self.coordinate)
        columns = [tiles.key_shape(self.coordinate)]
        for bound in (self.low, self.high):
            if bound:
                columns += [tiles.query_shape(bound), start - tiles.query_start(bound)]
        # Where the tile is decided its position does not matter: the verdict alone tells what is inside.
        return [torch.where(must | ~may, must.long(), column) for column in columns] + [must | ~may]


class Listed(Rule):
    """The pair of blocks (row(i), column(j)) stands in a list of blocks, per head.

    Args:
        row, column: block numbers of queries and keys.
        entries: makes (e, 3) of (head, row, column), when tiles are judged: a graph that is traced needs none.
        member: (h, row, column) -> Bool, the same list asked elementwise.
        by_head: heads have lists of their own; else head 0's serves every head.
    """

    def __init__(
        self,
        row: Coordinate,
        column: Coordinate,
        entries: Callable[[], Tensor],
        member: Callable[[Tensor, Tensor, Tensor], Tensor],
        by_head: bool,
    ) -> None:
        self.row, self.column, self.entries, self.member, self.by_head = row, column, entries, member, by_head
        self._sorted: dict[int, Tensor] = {}

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return self.member(h, self.row(b, h, i), self.column(b, h, j))

    @cached_property
    def _entries(self) -> Tensor:
        return self.entries()

    @cached_property
    def width(self) -> int:
        """More than any block's number, so that row and column make one number."""
        return int(self._entries[:, 1:].max()) + 2 if self._entries.numel() else 2

    def _keys(self, level: int) -> Tensor:
        """The list as sorted numbers, its rows joined in groups of 2**level."""
        if level not in self._sorted:
            head, row, column = self._entries.unbind(1)
            self._sorted[level] = ((head * self.width + (row >> level)) * self.width + column).sort().values
        return self._sorted[level]

    def judge(self, tiles: Tiles) -> Verdict:
        # Clamped to a number that is never listed, on either side: beyond the list there is nothing.
        top, bottom = (side.clamp(-1, self.width - 1) for side in tiles.query_range(self.row))
        left, right = (side.clamp(-1, self.width - 1) for side in tiles.key_range(self.column))
        inside = (top >= 0) & (left >= 0)
        # The smallest dyadic group of rows that holds the tile's rows: bit length of top xor bottom.
        level = torch.where(inside, torch.frexp((top ^ bottom).double()).exponent.long(), 0)
        head = tiles.head if self.by_head else torch.zeros_like(top)
        found = torch.zeros_like(top)
        for step in level.unique().tolist():
            keys, chosen = self._keys(step), level == step
            group = (head[chosen] * self.width + (top[chosen].clamp(min=0) >> step)) * self.width
            found[chosen] = torch.searchsorted(keys, group + right[chosen], right=True) - torch.searchsorted(
                keys, group + left[chosen]
            )
        whole_group = bottom - top + 1 == 1 << level
        cells = (bottom - top + 1) * (right - left + 1)
        return (found > 0) | ~inside, inside & whole_group & (found == cells)

    def signature(self, tiles: Tiles) -> list[Tensor]:
        return tiles.identity()


class Elementwise(Rule):
    """Any predicate: promises nothing about tiles, so every tile is looked into."""

    def __init__(self, predicate: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
        self.predicate = predicate

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return self.predicate(b, h, i, j)

    def judge(self, tiles: Tiles) -> Verdict:
        may = torch.ones(len(tiles), dtype=torch.bool)
        return may, ~may

    def signature(self, tiles: Tiles) -> list[Tensor]:
        return tiles.identity()


class AllOf(Rule):
    """Every one of the rules allows the pair; no rules allow everything."""

    def __init__(self, *rules: Rule) -> None:
        self.rules = rules

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        everything = torch.ones_like(i + j, dtype=torch.bool)
        return reduce(torch.logical_and, (rule.allows(b, h, i, j) for rule in self.rules), everything)

    def judge(self, tiles: Tiles) -> Verdict:
        may = must = torch.ones(len(tiles), dtype=torch.bool)
        for rule in self.rules:
            some, every = rule.judge(tiles)
            may, must = may & some, must & every
        return may, must

    def signature(self, tiles: Tiles) -> list[Tensor]:
        return [column for rule in self.rules for column in rule.signature(tiles)]


class AnyOf(Rule):
    """At least one of the rules allows the pair; no rules allow nothing."""

    def __init__(self, *rules: Rule) -> None:
        self.rules = rules

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        nothing = torch.zeros_like(i + j, dtype=torch.bool)
        return reduce(torch.logical_or, (rule.allows(b, h, i, j) for rule in self.rules), nothing)

    def judge(self, tiles: Tiles) -> Verdict:
        may = must = torch.zeros(len(tiles), dtype=torch.bool)
        for rule in self.rules:
            some, every = rule.judge(tiles)
            may, must = may | some, must | every
        return may, must

    def signature(self, tiles: Tiles) -> list[Tensor]:
        return [column for rule in self.rules for column in rule.signature(tiles)]


class Complement(Rule):
    """The rule forbids the pair."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return ~self.rule.allows(b, h, i, j)

    def judge(self, tiles: Tiles) -> Verdict:
        may, must = self.rule.judge(tiles)
        return ~must, ~may

    def signature(self, tiles: Tiles) -> list[Tensor]:
        return self.rule.signature(tiles)
