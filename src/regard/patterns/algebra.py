"""Patterns combined: &, |, ~ and one pattern for each head."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.patterns.orders import Order
from regard.patterns.pattern import Pattern
from regard.patterns.rules import AllOf, AnyOf, Complement, Rule, Within


class _Combined(Pattern):
    """Patterns joined by an operator."""

    sign = ""

    def __init__(self, *parts: Pattern) -> None:
        # A chain a & b & c is one And of three: texts, alternatives and plans stay flat.
        flat = tuple(p for part in parts for p in (part.parts if type(part) is type(self) else (part,)))
        self.parts: tuple[Pattern, ...] = flat
        self.heads, self.batch = _agree(flat, "heads"), _agree(flat, "batch")
        self.rectangular, self.by_head = any(p.rectangular for p in flat), any(p.by_head for p in flat)
        super().__init__(*flat)

    def text(self, start: int) -> str:
        texts: list[str] = []
        for part in self.parts:
            text = part.text(start)
            texts.append(f"({text})" if isinstance(part, And | Or) else text)
            start += len(part.tensors)
        return f" {self.sign} ".join(texts)

    def bind(self, n: int, m: int | None = None, heads: int | None = None) -> Pattern:
        return type(self)(*(part.bind(n, m, heads) for part in self.parts))

    def at_head(self, head: int) -> Pattern:
        return type(self)(*(part.at_head(head) for part in self.parts))

    def orders(self, tile: int) -> tuple[Order, ...]:
        return tuple(order for part in self.parts for order in part.orders(tile))


class And(_Combined):
    """Pairs that every part allows."""

    sign = "&"

    def rule(self) -> Rule:
        return AllOf(*(part.rule() for part in self.parts))

    def alternatives(self) -> list[Pattern]:
        """One union inside is drawn outside: a & (b | c) is (a & b) | (a & c)."""
        for place, part in enumerate(self.parts):
            inner = part.alternatives()
            if len(inner) > 1:
                return [And(*self.parts[:place], choice, *self.parts[place + 1 :]) for choice in inner]
        return [self]


class Or(_Combined):
    """Pairs that some part allows."""

    sign = "|"

    def rule(self) -> Rule:
        return AnyOf(*(part.rule() for part in self.parts))

    def alternatives(self) -> list[Pattern]:
        return [choice for part in self.parts for choice in part.alternatives()]


class Not(Pattern):
    """Pairs that the part forbids."""

    def __init__(self, part: Pattern) -> None:
        self.part = part
        self.heads, self.batch, self.by_head = part.heads, part.batch, part.by_head
        self.rectangular = part.rectangular
        super().__init__(part)

    def text(self, start: int) -> str:
        text = self.part.text(start)
        return f"~({text})" if isinstance(self.part, _Combined) else f"~{text}"

    def bind(self, n: int, m: int | None = None, heads: int | None = None) -> Pattern:
        return Not(self.part.bind(n, m, heads))

    def rule(self) -> Rule:
        return Complement(self.part.rule())

    def at_head(self, head: int) -> Pattern:
        return Not(self.part.at_head(head))

    def orders(self, tile: int) -> tuple[Order, ...]:
        return self.part.orders(tile)


class PerHead(Pattern):
    """Head h follows the h-th pattern."""

    def __init__(self, *parts: Pattern) -> None:
        if not parts:
            raise ValueError("PerHead needs one pattern for each head, and none was given")
        self.parts, self.heads, self.by_head = parts, len(parts), True
        if any(part.heads not in (None, len(parts)) for part in parts):
            raise ValueError(f"PerHead of {len(parts)} heads holds patterns made for {[p.heads for p in parts]} heads")
        self.batch, self.rectangular = _agree(parts, "batch"), any(part.rectangular for part in parts)
        super().__init__(*parts)

    def bind(self, n: int, m: int | None = None, heads: int | None = None) -> Pattern:
        return PerHead(*(part.bind(n, m, len(self.parts)) for part in self.parts))

    def rule(self) -> Rule:
        rules = [part.rule() for part in self.parts]
        return AnyOf(*(AllOf(_only_head(number), rule) for number, rule in enumerate(rules)))

    def at_head(self, head: int) -> Pattern:
        return self.parts[head].at_head(head)


def _only_head(number: int) -> Rule:
    """Allows everything to one head and nothing to the others."""

    def other(b: Tensor, h: Tensor, i: Tensor) -> Tensor:
        return torch.zeros_like(i) + (h != number)

    return Within(lambda b, h, j: torch.zeros_like(j), low=other)


def _agree(parts: tuple[Pattern, ...], name: str) -> int | None:
    """The one number of heads (or of sequences) that all parts with a number share."""
    found = {getattr(part, name) for part in parts} - {None}
    if len(found) > 1:
        raise ValueError(f"patterns for different numbers of {name} cannot be combined: {sorted(found)}")
    return found.pop() if found else None
