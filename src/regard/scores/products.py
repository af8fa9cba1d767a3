"""Products of queries with the rows of a relative table, tile by tile."""

import torch
from torch import Tensor


def products(rows: Tensor, table: Tensor, h: Tensor, entry: Tensor) -> Tensor:
    """rows_t . table[h, entry_tc] for tiles (R, rep, T, C).

    A tile of T x C pairs with a purely relative index meets T + C - 1 entries, however long the table is. Whether it
    does is looked up tile by tile (padding at the end of a sequence is not relative), unless a graph is traced.

    Args:
        rows: (R, rep, T, D).
        table: (H or 1, entries, D).
        h: query heads, (R or 1, rep, 1, 1).
        entry: (R or 1, 1, T, C).
    """
    if table.shape[1] <= 2 * sum(entry.shape[-2:]) or torch.compiler.is_compiling():
        return _from_whole_table(rows, table, h, entry)
    relative = (entry[..., 1:, 1:] == entry[..., :-1, :-1]).flatten(1).all(1)
    if bool(relative.all()):
        return _from_band(rows, table, h, entry)
    if not bool(relative.any()):
        return _from_whole_table(rows, table, h, entry)
    ways = ((_from_band, relative.nonzero()[:, 0]), (_from_whole_table, (~relative).nonzero()[:, 0]))
    found = [way(rows[tiles], table, h if len(h) == 1 else h[tiles], entry[tiles]) for way, tiles in ways]
    return torch.cat(found)[torch.cat([tiles for _, tiles in ways]).argsort()]


def _from_whole_table(rows: Tensor, table: Tensor, h: Tensor, entry: Tensor) -> Tensor:
    chosen = table if len(table) == 1 else table[h[..., 0, 0]]
    found = rows @ chosen.mT
    return found.gather(-1, entry.expand(*found.shape[:-1], entry.shape[-1]))  # take_along_dim would fix the sizes


def _from_band(rows: Tensor, table: Tensor, h: Tensor, entry: Tensor) -> Tensor:
    height, width = entry.shape[-2:]
    used = torch.cat([entry[..., 0].flip(-1), entry[..., 0, 1:]], -1)  # up the first column, then along the first row
    chosen = table[0][used] if len(table) == 1 else table[h[..., 0], used]
    down, across = (torch.arange(size, device=entry.device) for size in (height, width))
    place = across - down[:, None] + height - 1
    return torch.take_along_dim(rows @ chosen.mT, place.expand(entry.shape), -1)
