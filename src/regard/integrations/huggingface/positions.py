"""Patterns speak of positions; padding on the left and caches put tokens elsewhere. Here the two are brought together.

Position 0 is the first real token of each sequence, so that ``global-4`` means the same tokens however much padding
stands before them, and in a cache that holds the last keys only.
"""

import torch
from torch import Tensor

from regard.patterns import BigBird, Causal, Dilated, Full, Pattern, Strided, Window, from_mask_mod
from regard.patterns.grid import _OnGrid
from regard.patterns.pattern import walk
from regard.patterns.rules import Table
from regard.registry import UnsupportedError

__all__ = ["by_places", "drawn", "refuse_laid_out", "speaks_of_distances"]

_DISTANCES = (Full, Causal, Window, Dilated, Strided)


def speaks_of_distances(pattern: Pattern) -> bool:
    """Whether the pattern stays the same when all positions move together."""
    parts = (part for part in walk(pattern) if not any(isinstance(inner, Pattern) for inner in part.arguments))
    return all(isinstance(part, _DISTANCES) for part in parts)


def refuse_laid_out(pattern: Pattern) -> None:
    """Refuse patterns that are laid out over a whole sequence of known length, where there is padding or a cache.

    Raises:
        UnsupportedError: names the part and the way out.
    """
    for part in walk(pattern):
        if isinstance(part, (BigBird, _OnGrid)):
            raise UnsupportedError(
                f"{part!r} is laid out over the whole sequence: it can have neither padding nor a cache; "
                "give sequences of one length, and use_cache=False"
            )


def by_places(pattern: Pattern, size: int, starts: Tensor | None, q_offset: int, kv_offset: int) -> Pattern:
    """The pattern by rows and columns instead of positions; asked for every pair once, tile by tile.

    Args:
        pattern: by positions.
        size: B.
        starts: Long (B,), the place of each first real token; None where it is 0.
        q_offset, kv_offset: places of the first query and of the first key.
    """
    rule = pattern.rule()
    table = Table(torch.zeros(size, dtype=torch.long) if starts is None else starts)

    def allows(b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
        start = table.on(row.device)[b]
        return rule.allows(b, h, row + q_offset - start, column + kv_offset - start)

    return from_mask_mod(allows, batch=size)


def drawn(pattern: Pattern, queries: Tensor, keys: Tensor, starts: Tensor | None) -> Tensor:
    """The pattern as Bool (B or 1, 1, L, S), for the places of queries (L,) and keys (S,); also in a traced graph."""
    start = torch.zeros(1, dtype=torch.long, device=keys.device) if starts is None else starts
    i = queries[:, None] - start[:, None, None, None]
    j = keys - start[:, None, None, None]
    nobody = torch.zeros((), dtype=torch.long, device=keys.device)
    return pattern.allows(nobody, nobody, i, j)
