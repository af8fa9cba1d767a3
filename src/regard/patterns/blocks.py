"""Patterns given block by block or pair by pair: block layouts, masks and FlexAttention's mask functions."""

from __future__ import annotations

from itertools import count
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from regard.patterns.pattern import MaskMod, Pattern
from regard.patterns.rules import Elementwise, Listed, Rule, Table, block_of
from regard.patterns.sequence import at_least


class from_blocks(Pattern):  # noqa: N801  reads as the verb it is: from_blocks(layout, 16)
    """A pair is allowed where its block's entry in the layout is true (DeepSpeed's layouts).

    Args:
        layout: Bool or 0/1 [H or 1, blocks of queries, blocks of keys].
        block: rows and columns a block.
    """

    rectangular = True

    def __init__(self, layout: Tensor, block: int) -> None:
        if layout.ndim != 3:
            raise ValueError(f"a layout is [H or 1, blocks of queries, blocks of keys], not {list(layout.shape)}")
        self.layout, self.block = layout, at_least("block", block, 1)
        self.heads = len(layout) if len(layout) > 1 else None
        self.by_head = len(layout) > 1
        super().__init__(layout, self.block)

    def bind(self, n: int, m: int | None = None, heads: int | None = None) -> Pattern:
        m = n if m is None else m
        blocks = (-(-n // self.block), -(-m // self.block))
        if self.layout.shape[1:] != blocks:
            raise ValueError(
                f"a layout of {list(self.layout.shape)} blocks of {self.block} does not cover {n} x {m}: "
                f"that takes {blocks[0]} x {blocks[1]} blocks"
            )
        return _BoundBlocks(self, m - n)


class _BoundBlocks(Pattern):
    """A block layout for known sizes."""

    def __init__(self, source: from_blocks, shift: int) -> None:
        self.source, self.shift = source, shift
        self.heads, self.by_head, self.rectangular = source.heads, source.by_head, True
        super().__init__(source, shift)

    def rule(self) -> Rule:
        layout, number = self.source.layout.bool().cpu(), block_of(self.source.block)
        table = Table(layout)

        def member(h: Tensor, row: Tensor, column: Tensor) -> Tensor:
            return table.on(row.device)[h if self.by_head else torch.zeros_like(h), row, column]

        return Listed(lambda b, h, i: number(b, h, i - self.shift), number, layout.nonzero, member, self.by_head)


class from_mask(Pattern):  # noqa: N801
    """The tensor says so: Bool[n, m], [H, n, m] or [B, H or 1, n, m], evaluated tile by tile in O(n m)."""

    rectangular = True

    def __init__(self, mask: Tensor) -> None:
        if mask.dtype != torch.bool:
            raise TypeError(f"a mask is bool, True where a pair takes part, not {mask.dtype}")
        if not 2 <= mask.ndim <= 4:
            raise ValueError(f"a mask is [n, m], [H, n, m] or [B, H or 1, n, m], not {list(mask.shape)}")
        self.mask = mask
        self.batch = len(mask) if mask.ndim == 4 else None
        self.by_head = mask.ndim > 2 and mask.shape[-3] > 1
        self.heads = mask.shape[-3] if self.by_head else None
        super().__init__(mask)

    def bind(self, n: int, m: int | None = None, heads: int | None = None) -> Pattern:
        m = n if m is None else m
        if self.mask.shape[-2:] != (n, m):
            raise ValueError(f"a mask of {list(self.mask.shape)} does not fit {n} queries and {m} keys")
        full = Table(self.mask[(None,) * (4 - self.mask.ndim)])

        def look_up(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            b = b if self.batch else torch.zeros_like(b)
            h = h if self.by_head else torch.zeros_like(h)
            return full.on(i.device)[b, h, i - (m - n), j]

        return _BoundPredicate(self, look_up)


_numbers = count()  # never used twice, unlike id(): text with a number may be kept in a cache
_functions: WeakValueDictionary[int, from_mask_mod] = WeakValueDictionary()


class from_mask_mod(Pattern):  # noqa: N801
    """FlexAttention's ``mask_mod(b, h, q_idx, kv_idx)`` says so, asked for every pair once: O(n m).

    Args:
        mask_mod: elementwise over int64 tensors; the indices are rows and columns.
        heads, batch: how many heads or sequences it tells apart; None where it ignores them.
    """

    rectangular = True

    def __init__(self, mask_mod: MaskMod, heads: int | None = None, batch: int | None = None) -> None:
        self.mask_mod_function, self.heads, self.batch, self.by_head = mask_mod, heads, batch, heads is not None
        self.number = next(_numbers)
        _functions[self.number] = self
        super().__init__(mask_mod, heads, batch)

    def text(self, start: int) -> str:
        """A function has no text of its own: the pattern is found again by its number in this process."""
        return f"from_mask_mod_by_number({self.number})"

    def __repr__(self) -> str:
        return f"from_mask_mod({getattr(self.mask_mod_function, '__name__', self.mask_mod_function)!s})"

    def bind(self, n: int, m: int | None = None, heads: int | None = None) -> Pattern:
        shift = (n if m is None else m) - n

        def look_up(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            b, h, i, j = torch.broadcast_tensors(b, h, i - shift, j)
            return self.mask_mod_function(b, h, i, j)

        return _BoundPredicate(self, look_up)


def from_mask_mod_by_number(number: int) -> from_mask_mod:
    """The living pattern with this number, for text that travelled through an operator."""
    if number not in _functions:
        raise ValueError("the mask function of this pattern is no longer alive: keep the pattern while it is in use")
    return _functions[number]


class _BoundPredicate(Pattern):
    """A mask or a mask function for known sizes."""

    def __init__(self, source: Pattern, predicate: MaskMod) -> None:
        self.source, self.predicate = source, predicate
        self.heads, self.batch, self.by_head, self.rectangular = source.heads, source.batch, source.by_head, True
        super().__init__(source, id(predicate))

    def rule(self) -> Rule:
        return Elementwise(self.predicate)
