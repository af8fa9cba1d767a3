"""Which tiles of a pattern are empty, full or partial, and what is inside the partial ones.

Runs of tiles are split in four until three-valued logic decides them or they are single tiles; only undecided single
tiles are looked into, once for all that are equal inside.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regard.patterns.rules import Rule
from regard.patterns.tiling import Side, Tiles

_LOOK_AT_ONCE = 1 << 22  # pairs evaluated in one go when tiles are looked into


def candidates(rule: Rule, queries: Side, keys: Side) -> tuple[Tiles, Tensor]:
    """The single tiles that may hold an allowed pair, and which of them must be full."""
    tiles = Tiles.everything(queries, keys)
    done: list[Tiles] = []
    while True:
        may, must = rule.judge(tiles)
        done.append(tiles.pick(must & may).children(0))
        open_tiles = tiles.pick(may & ~must)
        if tiles.level == 0:
            break
        tiles = open_tiles.children(tiles.level - 1)
    found = [*done, open_tiles]
    full = torch.cat([torch.full((len(t),), t is not open_tiles) for t in found])
    plane, row, column = (torch.cat([getattr(t, name) for t in found]) for name in ("plane", "row", "column"))
    sort = ((plane * queries.count + row) * keys.count + column).argsort()
    return Tiles(queries, keys, 0, plane[sort], row[sort], column[sort]), full[sort]


def look_into(rule: Rule, tiles: Tiles) -> tuple[Tensor, Tensor]:
    """Each tile's mask number, and the distinct masks: equal signatures are evaluated once, equal masks kept once."""
    queries, keys = tiles.queries, tiles.keys
    signature = [*rule.signature(tiles), queries.real.sum(1)[tiles.row], keys.real.sum(1)[tiles.column]]
    same = _number_rows(torch.stack([column.long() for column in signature], 1))
    first = torch.full((int(same.max()) + 1,), len(tiles)).scatter_reduce(0, same, torch.arange(len(tiles)), "amin")
    seen: dict[tuple[int, ...], int] = {}
    masks: list[Tensor] = []
    number = torch.empty_like(first)
    step = max(1, _LOOK_AT_ONCE // queries.tile**2)
    for start in range(0, len(first), step):
        inside = _evaluate(rule, tiles.pick(first[start : start + step]))
        for place, key in enumerate(_fingerprints(inside)):
            if key not in seen:
                seen[key] = len(masks)
                masks.append(inside[place].clone())
            number[start + place] = seen[key]
    return number[same], torch.stack(masks)


def _number_rows(rows: Tensor) -> Tensor:
    """Number rows so that equal rows have equal numbers, by hashing each to 64 bits (sorting whole rows is slow)."""
    weights = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=torch.Generator().manual_seed(1))
    return (rows * weights).sum(1).unique(return_inverse=True)[1]


def _fingerprints(inside: Tensor) -> list[tuple[int, ...]]:
    """A hash of 126 bits for each mask."""
    weights = torch.randint(-(2**62), 2**62, (2, inside[0].numel()), generator=torch.Generator().manual_seed(2))
    bits = inside.flatten(1).long()
    return list(zip(*((bits * row).sum(1).tolist() for row in weights), strict=True))


def _evaluate(rule: Rule, tiles: Tiles) -> Tensor:
    """The allowed pairs inside tiles, Bool[t, tile, tile]; padding is never allowed."""
    b, h = tiles.queries.batch[tiles.plane][..., None], tiles.queries.head[tiles.plane][..., None]
    i, j = tiles.queries.positions[tiles.row][:, :, None], tiles.keys.positions[tiles.column][:, None, :]
    inside = rule.allows(b, h, i, j).expand(len(tiles), tiles.queries.tile, tiles.keys.tile)
    return inside & tiles.queries.real[tiles.row][:, :, None] & tiles.keys.real[tiles.column][:, None, :]
