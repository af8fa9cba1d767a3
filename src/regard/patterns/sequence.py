"""Patterns on sequences: causal, windows, dilation, strides, blocks, documents and global tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from regard.patterns.orders import Order, by_residue, by_start, by_summary
from regard.patterns.pattern import Pattern
from regard.patterns.rules import AllOf, AnyOf, Coordinate, Rule, Table, Within, position


def at_least(name: str, value: int, least: int) -> int:
    """A whole number of at least ``least``, else an error that names the argument."""
    if isinstance(value, bool) or int(value) != value or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return int(value)


def same(coordinate: Coordinate) -> Rule:
    """Query and key agree in a coordinate."""
    return Within(coordinate, coordinate, coordinate)


class Causal(Pattern):
    """j <= i: a query sees its own position and those before it."""

    def __init__(self) -> None:
        super().__init__()

    def rule(self) -> Rule:
        return Within(position, None, position)


class Window(Pattern):
    """-before <= j - i <= after; one number serves both sides.

    Example:
        >>> Window(1).dense(3).int().tolist()
        [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
    """

    def __init__(self, before: int, after: int | None = None) -> None:
        self.before = at_least("before", before, 0)
        self.after = self.before if after is None else at_least("after", after, 0)
        super().__init__(self.before, self.after)

    def rule(self) -> Rule:
        return Within(position, lambda b, h, i: i - self.before, lambda b, h, i: i + self.after)


class Strided(Pattern):
    """(i - j) is a multiple of the stride."""

    def __init__(self, stride: int) -> None:
        self.stride = at_least("stride", stride, 1)
        super().__init__(self.stride)

    def rule(self) -> Rule:
        return same(lambda b, h, x: x % self.stride)

    def orders(self, tile: int) -> tuple[Order, ...]:
        return (by_residue(self.stride),) if self.stride > 1 else ()


class Dilated(Pattern):
    """j - i is a multiple of ``dilation`` and |j - i| <= window * dilation."""

    def __init__(self, window: int, dilation: int) -> None:
        self.window, self.dilation = at_least("window", window, 0), at_least("dilation", dilation, 1)
        super().__init__(self.window, self.dilation)

    def rule(self) -> Rule:
        reach = self.window * self.dilation
        near = Within(position, lambda b, h, i: i - reach, lambda b, h, i: i + reach)
        return AllOf(near, same(lambda b, h, x: x % self.dilation))

    def orders(self, tile: int) -> tuple[Order, ...]:
        return (by_residue(self.dilation),) if self.dilation > 1 else ()


class Blocks(Pattern):
    """i and j lie in the same block of ``block``; or j up to ``before`` blocks earlier or ``after`` later.

    Block 0 begins at position ``start``; what lies before it counts down.
    """

    def __init__(self, block: int, before: int = 0, after: int = 0, start: int = 0) -> None:
        self.block, self.start = at_least("block", block, 1), at_least("start", start, 0)
        self.before, self.after = at_least("before", before, 0), at_least("after", after, 0)
        super().__init__(self.block, self.before, self.after, self.start)

    def rule(self) -> Rule:
        return Within(
            lambda b, h, j: (j - self.start) // self.block,
            lambda b, h, i: (i - self.start) // self.block - self.before,
            lambda b, h, i: (i - self.start) // self.block + self.after,
        )

    def orders(self, tile: int) -> tuple[Order, ...]:
        return (by_start(self.start),) if self.start % tile else ()


class Summary(Pattern):
    """j lies in the last ``columns`` positions of its block of ``stride``, whoever asks."""

    def __init__(self, stride: int, columns: int) -> None:
        self.stride, self.columns = at_least("stride", stride, 1), at_least("columns", columns, 0)
        if self.columns > self.stride:
            raise ValueError(f"a block of {self.stride} has no {self.columns} last positions")
        super().__init__(self.stride, self.columns)

    def rule(self) -> Rule:
        first = self.stride - self.columns
        return Within(lambda b, h, j: j % self.stride, lambda b, h, i: torch.full_like(i, first))

    def orders(self, tile: int) -> tuple[Order, ...]:
        return (by_summary(self.stride, self.columns),) if 0 < self.columns < self.stride else ()


class Fixed(Pattern):
    """Same block of ``stride``, or j among the last ``columns`` of its block (Sparse Transformer, arXiv:1904.10509)."""

    def __init__(self, stride: int, columns: int) -> None:
        self.local, self.summary = Blocks(stride), Summary(stride, columns)
        super().__init__(self.local.block, self.summary.columns)

    def rule(self) -> Rule:
        return AnyOf(self.local.rule(), self.summary.rule())

    def orders(self, tile: int) -> tuple[Order, ...]:
        return self.summary.orders(tile)

    def alternatives(self) -> list[Pattern]:
        return [self.local, self.summary]


class Segments(Pattern):
    """i and j carry the same segment id: packed documents.

    Args:
        ids: the id of each position, Long[M], or Long[B, M] where sequences differ.
    """

    def __init__(self, ids: Tensor) -> None:
        if ids.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"segment ids are int64 or int32, not {ids.dtype}")
        if ids.ndim not in (1, 2):
            raise ValueError(f"segment ids are [M] or [B, M], not {list(ids.shape)}")
        self.ids = ids
        self.batch = len(ids) if ids.ndim == 2 else None
        super().__init__(ids)

    @classmethod
    def from_lengths(cls, lengths: Sequence[int] | Int[Tensor, " documents"]) -> Segments:
        """Documents of these lengths, one after the other."""
        counts = torch.as_tensor(lengths)
        return cls(torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts))

    @classmethod
    def from_cu_seqlens(cls, cu_seqlens: Int[Tensor, " documents_and_1"]) -> Segments:
        """Documents that start at these places, the total last (flash-attention's ``cu_seqlens``)."""
        return cls.from_lengths(cu_seqlens.diff())

    def bind(self, n: int, m: int | None = None, heads: int | None = None) -> Pattern:
        _fits(self.ids, n, m, "segment ids")
        return self

    def rule(self) -> Rule:
        ids = _table(self.ids.long())
        # A query that stands outside the sequence belongs to no document: an interval without numbers.
        low = _guarded(ids, self.ids.shape[-1], outside=1)
        high = _guarded(ids, self.ids.shape[-1], outside=0)
        known = Within(position, lambda b, h, i: torch.where(_known(i, self.ids.shape[-1]), -(2**62), 2**62))
        return AllOf(Within(ids, low, high), known)


class Global(Pattern):
    """i or j is one of the first ``g`` positions, one of the listed, or one of the marked.

    Args:
        which: a number g, positions Long[k] (or a sequence of them), or marks Bool[M] or Bool[B, M].
    """

    def __init__(self, which: int | Sequence[int] | Tensor) -> None:
        if isinstance(which, Tensor) and which.dtype != torch.bool:
            if which.is_floating_point():
                raise TypeError(f"global positions are integers or marks (bool), not {which.dtype}")
            which = [int(x) for x in which.flatten().tolist()]
        if isinstance(which, Tensor):
            if which.ndim not in (1, 2):
                raise ValueError(f"global marks are Bool[M] or Bool[B, M], not {list(which.shape)}")
            self.batch = len(which) if which.ndim == 2 else None
        else:
            which = at_least("the number of global positions", which, 0) if isinstance(which, int) else tuple(which)
        self.which: int | tuple[int, ...] | Tensor = which
        super().__init__(which)

    def bind(self, n: int, m: int | None = None, heads: int | None = None) -> Pattern:
        if isinstance(self.which, Tensor):
            _fits(self.which, n, m, "global marks")
        if isinstance(self.which, tuple) and any(not 0 <= x < (n if m is None else m) for x in self.which):
            raise ValueError(f"global positions {self.which} do not all lie among the {n if m is None else m} keys")
        return self

    def _marked(self) -> Coordinate:
        """1 for a global position, else 0."""
        which = self.which
        if isinstance(which, Tensor):
            return _guarded(_table(which.long()), which.shape[-1], outside=0)
        if isinstance(which, int):
            return lambda b, h, x: ((x >= 0) & (x < which)).long()
        listed = Table(torch.tensor(which, dtype=torch.long))
        return lambda b, h, x: (x[..., None] == listed.on(x.device)).any(-1).long()

    def rule(self) -> Rule:
        marked = self._marked()
        asks = Within(lambda b, h, j: torch.ones_like(j), lambda b, h, i: 1 - marked(b, h, i), marked)
        told = Within(marked, lambda b, h, i: torch.ones_like(i))
        return AnyOf(asks, told)


def _fits(table: Tensor, n: int, m: int | None, what: str) -> None:
    keys = n if m is None else m
    if table.shape[-1] != keys:
        raise ValueError(f"{what} {list(table.shape)} need one entry for each of the {keys} keys")


def _known(x: Tensor, length: int) -> Tensor:
    return (x >= 0) & (x < length)


def _table(values: Bool[Tensor, "*B M"] | Int[Tensor, "*B M"]) -> Coordinate:
    """Looks a position up, in its sequence's own row where there are several."""
    table = Table(values)
    if values.ndim == 1:
        return lambda b, h, x: table.on(x.device)[x]
    return lambda b, h, x: table.on(x.device)[b, x]


def _guarded(table: Coordinate, length: int, outside: int) -> Coordinate:
    """The table where the position exists, ``outside`` elsewhere (queries may stand before the first key)."""

    def look_up(b: Tensor, h: Tensor, x: Tensor) -> Tensor:
        return torch.where(_known(x, length), table(b, h, x.clamp(0, max(length - 1, 0))), outside)

    return look_up
