"""Pictures of attention maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from regard.inspect.maps import IN_WORDS, Map

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELLED = 128
"""Beyond so many tokens nobody could read them along an axis."""


def plot(found: Map, batch: int, head: int | None, tokens: Sequence[str] | None, ax: Axes | None) -> Axes:
    """Draw one sequence's map; see :meth:`regard.inspect.Map.plot`."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("Map.plot draws with matplotlib: pip install 'regard[race]'") from error
    for name, number, count in (("batch", batch, len(found.tensor)), ("head", head, found.tensor.shape[1])):
        if number is not None and not -count <= number < count:
            raise ValueError(f"{name} {number} does not exist: the map has {count}, from 0")
    maps = found.tensor[batch].detach().float().cpu()
    cells = relative(maps.mean(0) if head is None else maps[head])
    n, m = cells.shape
    if tokens is not None and len(tokens) not in (n, m):
        raise ValueError(f"{len(tokens)} tokens, but the map has {n} queries and {m} keys")
    axes = pyplot.figure(figsize=(5.4, 4.6), layout="constrained").subplots() if ax is None else ax
    signed = bool((cells < 0).any())
    colours, lowest = ("RdBu", -1) if signed else ("Blues", 0)
    image = axes.imshow(cells.numpy(), cmap=colours, vmin=lowest, vmax=1, interpolation="nearest", aspect="equal")
    axes.figure.colorbar(image, ax=axes, label="weight / largest of its row")
    which = f", head {head}" if head is not None else f", mean of {len(maps)} heads" if len(maps) > 1 else ""
    axes.set(title=f"{IN_WORDS[found.kind]}{which}", xlabel=f"key (0 to {m - 1})", ylabel=f"query (0 to {n - 1})")
    _write(axes, tokens, n, m)
    return axes


def relative(cells: Tensor) -> Tensor:
    """Each row (..., N, M) divided by its largest magnitude; rows of 0 stay 0."""
    largest = cells.abs().amax(-1, keepdim=True)
    return cells / largest.where(largest > 0, 1.0)


def _write(axes: Axes, tokens: Sequence[str] | None, n: int, m: int) -> None:
    """Tokens along the axes that they fit."""
    for axis, length, turn in ((axes.xaxis, m, 90), (axes.yaxis, n, 0)):
        shown = tokens is not None and len(tokens) == length <= LABELLED
        axis.set_ticks(range(length) if shown else [])
        if tokens is not None and shown:
            axis.set_ticklabels(
                [repr(token)[1:-1] for token in tokens], rotation=turn, fontsize=max(3, min(9, 240 / length))
            )
