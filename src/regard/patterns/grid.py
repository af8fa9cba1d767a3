"""Patterns on row-major grids: lines, criss-crosses, neighbourhoods and blocks with halos, in one to three axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from regard.patterns.algebra import Or
from regard.patterns.orders import Order, by_axis, by_blocks
from regard.patterns.pattern import Pattern
from regard.patterns.rules import AllOf, Coordinate, Rule, Within
from regard.patterns.sequence import at_least, same

Each = int | Sequence[int]  # one number for all axes, or one for each


def _per_axis(name: str, value: Each, axes: int, least: int) -> tuple[int, ...]:
    """One whole number for each axis."""
    values = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(values) != axes:
        raise ValueError(f"{name} {values} has {len(values)} numbers for a grid of {axes} axes")
    return tuple(at_least(name, x, least) for x in values)


class _OnGrid(Pattern):
    """A pattern on a grid of one to three axes; keys are the whole grid, queries may be a stretch of it."""

    def __init__(self, grid: Each, *rest: object) -> None:
        sides = (grid,) if isinstance(grid, int) else tuple(grid)
        if not 1 <= len(sides) <= 3:
            raise ValueError(f"a grid has one to three axes, not {len(sides)}: {sides}")
        self.grid = _per_axis("grid", sides, len(sides), 1)
        super().__init__(self.grid, *rest)

    def bind(self, n: int, m: int | None = None, heads: int | None = None) -> Pattern:
        cells, keys = math.prod(self.grid), n if m is None else m
        if keys != cells or n > cells:
            raise ValueError(f"a grid of {self.grid} has {cells} cells, which {n} queries and {keys} keys do not fit")
        return self

    def axis(self, number: int) -> Coordinate:
        """The coordinate along one axis."""
        inner, side = math.prod(self.grid[number + 1 :]), self.grid[number]
        return lambda b, h, x: x // inner % side


class Axis(_OnGrid):
    """All coordinates but the one along ``axis`` are equal."""

    def __init__(self, grid: Each, axis: int) -> None:
        axes = 1 if isinstance(grid, int) else len(grid)
        if not -axes <= axis < axes:
            raise ValueError(f"a grid of {axes} axes has no axis {axis}")
        self.number = axis % axes
        super().__init__(grid, self.number)

    def rule(self) -> Rule:
        outer = math.prod(self.grid[self.number :])
        inner = math.prod(self.grid[self.number + 1 :])
        # One number for the whole line: what comes before the axis, then what comes after it.
        return same(lambda b, h, x: x // outer * inner + x % inner)

    def orders(self, tile: int) -> tuple[Order, ...]:
        return () if self.number == len(self.grid) - 1 else (by_axis(self.grid, self.number),)


class Rows(Axis):
    """Query and key lie in the same row of an image (H, W)."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__(_image(grid), 1)
        Pattern.__init__(self, self.grid)


