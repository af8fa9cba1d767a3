"""Plans in the form that the native kernels read."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from regard.engines.native_library import CPart
from regard.patterns.plan import Part


@dataclass(frozen=True, eq=False)
class NativePart:
    """A part whose tensors the kernels can point at.

    Attributes:
        fields: the C struct but for the heads.
        heads: those the part concerns; None for all.
        kept: what ``fields`` points at.
    """

    fields: CPart
    heads: tuple[int, ...] | None
    kept: tuple[Tensor, ...]

    def of(self, num_heads: int) -> tuple[CPart, Tensor]:
        """The struct for a number of heads, and what it points at besides."""
        heads = torch.tensor(range(num_heads) if self.heads is None else self.heads)
        fields = CPart.from_buffer_copy(self.fields)
        fields.heads, fields.head = len(heads), heads.data_ptr()
        return fields, heads


_parts: WeakKeyDictionary[Part, NativePart] = WeakKeyDictionary()


def native_part(part: Part) -> NativePart:
    """The part in C, remembered for as long as the part lives."""
    found = _parts.get(part)
    if found is None:
        found = _parts[part] = _convert(part)
    return found


def _convert(part: Part) -> NativePart:
    pointer, by_column = part.by_columns
    by_query, by_key = _words(part.masks), _words(part.masks.mT)
    rows = part.query_rows, part.key_rows, part.row_pointer, part.column, part.mask
    kept = (*rows, pointer, by_column, part.row[by_column], by_query, by_key)
    kept = tuple(tensor.contiguous() for tensor in kept)
    fields = CPart(part.batch, part.by_head, 0, None, part.natural, part.rows, part.columns, *map(_address, kept))
    return NativePart(fields, part.heads, kept)


def _address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _words(masks: Tensor) -> Tensor:
    """Bool[u, 64, 64] -> one 64-bit word a row, bit k for its entry k, Long[u, 64]."""
    weights = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8)
    bits = masks.contiguous().view(torch.uint8)
    packed = (bits.view(-1, 64, 8, 8) * weights).sum(-1, dtype=torch.uint8)
    return packed.view(torch.int64).view(-1, 64)
