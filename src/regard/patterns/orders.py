"""Orders of positions under which a pattern's tiles are dense.

A stride in natural order touches one pair in every few of each tile; with the positions sorted by residue it is a few
full tiles. An order says by which number queries and keys are sorted (stably: equals keep their order).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SortKey = Callable[[Tensor], Tensor]  # positions -> the number they are sorted by


@dataclass(frozen=True, eq=False)
class Order:
    """How positions are laid out before they are cut into tiles.

    Args:
        name: equal names mean equal orders.
        query, key: the sort keys; None leaves that side in its natural order.
    """

    name: str
    query: SortKey | None = None
    key: SortKey | None = None


NATURAL = Order("natural")


def by_residue(stride: int) -> Order:
    """Positions that are a multiple of ``stride`` apart side by side."""

    def residue(x: Tensor) -> Tensor:
        return x % stride

    return Order(f"residue {stride}", residue, residue)


def by_axis(grid: tuple[int, ...], axis: int) -> Order:
    """Lines along ``axis`` of a row-major grid side by side: columns for axis 0 of an image."""
    inner = math.prod(grid[axis + 1 :])

    def line(x: Tensor) -> Tensor:
        return x // (inner * grid[axis]) * inner + x % inner

    return Order(f"axis {grid} {axis}", line, line)


def coordinates(grid: tuple[int, ...], x: Tensor) -> list[Tensor]:
    """The coordinates of row-major positions, axis by axis."""
    return [x // math.prod(grid[axis + 1 :]) % side for axis, side in enumerate(grid)]


def by_blocks(grid: tuple[int, ...], tile: int, dilation: tuple[int, ...], stride: int = 1, shift: int = 0) -> Order:
    """Small cubes of a grid side by side, residue classes first where the pattern is dilated.

    ``stride``: queries stand on every ``stride``-th place of each axis only, on a grid of their own, and ``shift`` is
    what their positions are ahead of their numbers on it.
    """
    side = max(1, round(tile ** (1 / len(grid))))

    def cube(x: Tensor, sides: tuple[int, ...], step: int) -> Tensor:
        number = torch.zeros_like(x)
        for c, s, d in zip(coordinates(sides, x), grid, dilation, strict=True):
            place = c * step
            number = (number * d + place % d) * s + place // d // side
        return number

    coarse = tuple(-(-s // stride) for s in grid)
    return Order(
        f"blocks {grid} {side} {dilation} {stride}",
        lambda x: cube(x - shift, coarse, stride),
        lambda x: cube(x, grid, 1),
    )


def by_summary(stride: int, columns: int) -> Order:
    """Keys in the last ``columns`` places of each block of ``stride`` first."""
    return Order(f"summary {stride} {columns}", None, lambda x: (x % stride < stride - columns).long())


def by_start(start: int) -> Order:
    """Positions from ``start`` on first, so that blocks counted from there meet the tiles; those before it last."""

    def before(x: Tensor) -> Tensor:
        return (x < start).long()

    return Order(f"start {start}", before, before)
