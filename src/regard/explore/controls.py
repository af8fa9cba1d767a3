"""What can be changed about a mechanism, read from its constructor: numbers, choices, switches, and words."""

import ast
import inspect
import re
import types
import typing
from dataclasses import asdict, dataclass
from typing import Any, Literal

from regard.factory import find
from regard.tasks.documents import InputError

Kind = Literal["number", "choice", "switch", "text"]

OURS = frozenset({"dim", "num_heads", "causal", "max_length", "device", "dtype", "context_dim", "num_axes"})
"""Options that the explorer sets itself, or that have a control of their own."""

STARTS = {
    "block_length": 32,
    "chunk_length": 16,
    "cluster_size": 16,
    "clusters": 8,
    "columns": 4,
    "block": 16,
    "num_keys": 64,
    "num_landmarks": 16,
    "rank": 16,
    "segment_length": 64,
    "stride": 16,
    "topk": 8,
    "window": 32,
}
"""Defaults made for thousands of tokens show nothing on a sentence: what larger ones start at, by the option's name."""


@dataclass(frozen=True)
class Control:
    """One option of a constructor.

    Attributes:
        name: of the option.
        kind: how it is entered.
        default: what the constructor takes by itself.
        start: what the explorer starts with.
        choices: of a choice, in order.
        integer: a number without a fraction.
        optional: None is a value too; a number is then left empty.
        words: what the constructor's docstring says about it.
    """

    name: str
    kind: Kind
    default: Any
    start: Any
    choices: tuple[Any, ...] = ()
    integer: bool = False
    optional: bool = False
    words: str = ""

    def to_json(self) -> dict[str, Any]:
        """For the page; values are written as Python writes them."""
        values = {"default": written(self.default), "start": written(self.start)}
        return {**asdict(self), **values, "choices": [written(choice) for choice in self.choices]}

    def read(self, text: str) -> Any:
        """The value that was entered.

        Raises:
            InputError: it is no value of this option.

        Example:
            >>> Control("rank", "number", 128, 16, integer=True).read("32")
            32
        """
        text = text.strip()
        if not text:
            return self.default
        if self.kind == "number":
            return self._number(text)
        if self.kind == "text":
            return _literal(text)
        allowed = self.choices if self.kind == "choice" else (True, False)
        for value in allowed:
            if written(value) == text:
                return value
        raise InputError(f"{self.name}: {text!r} is none of {', '.join(map(written, allowed))}")

    def _number(self, text: str) -> Any:
        value = _literal(text)
        if value is None and self.optional:
            return None
        if isinstance(value, bool) or not isinstance(value, int if self.integer else (int, float)):
            raise InputError(f"{self.name}: {text!r} is no {'whole number' if self.integer else 'number'}")
        if abs(value) > 1e6:
            raise InputError(f"{self.name}: {text} is more than this page tries; at most 1,000,000")
        return value


def controls(name: str) -> tuple[list[Control], list[str]]:
    """The options of a mechanism that can be changed here, and the names of those that only code can set.

    Example:
        >>> [(control.name, control.kind, control.default) for control in controls("linformer")[0]]
        [('rank', 'number', 128), ('share', 'choice', 'heads')]
    """
    maker = find(name).cls
    words = _words(inspect.getdoc(maker) or "")
    found: list[Control] = []
    only_code: list[str] = []
    for slot in inspect.signature(maker).parameters.values():
        if slot.name in OURS or slot.name.endswith("drop") or slot.default is slot.empty:
            continue
        control = _control(slot, words.get(slot.name, ""))
        if control is None:
            only_code.append(slot.name)
        else:
            found.append(control)
    return found, only_code


def written(value: Any) -> str:
    """A value as it is entered: words as they are, everything else as Python writes it."""
    return value if isinstance(value, str) else repr(value)


def _control(slot: inspect.Parameter, words: str) -> Control | None:
    """The control of one parameter; None for objects that nobody can type."""
    kinds = _members(slot.annotation)
    optional = type(None) in kinds
    kinds = [kind for kind in kinds if kind is not type(None)]
    start = slot.default
    if type(start) is int and start > STARTS.get(slot.name, start):
        start = STARTS[slot.name]
    shared: dict[str, Any] = {"default": slot.default, "start": start, "optional": optional, "words": words}
    if all(typing.get_origin(kind) is Literal for kind in kinds):
        values = [value for kind in kinds for value in typing.get_args(kind)]
        return Control(slot.name, "choice", choices=(*([None] if optional else []), *values), **shared)
    if kinds == [bool]:
        if optional:
            return Control(slot.name, "choice", choices=(None, True, False), **shared)
        return Control(slot.name, "switch", **shared)
    if set(kinds) <= {int, float}:
        return Control(slot.name, "number", integer=float not in kinds, **shared)
    if any(inspect.isclass(kind) and kind.__module__.startswith("regard.") for kind in kinds):
        return None
    return Control(slot.name, "text", **shared)


def _members(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(annotation) for member in _members(part)]
    return [annotation]


def _words(docstring: str) -> dict[str, str]:
    """What the "Args:" of a docstring say, by name."""
    section = re.search(r"^Args:\n((?:[ ]{4}.*\n?|\n)+)", docstring, re.MULTILINE)
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", section[1].rstrip()) if section else []:
        titles, _, text = entry.partition(":")
        found |= {title.strip(): re.sub(r"\s+", " ", text).replace("``", "").strip() for title in titles.split(",")}
    return found


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
