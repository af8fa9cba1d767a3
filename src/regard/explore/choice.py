"""A mechanism with its parameters, as the page sends it: checked, and made a layer."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from regard.explore.controls import controls, written
from regard.factory import card, create, find, names
from regard.race.entrants import nearest
from regard.registry import Card, Layer
from regard.tasks.documents import InputError

DIM = 64
"""The width of every layer here but those that are timed."""

MOST_HEADS = 16


@dataclass(frozen=True)
class Choice:
    """What stands in one half of the page.

    Attributes:
        name: the registry name.
        num_heads: H.
        causal: the causal form.
        options: what differs from the constructor's defaults.
    """

    name: str
    num_heads: int = 4
    causal: bool = False
    options: dict[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> "Choice":
        """From ``{"name": ..., "num_heads": ..., "causal": ..., "options": {name: text}}``.

        Raises:
            InputError: an unknown mechanism or option, or a value that it cannot have.
        """
        name, options = given.get("name"), given.get("options", {})
        if not isinstance(name, str) or name not in names():
            raise InputError(f"no mechanism is called {name!r}: {nearest(str(name))}")
        if not isinstance(options, Mapping):
            raise InputError("options: expected names with values")
        known = {control.name: control for control in controls(name)[0]}
        chosen: dict[str, Any] = {}
        for option, text in options.items():
            if option not in known:
                raise InputError(f"{name} has no option {option!r} here; it has {', '.join(known) or 'none'}")
            value = known[option].read(str(text))
            if value != known[option].default or type(value) is not type(known[option].default):
                chosen[option] = value
        return cls(name, _heads(given.get("num_heads", 4)), bool(given.get("causal", False)), chosen)

    @property
    def card(self) -> Card:
        """The mechanism's card."""
        return card(self.name)

    def arguments(self, length: int, dim: int = DIM) -> dict[str, Any]:
        """Those of :func:`regard.create` for at most ``length`` positions."""
        about = self.card
        given: dict[str, Any] = {"dim": dim, **self.options}
        if about.data != "pair" or takes(self.name, "num_heads"):
            given["num_heads"] = self.num_heads
        if about.data in ("sequence", "set") or takes(self.name, "max_length"):
            given["max_length"] = length
        if about.causal is not None and (about.data != "map" or takes(self.name, "causal")):
            given["causal"] = self.causal
        return given

    def layer(self, length: int) -> Layer:
        """The layer, in eval mode.

        Raises:
            InputError: the mechanism refuses its parameters; the message is its own.
        """
        try:
            return create(self.name, **self.arguments(length)).eval()
        except (ValueError, TypeError) as error:
            raise InputError(" ".join(str(error).split())) from error

    def call(self, length: int) -> str:
        """The code that makes the layer."""
        given = "".join(f", {name}={value!r}" for name, value in self.arguments(length).items())
        return f'regard.create("{self.name}"{given})'

    @property
    def key(self) -> str:
        """The choice in one line: equal exactly for equal choices."""
        options = ",".join(f"{name}={written(self.options[name])}" for name in sorted(self.options))
        return f"{self.name}:{options};heads={self.num_heads};causal={self.causal}"


def takes(name: str, option: str) -> bool:
    """Does the constructor of the mechanism have this option?"""
    return option in inspect.signature(find(name).cls).parameters


def _heads(given: Any) -> int:
    try:
        heads = int(str(given))
    except ValueError:
        raise InputError(f"heads: {given!r} is no whole number") from None
    if not 1 <= heads <= MOST_HEADS or DIM % heads:
        usable = ", ".join(str(count) for count in range(1, MOST_HEADS + 1) if DIM % count == 0)
        raise InputError(f"heads: the width {DIM} cannot be shared by {heads}; use {usable}")
    return heads
