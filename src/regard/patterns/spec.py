"""From canonical text back to a pattern: how patterns travel through opaque operators."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from regard.patterns import algebra, bigbird, blocks, grid, pattern, sequence
from regard.patterns.pattern import Pattern

_CLASSES = {
    found.__name__: found
    for module in (pattern, algebra, sequence, grid, bigbird, blocks)
    for found in vars(module).values()
    if isinstance(found, type) and issubclass(found, Pattern) and not found.__name__.startswith("_")
}
_WORDS = {**_CLASSES, "from_mask_mod_by_number": blocks.from_mask_mod_by_number}


class _NotTextError(Exception):
    """Something other than names of patterns, numbers, strings, tuples and & | ~; unlike a pattern's own refusal."""


def from_spec(spec: str, tensors: Sequence[Tensor] = ()) -> Pattern:
    """The pattern that has this ``spec`` and these ``tensors``.

    Args:
        spec: ``pattern.spec``; only the names of patterns, numbers, strings, tuples and & | ~ are understood.
        tensors: ``pattern.tensors``.

    Raises:
        ValueError: the text is not a pattern's.

    Example:
        >>> from_spec("Causal() & Window(2, 0)")
        Causal() & Window(2, 0)
    """
    try:
        found = _build(ast.parse(spec, mode="eval").body, tensors)
    except (SyntaxError, KeyError, TypeError, IndexError, _NotTextError) as error:
        raise ValueError(f"not a pattern: {spec!r} ({error})") from error
    if not isinstance(found, Pattern):
        raise ValueError(f"not a pattern: {spec!r}")
    return found


def _build(node: ast.expr, tensors: Sequence[Tensor]) -> Any:
    match node:
        case ast.Call(func=ast.Name(id=name)):
            keywords = {word.arg: _build(word.value, tensors) for word in node.keywords if word.arg}
            return _WORDS[name](*(_build(value, tensors) for value in node.args), **keywords)
        case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
            return _build(left, tensors) & _build(right, tensors)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _build(left, tensors) | _build(right, tensors)
        case ast.UnaryOp(op=ast.Invert(), operand=part):
            return ~_build(part, tensors)
        case ast.Name(id=name):
            return tensors[int(name.removeprefix("t"))]
        case _:
            try:
                return ast.literal_eval(node)
            except ValueError as error:
                raise _NotTextError(error) from error
