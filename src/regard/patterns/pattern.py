"""Pattern: who may look at whom, as a value that can be combined with & | ~ and asked in many forms.

A pattern speaks of positions: i of the query, j of the key. Row r of n stands at position r + q_offset, where the
default m - n lets the last query meet the last key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from regard.patterns.orders import Order
from regard.patterns.rules import AllOf, Rule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch.nn.attention.flex_attention import BlockMask

    from regard.patterns.plan import Plan

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Argument = Any  # numbers, tuples, strings, tensors, functions and patterns: what a pattern is made from


class Pattern:
    """A set of allowed (query, key) pairs.

    Subclasses pass their constructor's arguments up; ``spec`` and ``tensors`` are made from them once, so that
    compiled code reads attributes only.

    Attributes:
        spec: canonical text, independent of lengths; tensors stand in it as t0, t1, ...
        tensors: the tensors the pattern holds, in that order.
        heads, batch: how many heads or sequences it tells apart; None where it does not vary.
        rectangular: it is indexed by row and column of its own n x m, so positions cannot be shifted.
    """

    heads: int | None = None
    batch: int | None = None
    rectangular: bool = False
    by_head: bool = False  # varies over heads even where their number is not known yet

    def __init__(self, *arguments: Argument) -> None:
        self.arguments = arguments
        self.tensors = tuple(t for value in arguments for t in _tensors(value))
        self.spec = self.text(0)

    def text(self, start: int) -> str:
        """The canonical text, tensors numbered from ``start``."""
        parts: list[str] = []
        for value in self.arguments:
            parts.append(_write(value, start))
            start += len(_tensors(value))
        return f"{type(self).__name__}({', '.join(parts)})"

    # --- what subclasses say -------------------------------------------------------------------------------------

    def bind(self, n: int, m: int | None = None, heads: int | None = None) -> Pattern:
        """The same pattern with everything that depends on the lengths settled.

        Raises:
            ValueError: the pattern does not fit these sizes.
        """
        return self

    def rule(self) -> Rule:
        """The predicate behind a bound pattern."""
        raise NotImplementedError(f"{type(self).__name__} says nothing about pairs")

    def orders(self, tile: int) -> tuple[Order, ...]:
        """Orders of positions, other than the natural one, under which the pattern's tiles may be denser."""
        return ()

    def alternatives(self) -> list[Pattern]:
        """Patterns whose union is this one."""
        return [self]

    def at_head(self, head: int) -> Pattern:
        """The pattern that one head follows, every :class:`PerHead` resolved."""
        return self

    # --- algebra -------------------------------------------------------------------------------------------------

    def __and__(self, other: Pattern) -> Pattern:
        from regard.patterns.algebra import And

        return And(self, other)

    def __or__(self, other: Pattern) -> Pattern:
        from regard.patterns.algebra import Or

        return Or(self, other)

    def __invert__(self) -> Pattern:
        from regard.patterns.algebra import Not

        return Not(self)

    def is_plain(self) -> bool:
        """Made of numbers only: equal texts mean equal patterns."""
        return all(_is_plain(value) for value in self.arguments)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Pattern) and self.is_plain() and other.is_plain() and self.spec == other.spec

    def __hash__(self) -> int:
        return hash(self.spec) if self.is_plain() else id(self)

    def __repr__(self) -> str:
        return _describe(self)

    # --- the forms it can be asked in ----------------------------------------------------------------------------

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Whether pairs of positions are allowed, elementwise over int64 tensors that broadcast (bind first)."""
        return self.rule().allows(b, h, i, j)

    def dense(
        self,
        n: int,
        m: int | None = None,
        heads: int | None = None,
        q_offset: int | None = None,
        device: torch.device | str | None = None,
    ) -> Bool[Tensor, "*batch_heads n m"]:
        """The whole matrix: [n, m], [heads, n, m] where heads differ, [B, heads or 1, n, m] where sequences differ.

        Example:
            >>> from regard.patterns import Causal
            >>> Causal().dense(3).int().tolist()
            [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
        """
        bound, m, offset = self._settle(n, m, heads, q_offset)
        batches, head_count = bound.batch or 1, (bound.heads or 1) if bound.by_head else 1
        b, h = torch.arange(batches)[:, None, None, None], torch.arange(head_count)[:, None, None]
        matrix = bound.allows(b, h, torch.arange(n)[:, None] + offset, torch.arange(m))
        matrix = matrix.expand(batches, head_count, n, m).to(device)
        if bound.batch is None:
            matrix = matrix[0]
        return matrix[0] if bound.batch is None and not bound.by_head else matrix

    def mask_mod(self, n: int, m: int | None = None, q_offset: int | None = None, heads: int | None = None) -> MaskMod:
        """FlexAttention's ``mask_mod(b, h, q_idx, kv_idx)`` for these sizes; the indices are rows, not positions."""
        bound, m, offset = self._settle(n, m, heads, q_offset)
        rule = bound.rule()
        return lambda b, h, q_idx, kv_idx: rule.allows(b, h, q_idx + offset, kv_idx)

    def plan(
        self,
        n: int,
        m: int | None = None,
        heads: int | None = None,
        q_offset: int | None = None,
        tile: int = 64,
        reorder: bool = True,
    ) -> Plan:
        """The sparse list of tiles that an engine works off; see :mod:`regard.patterns.plan`."""
        from regard.patterns.planner import plan

        bound, m, offset = self._settle(n, m, heads, q_offset)
        return plan(bound, n, m, heads, offset, tile, reorder)

    def block_mask(
        self,
        n: int,
        m: int | None = None,
        device: torch.device | str | None = None,
        *,
        heads: int | None = None,
        q_offset: int | None = None,
        block: int = 128,
    ) -> BlockMask:
        """FlexAttention's BlockMask, made from the plan; raises where its index table would be too large."""
        from regard.patterns.block_mask import block_mask

        return block_mask(self, n, m, device, heads, q_offset, block)

    def density(self, n: int, m: int | None = None, heads: int | None = None, q_offset: int | None = None) -> float:
        """The share of pairs that is allowed, counted exactly."""
        return self.plan(n, m, heads, q_offset).density

    def plot(self, n: int, m: int | None = None, heads: int | None = None) -> Axes:
        """Draw the pattern with matplotlib: allowed pairs dark, one panel of the Axes per head side by side."""
        from regard.patterns.picture import plot

        return plot(self, n, m, heads)

    def _settle(self, n: int, m: int | None, heads: int | None, q_offset: int | None) -> tuple[Pattern, int, int]:
        """Bound pattern, number of keys, offset of the queries."""
        m = n if m is None else m
        if min(n, m) < 0:
            raise ValueError(f"a pattern has no negative sizes, and {n} x {m} was asked")
        if q_offset is not None and self.rectangular and q_offset != m - n:
            raise ValueError(f"{self!r} is indexed by its own rows and columns: q_offset={q_offset} cannot shift it")
        if self.heads is not None and heads is not None and heads != self.heads:
            raise ValueError(f"{self!r} describes {self.heads} heads, and {heads} were asked")
        bound = self.bind(n, m, heads if self.heads is None else self.heads)
        return bound, m, m - n if q_offset is None else q_offset


class Full(Pattern):
    """Every pair is allowed."""

    def __init__(self) -> None:
        super().__init__()

    def rule(self) -> Rule:
        return AllOf()


def _tensors(value: Argument) -> tuple[Tensor, ...]:
    if isinstance(value, Pattern):
        return value.tensors
    return (value,) if isinstance(value, Tensor) else ()


def _is_plain(value: Argument) -> bool:
    if isinstance(value, Pattern):
        return value.is_plain()
    return not isinstance(value, Tensor) and not callable(value)


def _write(value: Argument, start: int) -> str:
    if isinstance(value, Pattern):
        return value.text(start)
    return f"t{start}" if isinstance(value, Tensor) else repr(value)


def _describe(pattern: Pattern) -> str:
    """The canonical text with every tensor's number replaced by its type and shape."""

    def name(found: re.Match[str]) -> str:
        tensor = pattern.tensors[int(found[1])]
        return f"<{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}>"

    return re.sub(r"\bt(\d+)\b", name, pattern.spec)


def walk(pattern: Pattern) -> Iterator[Pattern]:
    """The pattern and everything it is made of."""
    yield pattern
    for value in pattern.arguments:
        if isinstance(value, Pattern):
            yield from walk(value)
