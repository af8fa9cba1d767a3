"""Block layouts: the six of DeepSpeed's sparse attention, as pure functions of the number of blocks.

Each returns Bool[H or 1, blocks, blocks], rows for queries and columns for keys, and becomes a pattern by
:func:`regard.patterns.from_blocks`::

    pattern = Causal() & from_blocks(fixed_layout(2048 // 16, causal=True), 16)

All parts are united. ``causal=True`` is theirs ("unidirectional") and speaks of blocks: those on the diagonal stay
whole, so causality token by token needs ``Causal() &``. Random columns are an argument; :func:`random_columns` draws
them.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor

__all__ = [
    "bigbird_layout",
    "dense_layout",
    "fixed_layout",
    "longformer_layout",
    "random_columns",
    "sliding_layout",
    "variable_layout",
]


def random_columns(
    blocks: int, count: int, *, heads: int = 1, causal: bool = False, generator: Generator | None = None
) -> Int[Tensor, "heads blocks count"]:
    """Draw ``count`` different columns for every block row; with ``causal`` none that lies after the row.

    Raises:
        ValueError: a row has fewer than ``count`` columns to draw from.

    Example:
        >>> random_columns(6, 2, heads=3).shape
        torch.Size([3, 6, 2])
    """
    fewest = 1 if causal else blocks
    if count > fewest:
        raise ValueError(f"{count} random blocks cannot be drawn from the {fewest} columns of the shortest row")
    rank = torch.rand(heads, blocks, blocks, generator=generator)
    if causal:
        rank = rank + torch.ones(blocks, blocks).triu(1)
    return rank.argsort(-1)[..., :count]


def dense_layout(blocks: int) -> Bool[Tensor, "1 blocks blocks"]:
    """Every block."""
    return torch.ones(1, blocks, blocks, dtype=torch.bool)


def fixed_layout(
    blocks: int,
    *,
    heads: int = 1,
    local: int = 4,
    summary: int = 1,
    patterns: int = 1,
    horizontal: bool = False,
    causal: bool = False,
) -> Bool[Tensor, "heads blocks blocks"]:
    """Windows of blocks, and in every window a few summary blocks that all rows see.

    Args:
        blocks: number of block rows and columns.
        heads: how many heads the layout tells apart.
        local: blocks in a window.
        summary: consecutive summary blocks in a window; a divisor of ``local``.
        patterns: head h takes the group of summary blocks that is h % patterns groups before the last of the window.
        horizontal: summary blocks see every block, too.
        causal: local blocks up to the diagonal, summaries from their first row on.

    Raises:
        ValueError: the summaries do not fit into a window, or ``horizontal`` together with ``causal``.

    Example:
        >>> fixed_layout(4, local=2, causal=True)[0].int().tolist()
        [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]
    """
    if local % summary or patterns * summary > local:
        raise ValueError(f"{patterns} patterns of {summary} summary blocks do not fit into a window of {local} blocks")
    window = torch.arange(blocks) // local
    layout = _local(window, causal).repeat(heads, 1, 1)
    full = blocks - blocks % local  # where a last, shorter window begins
    for head in range(heads):
        first = local - (1 + head % patterns) * summary
        starts = list(range(first, full, local))
        if full < blocks:
            starts.append(min(full + first, blocks - summary))
        for start in starts:
            _add_global(layout[head], start, start + summary, horizontal, causal)
    return layout


def variable_layout(
    blocks: int,
    *,
    windows: Sequence[int] = (4,),
    globals: Sequence[int] = (0,),
    ends: Sequence[int] | None = None,
    random: Int[Tensor, "heads blocks count"] | None = None,
    horizontal: bool = False,
    causal: bool = False,
) -> Bool[Tensor, "heads blocks blocks"]:
    """Windows of the listed sizes (the last one repeats), listed global columns and random blocks.

    Args:
        blocks: number of block rows and columns.
        windows: blocks in the first window, the second, ...
        globals: global blocks, or where the global ranges begin if ``ends`` is given; those beyond the last block are
            left out.
        ends: where the global ranges end, exclusive.
        random: columns for every block row, per head; they count above the diagonal as well.
        horizontal: global blocks see every block, too.
        causal: local blocks up to the diagonal, global columns from their first row on.

    Raises:
        ValueError: ``horizontal`` together with ``causal``, or ranges without a length.
    """
    sizes = [*windows]
    while sum(sizes) < blocks:
        sizes.append(sizes[-1])
    window = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))[:blocks]
    layout = _local(window, causal) | _scattered(blocks, random)
    for start, end in _ranges(globals, ends, blocks):
        for head in layout:
            _add_global(head, start, end, horizontal, causal)
    return layout


def bigbird_layout(
    blocks: int,
    *,
    random: Int[Tensor, "heads blocks count"] | None = None,
    window: int = 3,
    globals: int = 1,
    causal: bool = False,
) -> Bool[Tensor, "heads blocks blocks"]:
    """A sliding window, the first blocks as global rows and columns, and random blocks.

    Args:
        blocks: number of block rows and columns.
        random: columns for every block row, per head.
        window: blocks in the window: ``window // 2`` to each side and the row itself.
        globals: how many of the first blocks are global.
        causal: drop what lies above the diagonal.

    Raises:
        ValueError: fewer blocks than the window or the globals have.
    """
    if blocks < globals:
        raise ValueError(f"{globals} global blocks do not fit into a row of {blocks}")
    layout = longformer_layout(blocks, window=window, globals=range(globals)) | _scattered(blocks, random)
    return layout.tril() if causal else layout


def longformer_layout(
    blocks: int,
    *,
    window: int = 3,
    globals: Sequence[int] = (0,),
    ends: Sequence[int] | None = None,
    causal: bool = False,
) -> Bool[Tensor, "1 blocks blocks"]:
    """A sliding window and listed blocks as global rows and columns.

    Args:
        blocks: number of block rows and columns.
        window: blocks in the window: ``window // 2`` to each side and the row itself.
        globals, ends: as in :func:`variable_layout`.
        causal: drop what lies above the diagonal.

    Raises:
        ValueError: fewer blocks than the window has, or ranges without a length.
    """
    layout = sliding_layout(blocks, window=window, causal=False)
    for start, end in _ranges(globals, ends, blocks):
        _add_global(layout[0], start, end, horizontal=True, causal=False)
    return layout.tril() if causal else layout


def sliding_layout(blocks: int, *, window: int = 3, causal: bool = True) -> Bool[Tensor, "1 blocks blocks"]:
    """A sliding window: ``window // 2`` blocks to each side (``causal``: before) and the row itself.

    Raises:
        ValueError: fewer blocks than the window has.

    Example:
        >>> sliding_layout(3)[0].int().tolist()
        [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    """
    if blocks < window:
        raise ValueError(f"a sliding window of {window} blocks does not fit into a row of {blocks}")
    side = window // 2
    layout = torch.ones(1, blocks, blocks, dtype=torch.bool).triu(-side)
    return layout.tril(0 if causal else side)


def _local(window: Tensor, causal: bool) -> Tensor:
    """Blocks that lie in the same window."""
    layout = window[:, None] == window
    return (layout.tril() if causal else layout)[None]


def _scattered(blocks: int, columns: Tensor | None) -> Tensor:
    """The listed columns of every row."""
    if columns is None:
        return torch.zeros(1, blocks, blocks, dtype=torch.bool)
    if columns.shape[1] != blocks:
        raise ValueError(f"random columns for {columns.shape[1]} block rows, but the layout has {blocks}")
    return torch.zeros(len(columns), blocks, blocks, dtype=torch.bool).scatter(-1, columns.cpu(), True)


def _add_global(layout: Tensor, start: int, end: int, horizontal: bool, causal: bool) -> None:
    """Make the blocks from ``start`` to ``end`` visible to all rows, to those from ``start`` on if ``causal``."""
    if horizontal and causal:
        raise ValueError("horizontal=True lets summary blocks see the future: causal=True cannot be kept")
    layout[start if causal else 0 :, start:end] = True
    if horizontal:
        layout[start:end] = True


def _ranges(starts: Sequence[int], ends: Sequence[int] | None, blocks: int) -> list[tuple[int, int]]:
    """The global ranges that begin inside the layout, cut at its end."""
    ends = [start + 1 for start in starts] if ends is None else ends
    if len(starts) != len(ends) or any(start >= end for start, end in zip(starts, ends, strict=False)):
        raise ValueError(f"global ranges from {[*starts]} to {[*ends]}: each start needs an end after it")
    return [(start, min(end, blocks)) for start, end in zip(starts, ends, strict=True) if start < blocks]
