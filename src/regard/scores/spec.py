"""From canonical text back to a term: how terms travel through opaque operators."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor

from regard.scores.index import Relative, RelativeGrid, T5Buckets, own_index
from regard.scores.terms import Bias, Dot, Slope, SoftCap, Term

_WORDS: dict[str, Callable[..., Any]] = {
    "Relative": Relative,
    "T5Buckets": T5Buckets,
    "RelativeGrid": RelativeGrid,
    "own_index": own_index,
}
_TERMS: dict[str, Callable[[Sequence[Any], Sequence[Tensor]], Term]] = {
    "Bias": lambda arguments, tensors: Bias(tensors[0], arguments[0]),
    "Dot": lambda arguments, tensors: Dot(tensors[0], tensors[1], arguments[0]),
    "Slope": lambda arguments, tensors: Slope(*tensors),
    "SoftCap": lambda arguments, tensors: SoftCap(arguments[0]),
}


def from_spec(spec: str, tensors: Sequence[Tensor] = ()) -> Term:
    """The term that has this ``spec`` and these ``tensors``.

    Raises:
        ValueError: the text is not a term's.

    Example:
        >>> from_spec("SoftCap(30.0)")
        SoftCap(30.0)
    """
    try:
        name, arguments = _read(spec)
        return _TERMS[name](arguments, tensors)
    except (SyntaxError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"not a score term: {spec!r} with {len(tensors)} tensors ({error})") from error


@lru_cache(maxsize=256)
def _read(spec: str) -> tuple[str, tuple[Any, ...]]:
    match ast.parse(spec, mode="eval").body:
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return name, tuple(_value(argument) for argument in arguments)
        case _:
            raise SyntaxError("a term is written as a call")


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return _WORDS[name](*(_value(argument) for argument in arguments))
        case _:
            return ast.literal_eval(node)
