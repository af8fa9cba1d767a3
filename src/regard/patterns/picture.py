"""Pictures of patterns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regard.patterns.pattern import Pattern

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LARGEST_DRAWN = 1024  # beyond it a cell of the picture is the density of a tile


def plot(pattern: Pattern, n: int, m: int | None = None, heads: int | None = None) -> Axes:
    """Draw the allowed pairs, queries downwards and keys to the right; different heads side by side.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("pattern.plot draws with matplotlib: pip install 'regard[race]'") from error
    m = n if m is None else m
    panels = density_map(pattern, n, m, heads)
    count = len(panels)
    axes = pyplot.figure(figsize=(min(3.2 * count, 16.0), 3.4)).subplots()
    cells = torch.ones(panels.shape[1], count * (panels.shape[2] + 1) - 1).mul(torch.nan)
    for number, panel in enumerate(panels):
        start = number * (panels.shape[2] + 1)
        cells[:, start : start + panels.shape[2]] = panel
    axes.imshow(cells.numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="equal")
    axes.set(title=repr(pattern), xlabel=f"key (0 to {m - 1})", ylabel=f"query (0 to {n - 1})", xticks=[], yticks=[])
    return axes


def density_map(
    pattern: Pattern, n: int, m: int | None = None, heads: int | None = None, largest: int = LARGEST_DRAWN
) -> Tensor:
    """The share of allowed pairs per cell, Float[heads or 1, rows, columns]: pairs themselves while they fit.

    Beyond ``largest`` a cell is a tile of the plan, so a million positions can be drawn; of several sequences the
    first is taken.
    """
    m = n if m is None else m
    if max(n, m) <= largest:
        dense = pattern.dense(n, m, heads).float()
        return dense[0] if dense.ndim == 4 else dense.reshape(-1, n, m)
    tile = -(-max(n, m) // largest)
    plan = pattern.plan(n, m, heads, tile=tile, reorder=False)
    picture = torch.zeros(plan.heads or 1, -(-n // tile), -(-m // tile))
    for part in plan.parts:
        share = torch.cat([part.masks.flatten(1).float().mean(1), torch.ones(1)])[part.mask]
        plane, row = part.row // part.rows, part.row % part.rows
        served = torch.tensor(part.heads or range(plan.heads or 1))
        first = plane < (len(served) if part.by_head else 1)
        head = served[plane[first]][:, None] if part.by_head else served[None]
        picture[head, row[first][:, None], part.column[first][:, None]] = share[first][:, None]
    return picture
