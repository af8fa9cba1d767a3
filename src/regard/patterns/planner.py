"""Making plans: heads are grouped, unions cut into disjoint pieces where their best orders differ, then classified."""

from __future__ import annotations

import torch

from regard.patterns.algebra import And, Not, Or, PerHead
from regard.patterns.classify import candidates, look_into
from regard.patterns.orders import NATURAL, Order
from regard.patterns.pattern import Pattern, walk
from regard.patterns.plan import FULL, Part, Plan
from regard.patterns.tiling import Side


def plan(pattern: Pattern, n: int, m: int, heads: int | None, offset: int, tile: int, reorder: bool = True) -> Plan:
    """The plan of a bound pattern; see :class:`Plan`.

    Args:
        pattern: bound to n, m and heads.
        n, m: queries and keys.
        heads: number of heads; needed where the pattern tells them apart.
        offset: row r of the queries stands at position r + offset.
        tile: rows and columns a tile.
        reorder: False keeps everything in natural order and in one part per group of heads.
    """
    parts: list[Part] = []
    if n and m:
        for group, single in _by_head(pattern, heads):
            for piece, order in _pieces(single, n, m, group, offset, tile) if reorder else [(single, NATURAL)]:
                parts.append(_build(piece, n, m, group, offset, tile, order))
    kept = tuple(part for part in parts if len(part.column))
    return Plan(n, m, (pattern.heads or heads) if pattern.by_head else None, kept)


def _by_head(pattern: Pattern, heads: int | None) -> list[tuple[tuple[int, ...] | None, Pattern]]:
    """Groups of heads that follow one pattern, every PerHead resolved."""
    if not pattern.by_head:
        return [(None, pattern)]
    heads = pattern.heads or heads
    if heads is None:
        raise ValueError(f"{pattern!r} tells heads apart: say heads=")
    if not any(isinstance(piece, PerHead) for piece in walk(pattern)):
        return [(tuple(range(heads)), pattern)]
    groups: dict[Pattern, list[int]] = {}
    for head in range(heads):
        groups.setdefault(pattern.at_head(head), []).append(head)
    return [(tuple(group), single) for single, group in groups.items()]


def _pieces(
    pattern: Pattern, n: int, m: int, heads: tuple[int, ...] | None, offset: int, tile: int
) -> list[tuple[Pattern, Order]]:
    """Disjoint pieces of the pattern, each with the order under which it takes the fewest tiles."""
    if not pattern.orders(tile):
        return [(pattern, NATURAL)]

    def best(choice: Pattern) -> tuple[int, Order]:
        orders = {order.name: order for order in (NATURAL, *choice.orders(tile))}
        costs = [(len(candidates(choice.rule(), *_sides(choice, n, m, heads, offset, tile, order))[0]), order)
                 for order in orders.values()]  # fmt: skip
        return min(costs, key=lambda cost: cost[0])

    whole_cost, whole_order = best(pattern)
    by_order: dict[str, tuple[Order, list[Pattern]]] = {}
    for choice in pattern.alternatives():
        order = best(choice)[1]
        by_order.setdefault(order.name, (order, []))[1].append(choice)
    pieces: list[tuple[Pattern, Order]] = []
    taken: list[Pattern] = []
    for order, choices in by_order.values():
        union = choices[0] if len(choices) == 1 else Or(*choices)
        pieces.append((And(union, *(Not(before) for before in taken)), order))
        taken.append(union)
    cost = sum(len(candidates(p.rule(), *_sides(p, n, m, heads, offset, tile, order))[0]) for p, order in pieces)
    return pieces if cost < whole_cost else [(pattern, whole_order)]


def _sides(
    pattern: Pattern, n: int, m: int, heads: tuple[int, ...] | None, offset: int, tile: int, order: Order
) -> tuple[Side, Side]:
    """Queries and keys laid out for one order."""
    head = torch.tensor(heads if heads is not None and pattern.by_head else (0,))
    batches = pattern.batch or 1
    b, h = torch.arange(batches).repeat_interleave(len(head))[:, None], head.repeat(batches)[:, None]
    queries = Side(torch.arange(n) + offset, tile, order.query, b, h)
    return queries, Side(torch.arange(m), tile, order.key, b, h)


def _build(
    pattern: Pattern, n: int, m: int, heads: tuple[int, ...] | None, offset: int, tile: int, order: Order
) -> Part:
    """Classify, look into the undecided tiles, and list what is left."""
    rule = pattern.rule()
    queries, keys = _sides(pattern, n, m, heads, offset, tile, order)
    tiles, full = candidates(rule, queries, keys)
    whole_keys = keys.real.all(1)
    full &= whole_keys[tiles.column]  # a mask hides the places of the last tile where no key is
    mask = torch.full((len(tiles),), FULL)
    partial = ~full
    masks = torch.zeros(0, tile, tile, dtype=torch.bool)
    if bool(partial.any()):
        mask[partial], masks = look_into(rule, tiles.pick(partial))
    bits = torch.cat([masks.flatten(1).sum(1), masks.new_zeros(1, dtype=torch.long)])
    rows, columns = queries.real.sum(1), keys.real.sum(1)
    area = rows[tiles.row] * columns[tiles.column]
    allowed = torch.where(mask == FULL, area, bits[mask])
    # A full inside needs no mask; padded queries do not matter, their rows are dropped.
    filled = (mask != FULL) & (allowed == rows[tiles.row] * tile)
    mask[filled] = FULL
    kept = allowed > 0
    tiles, mask = tiles.pick(kept), mask[kept]
    counts = torch.bincount(tiles.plane * queries.count + tiles.row, minlength=len(queries.batch) * queries.count)
    return Part(
        order=order.name,
        tile=tile,
        batch=pattern.batch or 1,
        heads=heads,
        by_head=pattern.by_head,
        query_rows=queries.rows,
        key_rows=keys.rows,
        natural=queries.natural and keys.natural,
        row_pointer=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        column=tiles.column,
        mask=mask,
        masks=masks,
        pairs=int(allowed.sum()),
    )
