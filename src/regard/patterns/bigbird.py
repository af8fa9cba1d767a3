"""BigBird's pattern: a window of blocks, global ones, and lists of blocks, random or chosen, for each head."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from regard.patterns.orders import Order, by_start
from regard.patterns.pattern import Pattern
from regard.patterns.rules import AnyOf, Listed, Rule, Table, Within, block_of
from regard.patterns.sequence import at_least

_SEEDS_APART = 0x9E3779B9  # keeps the heads' streams of random numbers apart


class BigBird(Pattern):
    """Window, global and random blocks, per head (arXiv:2007.14062, the internal-global form).

    Args:
        block: tokens a block.
        window: blocks around a query's own block (3 = one on each side).
        globals: blocks that see all and are seen by all; first and last for 2, one more at the front for odd numbers.
        random: further blocks drawn for each block of queries and each head.
        seed: of the draw; or a saved table Long[H, blocks, random] of block numbers, -1 for none.

    A drawn block is never one of the window or a global one, and none is drawn twice; as in the authors' code, the
    second row of blocks does not draw the last but one and the last but one not the second.
    """

    by_head = True

    def __init__(self, block: int, window: int, globals: int, random: int, seed: int | Tensor = 0) -> None:
        self.block, self.window = at_least("block", block, 1), at_least("window", window, 1)
        self.globals, self.random = at_least("globals", globals, 0), at_least("random", random, 0)
        self.seed = seed
        if isinstance(seed, Tensor):
            if seed.ndim != 3 or seed.is_floating_point():
                raise ValueError(f"a table of random blocks is Long[H, blocks, random], not {list(seed.shape)}")
            self.heads = len(seed)
        super().__init__(self.block, self.window, self.globals, self.random, seed)

    def bind(self, n: int, m: int | None = None, heads: int | None = None) -> Pattern:
        if heads is None:
            raise ValueError(f"{self!r} draws its blocks for each head: say heads=")
        blocks = -(-(n if m is None else m) // self.block)
        if not isinstance(self.seed, Tensor):
            return _BoundBigBird(self, self.draw(heads, blocks), blocks)
        if self.seed.shape[1] != blocks:
            raise ValueError(f"the table of random blocks has {self.seed.shape[1]} rows, and there are {blocks} blocks")
        return _BoundBigBird(self, self.seed.long(), blocks)

    def draw(self, heads: int, blocks: int) -> Int[Tensor, "H blocks random"]:
        """A legal table from the seed, -1 where a row has fewer legal blocks than ``random``."""
        front, back = -(-self.globals // 2), self.globals // 2
        tables: list[Tensor] = []
        for head in range(heads):
            generator = torch.Generator().manual_seed(int(self.seed) + head * _SEEDS_APART)
            tables.append(draw_blocks(1, blocks, self.random, self.window, front=front, back=back, generator=generator))
        return torch.cat(tables)


def draw_blocks(
    heads: int,
    blocks: int,
    random: int,
    window: int,
    *,
    front: int = 0,
    back: int = 0,
    within: int | None = None,
    causal: bool = False,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "H blocks random"]:
    """Random blocks for each block of queries, legal by BigBird's rules: none of its window, none global, none twice.

    Args:
        heads, blocks, random: the sizes of the table.
        window: blocks around the row's own.
        front, back: global blocks at both ends; with both, the second row does not draw the last block but one and the
            last row but one not the second, as in the authors' code.
        within: draw among the first so many blocks only.
        causal: draw earlier blocks only.
        generator: of the draw; torch's own by default.

    Returns:
        Block numbers, -1 first where a row has fewer legal blocks than ``random``.

    Example:
        >>> draw_blocks(1, 5, 1, 3, causal=True)[0].flatten().tolist()[:3]
        [-1, -1, 0]
    """
    row, reach = torch.arange(blocks, device="cpu"), window // 2
    first = torch.full_like(row, front)
    stop = torch.full_like(row, max(blocks - back, front))
    if front and back and blocks > 4:
        stop[1] -= 1
        first[-2] += 1
    if within is not None:
        stop.clamp_(max=within)
    if causal:
        stop = torch.minimum(stop, row)
    stop = torch.maximum(stop, first)
    hole_start = (row - reach).clamp(min=first, max=stop)
    hole_stop = (row + reach + 1).clamp(min=first, max=stop)
    hole = hole_stop - hole_start
    chosen = _distinct((stop - first - hole).expand(heads, -1), random, generator)
    place = chosen + first[:, None]
    place = place + torch.where(place >= hole_start[:, None], hole[:, None], 0)
    return torch.where(chosen >= 0, place, -1)


def _distinct(legal: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """``count`` distinct numbers below each row's ``legal``, sorted, -1 first where there are not enough."""
    chosen = torch.full((*legal.shape, count), -1, device="cpu")
    for step in range(count):
        left = legal - step
        drawn = torch.rand(legal.shape, generator=generator, dtype=torch.float64, device="cpu")
        pick = (drawn * left.clamp(min=1)).long()
        for earlier in chosen.sort(-1).values.unbind(-1):  # step over those already taken, smallest first
            pick += ((earlier >= 0) & (pick >= earlier)).long()
        chosen[..., step] = torch.where(left > 0, pick, -1)
    return chosen.sort(-1).values


