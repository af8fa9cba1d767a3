"""Patterns as words: ``causal&(window-512|global-4)``, for places that take a string only.

A word is the name of a pattern in lower case; its numbers follow behind hyphens, and an x joins the sides of a grid:
``rows-14x14``. ``&`` binds before ``|``; ``~`` binds before both; brackets group.
"""

import difflib
import re
from collections.abc import Callable

from regard import patterns
from regard.patterns import Pattern

__all__ = ["pattern_from_words"]

_WORDS: dict[str, Callable[..., Pattern]] = {
    "axis": patterns.Axis,
    "bigbird": patterns.BigBird,
    "blocks": patterns.Blocks,
    "causal": patterns.Causal,
    "columns": patterns.Columns,
    "criss_cross": patterns.CrissCross,
    "dilated": patterns.Dilated,
    "fixed": patterns.Fixed,
    "full": patterns.Full,
    "global": patterns.Global,
    "halo": patterns.Halo,
    "neighborhood": patterns.Neighborhood,
    "rows": patterns.Rows,
    "strided": patterns.Strided,
    "summary": patterns.Summary,
    "window": patterns.Window,
}
_TOKEN = re.compile(r"[&|~()]|[^&|~()\s]+")
_WORD = re.compile(r"([a-z_]+)((?:-\d+(?:x\d+)*)*)")


def pattern_from_words(expression: str) -> Pattern:
    """The pattern that the expression says.

    Raises:
        ValueError: what is wrong, where, and what comes nearest.

    Example:
        >>> pattern_from_words("causal & (window-512 | global-4)")
        Causal() & (Window(512, 512) | Global(4))
    """
    return _Reader(expression).read()


class _Reader:
    """Reads from left to right: a union of intersections of words, complements and brackets."""

    def __init__(self, expression: str) -> None:
        self.expression = expression
        self.tokens = [(found.group(), found.start()) for found in _TOKEN.finditer(expression)]
        self.place = 0

    def read(self) -> Pattern:
        found = self._union()
        if self._next():
            raise self._error(f"{self._next()!r} does not belong here: & or | joins two patterns")
        return found

    def _union(self) -> Pattern:
        found = self._intersection()
        while self._take("|"):
            found = found | self._intersection()
        return found

    def _intersection(self) -> Pattern:
        found = self._single()
        while self._take("&"):
            found = found & self._single()
        return found

    def _single(self) -> Pattern:
        if self._take("~"):
            return ~self._single()
        if self._take("("):
            found = self._union()
            if not self._take(")"):
                raise self._error("a bracket is not closed")
            return found
        if self._next() in ("", "&", "|", ")"):
            raise self._error("a pattern is missing")
        found = self._word(self._next())
        self.place += 1
        return found

    def _word(self, text: str) -> Pattern:
        parts = _WORD.fullmatch(text)
        name = parts[1] if parts else text.partition("-")[0]
        if name not in _WORDS:
            near = difflib.get_close_matches(name, _WORDS, n=1, cutoff=0.5)
            raise self._error(
                f"no pattern is called {name!r}: "
                + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_WORDS)}")
            )
        if parts is None:
            raise self._error(f"{text!r}: numbers follow the name behind hyphens, as in window-512 or rows-14x14")
        sides = ([int(side) for side in number.split("x")] for number in parts[2].split("-")[1:])
        try:
            return _WORDS[name](*(tuple(side) if len(side) > 1 else side[0] for side in sides))
        except (TypeError, ValueError) as error:
            raise self._error(f"{text!r}: {_WORDS[name].__name__} refuses its numbers: {error}") from error

    def _next(self) -> str:
        return self.tokens[self.place][0] if self.place < len(self.tokens) else ""

    def _take(self, token: str) -> bool:
        if self._next() != token:
            return False
        self.place += 1
        return True

    def _error(self, message: str) -> ValueError:
        start = self.tokens[self.place][1] if self.place < len(self.tokens) else len(self.expression)
        return ValueError(f"{message}\n  {self.expression}\n  {' ' * start}^ place {start + 1}")