class Columns(Axis):
    """Query and key lie in the same column of an image (H, W)."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__(_image(grid), 0)
        Pattern.__init__(self, self.grid)


def _image(grid: tuple[int, int]) -> tuple[int, int]:
    if len(grid) != 2:
        raise ValueError(f"rows and columns belong to images (H, W), not to a grid of {len(grid)} axes: {grid}")
    return grid


class CrissCross(_OnGrid):
    """At most one coordinate differs (CCNet, arXiv:1811.11721)."""

    def __init__(self, grid: Each) -> None:
        super().__init__(grid)

    def rule(self) -> Rule:
        return Or(*self.alternatives()).rule()

    def orders(self, tile: int) -> tuple[Order, ...]:
        return Or(*self.alternatives()).orders(tile)

    def alternatives(self) -> list[Pattern]:
        return [Axis(self.grid, axis) for axis in reversed(range(len(self.grid)))]


class Neighborhood(_OnGrid):
    """The ``kernel`` nearest places along each axis (NATTEN's rules, arXiv:2204.07143 to 2504.16922).

    Args:
        grid: sides of the grid, one to three.
        kernel: neighbours per axis; kernel * dilation beyond the side is cut to side // dilation.
        dilation: keys only from the query's own residue class; everything below happens inside the class.
        stride: queries of a group of ``stride`` share their leader's window (one number per axis).
        causal: per axis, the window ends at the query.
        edge: "shift" moves the window inwards at the border, "clip" cuts it there.
    """

    def __init__(
        self,
        grid: Each,
        kernel: Each,
        dilation: Each = 1,
        stride: Each = 1,
        causal: bool | Sequence[bool] = False,
        edge: Literal["shift", "clip"] = "shift",
    ) -> None:
        axes = 1 if isinstance(grid, int) else len(grid)
        self.kernel = _per_axis("kernel", kernel, axes, 1)
        self.dilation, self.stride = _per_axis("dilation", dilation, axes, 1), _per_axis("stride", stride, axes, 1)
        self.causal = (causal,) * axes if isinstance(causal, bool) else tuple(bool(c) for c in causal)
        if len(self.causal) != axes:
            raise ValueError(f"causal {self.causal} has {len(self.causal)} entries for a grid of {axes} axes")
        if edge not in ("shift", "clip"):
            raise ValueError(f'edge is "shift" or "clip", not {edge!r}')
        self.edge = edge
        super().__init__(grid, self.kernel, self.dilation, self.stride, self.causal, edge)
        for side, k, d, s in zip(self.grid, self.kernel, self.dilation, self.stride, strict=True):
            if d > side:
                raise ValueError(f"dilation {d} is larger than the side {side} of the grid {self.grid}")
            if s > k:
                raise ValueError(f"stride {s} is larger than the kernel {k}: queries would lie outside their window")

    def rule(self) -> Rule:
        return AllOf(*(self._along(axis) for axis in range(len(self.grid))))

    def _along(self, axis: int) -> Rule:
        """The rule of one axis: start <= place <= end inside the query's residue class."""
        side, dilation = self.grid[axis], self.dilation[axis]
        where = self.axis(axis)

        def number(b: Tensor, h: Tensor, x: Tensor) -> Tensor:
            # Residue class first, so that one interval of numbers means "same class and between start and end".
            c = where(b, h, x)
            return c % dilation * side + c // dilation

        def bound(first: bool) -> Coordinate:
            def find(b: Tensor, h: Tensor, x: Tensor) -> Tensor:
                c = where(b, h, x)
                residue, place = c % dilation, c // dilation
                return residue * side + self._ends(axis, place, (side - 1 - residue) // dilation + 1)[0 if first else 1]

            return find

        return Within(number, bound(first=True), bound(first=False))

    def _ends(self, axis: int, place: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """First and last place of the window inside a class of ``length`` places."""
        kernel = min(self.kernel[axis], self.grid[axis] // self.dilation[axis])
        stride = min(self.stride[axis], kernel)
        group = place // stride * stride
        if self.causal[axis]:
            leader = torch.minimum(group + stride - 1, length - 1)
            return (leader - kernel + 1).clamp(min=0), place
        leader = torch.minimum(group + stride // 2, length - 1)
        start = leader - kernel // 2
        if self.edge == "clip":
            return start.clamp(min=0), torch.minimum(start + kernel - 1, length - 1)
        start = torch.minimum(start.clamp(min=0), length - kernel)
        return start, start + kernel - 1

    def orders(self, tile: int) -> tuple[Order, ...]:
        if len(self.grid) == 1 and self.dilation == (1,):
            return ()
        return (by_blocks(self.grid, tile, self.dilation),)


class Halo(_OnGrid):
    """j lies in i's block of the grid, extended by ``halo`` on each side (HaloNet, arXiv:2103.12731).

    Args:
        stride: queries stand on every ``stride``-th place of each axis only: n = prod(ceil(side / stride)).
    """

    def __init__(self, grid: Each, block: Each, halo: Each, stride: int = 1) -> None:
        axes = 1 if isinstance(grid, int) else len(grid)
        self.block, self.halo = _per_axis("block", block, axes, 1), _per_axis("halo", halo, axes, 0)
        self.stride = at_least("stride", stride, 1)
        if any(b % self.stride for b in self.block):
            raise ValueError(f"stride {stride} does not divide the block {self.block}: blocks would lose queries")
        self.rectangular = self.stride > 1
        super().__init__(grid, self.block, self.halo, self.stride)
        self.coarse = tuple(-(-side // self.stride) for side in self.grid)

    def bind(self, n: int, m: int | None = None, heads: int | None = None) -> Pattern:
        if self.stride == 1:
            return super().bind(n, m, heads)
        queries, cells = math.prod(self.coarse), math.prod(self.grid)
        if (n, m) != (queries, cells):
            raise ValueError(f"{self!r} joins {queries} queries to {cells} keys, and {n} x {m} were given")
        return self

    def rule(self) -> Rule:
        # Strided queries are numbered on their own grid; the default offset m - n of positions is taken off again.
        shift = math.prod(self.grid) - math.prod(self.coarse)
        return AllOf(*(self._along(axis, shift) for axis in range(len(self.grid))))

    def _along(self, axis: int, shift: int) -> Rule:
        block, halo = self.block[axis], self.halo[axis]
        inner, side = math.prod(self.coarse[axis + 1 :]), self.coarse[axis]

        def start(b: Tensor, h: Tensor, i: Tensor) -> Tensor:
            return (i - shift) // inner % side * self.stride // block * block

        return Within(
            self.axis(axis), lambda b, h, i: start(b, h, i) - halo, lambda b, h, i: start(b, h, i) + block - 1 + halo
        )

    def orders(self, tile: int) -> tuple[Order, ...]:
        if len(self.grid) == 1:
            return ()
        shift = math.prod(self.grid) - math.prod(self.coarse)
        return (by_blocks(self.grid, tile, (1,) * len(self.grid), self.stride, shift),)