class _BoundBigBird(Pattern):
    """BigBird with its table drawn for a number of blocks."""

    by_head = True

    def __init__(self, source: BigBird, table: Tensor, blocks: int) -> None:
        self.source, self.table, self.blocks, self.heads = source, table, blocks, len(table)
        super().__init__(source, table, blocks)

    def rule(self) -> Rule:
        reach, number = self.source.window // 2, block_of(self.source.block)
        window = Within(number, lambda b, h, i: number(b, h, i) - reach, lambda b, h, i: number(b, h, i) + reach)
        front, back = -(-self.source.globals // 2), self.source.globals // 2

        def is_global(b: Tensor, h: Tensor, x: Tensor) -> Tensor:
            block = number(b, h, x)
            return ((x >= 0) & ((block < front) | (block >= self.blocks - back))).long()

        asks = Within(lambda b, h, j: torch.ones_like(j), lambda b, h, i: 1 - is_global(b, h, i), is_global)
        told = Within(is_global, lambda b, h, i: torch.ones_like(i))
        return AnyOf(window, asks, told, ListedBlocks(self.source.block, self.table).rule())


class ListedBlocks(Pattern):
    """j's block stands in the list of i's block, per head: random blocks, or chosen ones.

    Args:
        block: tokens a block.
        table: Long[H, rows, count] of block numbers; negative ones, and those beyond the sequence, are none.
        first: the block of queries that has the first list; blocks without a list see nothing.
        start: the position where block 0 begins.

    Example:
        >>> ListedBlocks(2, torch.tensor([[[0], [-1]]]), first=1).dense(6)[0].int().tolist()[2]
        [1, 1, 0, 0, 0, 0]
    """

    by_head = True

    def __init__(self, block: int, table: Tensor, first: int = 0, start: int = 0) -> None:
        if table.ndim != 3 or table.is_floating_point():
            raise ValueError(f"a table of blocks is Long[H, rows, count], not {table.dtype} {list(table.shape)}")
        self.block, self.table = at_least("block", block, 1), table
        self.first, self.start = at_least("first", first, 0), at_least("start", start, 0)
        self.heads = len(table)
        super().__init__(self.block, table, self.first, self.start)

    def rule(self) -> Rule:
        table, number = self.table.long().cpu(), block_of(self.block, self.start)
        anywhere = Table(table)

        def entries() -> Tensor:
            head, row, place = (table >= 0).nonzero(as_tuple=True)
            return torch.stack([head, row + self.first, table[head, row, place]], 1).unique(dim=0)

        def member(h: Tensor, row: Tensor, column: Tensor) -> Tensor:
            known = (row >= self.first) & (row < self.first + table.shape[1])
            listed = anywhere.on(row.device)[h, torch.where(known, row - self.first, 0)]
            return known & ((listed == column[..., None]) & (listed >= 0)).any(-1)

        return Listed(number, number, entries, member, by_head=True)

    def orders(self, tile: int) -> tuple[Order, ...]:
        return (by_start(self.start),) if self.start % tile else ()
