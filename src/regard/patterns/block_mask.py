"""A plan as FlexAttention's BlockMask."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from regard.patterns.pattern import Pattern
from regard.patterns.plan import FULL, Part

MOST_ENTRIES = 1 << 25  # of the index table, which is quadratic in blocks: 134 MB of int32


def block_mask(
    pattern: Pattern,
    n: int,
    m: int | None = None,
    device: torch.device | str | None = None,
    heads: int | None = None,
    q_offset: int | None = None,
    block: int = 128,
) -> BlockMask:
    """The BlockMask of a pattern, from its plan in natural order; no pair outside partial blocks is evaluated.

    Raises:
        ValueError: the index table would hold more than MOST_ENTRIES numbers; work on chunks of queries instead.
    """
    m = n if m is None else m
    rows, columns = -(-n // block), -(-m // block)
    plan = pattern.plan(n, m, heads, q_offset, tile=block, reorder=False)
    batch = max((part.batch for part in plan.parts), default=1)
    head_count = plan.heads or 1
    entries = batch * head_count * rows * columns
    if entries > MOST_ENTRIES:
        raise ValueError(
            f"a BlockMask for {n} x {m} in blocks of {block} would hold a table of {entries:,} numbers "
            f"({entries * 4 / 1e6:.0f} MB), more than {MOST_ENTRIES:,}: use a larger block or chunks of queries"
        )
    full = torch.zeros(batch, head_count, rows, columns, dtype=torch.bool)
    partial = full.clone()
    for part in plan.parts:
        _mark(part, full, partial)
    tables = [t.to(device) for kind in (partial, full) for t in _listed(kind)]
    mask_mod = pattern.mask_mod(n, m, q_offset, heads)
    corner = torch.zeros(1, dtype=torch.long, device=device)
    mask_mod(corner, corner, corner, corner)  # moves the pattern's tables: once compiled it cannot
    return BlockMask.from_kv_blocks(*tables, BLOCK_SIZE=block, mask_mod=mask_mod, seq_lengths=(n, m))


def _mark(part: Part, full: Tensor, partial: Tensor) -> None:
    """Write a part's tiles into the tables of full and of partial blocks."""
    plane, row = part.row // part.rows, part.row % part.rows
    served = torch.arange(full.shape[1]) if part.heads is None else torch.tensor(part.heads)
    for table, chosen in ((full, part.mask == FULL), (partial, part.mask != FULL)):
        b, h = plane[chosen], served[None]
        if part.by_head:
            b, h = plane[chosen] // len(served), served[plane[chosen] % len(served)][:, None]
        table[b[:, None], h, row[chosen][:, None], part.column[chosen][:, None]] = True


def _listed(table: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each row has, and their columns first, both int32 as FlexAttention wants them."""
    columns = table.int().argsort(dim=-1, descending=True, stable=True)
    return table.sum(-1, dtype=torch.int32), columns.int()
