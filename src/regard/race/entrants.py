"""Who races: names and variants from the command line, and the reasons of those who cannot."""

import ast
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from regard.factory import card, create, names
from regard.models.on_maps import map_attention
from regard.race.settings import Settings
from regard.registry import Card, Data
from regard.tasks.documents import InputError

YARDSTICK = "full"
_ALIASES = {"multi_head": YARDSTICK}


@dataclass(frozen=True)
class Entrant:
    """One mechanism with its options.

    Attributes:
        name: the registry name ("full" for plain multi-head attention).
        options: what differs from the mechanism's defaults.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def label(self) -> str:
        """As it is written on the command line."""
        return self.name + "".join(
            f"{',' if number else ':'}{option}={_plain(value)}"
            for number, (option, value) in enumerate(self.options.items())
        )

    @property
    def slug(self) -> str:
        """As it is written in a file name."""
        return re.sub(r"[^\w.=-]+", "_", self.label)

    @property
    def card(self) -> Card:
        """The mechanism's card."""
        return card(self.name)

    def mark(self, settings: Settings, unit: str) -> str:
        """What must be said wherever the entrant is named; ``unit`` is what a position is, in the plural."""
        if self == CONTROL:
            each = unit.removesuffix("s") if settings.discipline.patch is None else "patch"
            return f"the control: each {each} sees only itself, so this is the same model without attention"
        selects = settings.discipline.causal and self.card.causal == "selection"
        return f"causal by selection only: which keys are picked depends on later {unit}" if selects else ""

    def arguments(self, settings: Settings) -> dict[str, Any]:
        """The arguments of ``regard.create`` that this race uses."""
        shared: dict[str, Any] = {"dim": settings.dim, "num_heads": settings.num_heads}
        if self.card.data != "map":
            shared |= {"max_length": settings.positions, "causal": settings.discipline.causal}
        return {**shared, **self.options}

    def call(self, settings: Settings) -> str:
        """The exact call that makes this entrant's attention."""
        arguments = "".join(f", {name}={value!r}" for name, value in self.arguments(settings).items())
        on_maps = settings.discipline.data[0] == "map" and self.card.data != "map"
        make = "regard.models.map_attention" if on_maps else settings.discipline.make
        return f'{make}("{self.name}"{arguments})'


CONTROL = Entrant("local", {"window": 0})
"""The model without attention: what a mechanism must beat to be worth its time. It cannot be the pick."""


@dataclass(frozen=True)
class Field:
    """Everybody who was asked for: those who race, and (name, reason) of those who cannot."""

    entrants: tuple[Entrant, ...]
    absent: tuple[tuple[str, str], ...]


def choose(settings: Settings) -> Field:
    """Resolve ``settings.mechanisms``; the yardstick comes first, whether it was named or not.

    Where nobody was named the field of the task runs, and in most tasks the control.

    Raises:
        InputError: an unknown name, a variant that the mechanism refuses, or sizes that suit nobody.
    """
    discipline, named = settings.discipline, settings.mechanisms
    wanted = parse(named or discipline.field(settings.length))
    entrants, absent = [Entrant(YARDSTICK)], list[tuple[str, str]]()
    for word in wanted:
        group = word.name in ("all", "causal") and not word.options
        for entrant in _group(word.name) if group else [known(word)]:
            reason = _hindrance(entrant, settings)
            if not reason:
                entrants.append(entrant)
            elif entrant.options:
                raise InputError(f"{entrant.label} cannot race: {reason}")
            else:
                absent.append((entrant.label, reason))
    if discipline.control and not named:
        entrants.append(CONTROL)
    unique = {entrant.label: entrant for entrant in entrants}
    yardstick = unique[YARDSTICK]
    if reason := _hindrance(yardstick, settings):
        raise InputError(f"{YARDSTICK} cannot race: {reason}")
    return Field(tuple(unique.values()), tuple(dict(absent).items()))


def parse(words: Sequence[str]) -> list[Entrant]:
    """Names, separated by commas or spaces, with options: ``local:window=64,form=luong,full``.

    A piece with "=" and no ":" belongs to the name before it.

    Raises:
        InputError: an option without a name or without a value.

    Example:
        >>> [entrant.label for entrant in parse(["local:window=64,exact=True,full"])]
        ['local:window=64,exact=True', 'full']
    """
    found: list[Entrant] = []
    for piece in (piece.strip() for word in words for piece in re.split(r"[,\s]+", word)):
        if not piece:
            continue
        name, colon, option = piece.partition(":")
        if not colon and "=" in piece:
            if not found:
                raise InputError(f"{piece!r} stands before any name; write NAME:{piece}")
            name, option = "", piece
        if name:
            found.append(Entrant(name.replace("-", "_")))
        if option:
            key, equals, value = option.partition("=")
            if not (key and equals and value):
                raise InputError(f"{piece!r} is not NAME:option=value")
            found[-1].options[key.replace("-", "_")] = _value(value)
        elif colon:
            raise InputError(f"{piece!r} is not NAME:option=value")
    return found


def nearest(name: str) -> str:
    """ "did you mean ...?" for a name that is not in the registry."""
    known = [*names(), YARDSTICK]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"


def known(entrant: Entrant) -> Entrant:
    """The same entrant under its usual name.

    Raises:
        InputError: no mechanism has its name; the message lists the nearest ones.
    """
    if entrant.name != YARDSTICK and entrant.name not in names():
        raise InputError(f"no mechanism is called {entrant.name!r}: {nearest(entrant.name)}")
    return Entrant(_ALIASES.get(entrant.name, entrant.name), entrant.options)


def obstacle(
    entrant: Entrant,
    arguments: dict[str, Any],
    *,
    causal: bool,
    data: Sequence[Data] = ("sequence",),
    sides: Sequence[int] = (),
) -> str:
    """Why this entrant cannot be a layer here; empty where it can.

    Args:
        entrant: who.
        arguments: those of ``regard.create``; the layer is made once, without memory, to find out.
        causal: it must not look ahead.
        data: what it may work on; the first is what is there.
        sides: of a map, on which the layer is tried.
    """
    about = entrant.card
    if about.data not in data:
        return f"works on {about.data}s, not on {data[0]}s"
    if data[0] == "pair" and not about.cross:
        return "attends within one input, not from one to another"
    if causal and about.causal is None:
        return f"not causal: {about.refuses.get('causal', 'an earlier output depends on later inputs')}"
    try:
        if data[0] == "map":
            return _trial(entrant.name, arguments, sides)
        options: dict[str, Any] = {**arguments, "device": "meta"}
        create(entrant.name, **options)
    except (TypeError, ValueError) as error:
        return " ".join(str(error).split())
    except Exception:
        return ""  # a defect of the mechanism, not of the request: its own process will report it
    return ""


def _hindrance(entrant: Entrant, settings: Settings) -> str:
    """Why this entrant cannot do the task of a race."""
    task, options = settings.discipline, entrant.arguments(settings)
    reason = obstacle(entrant, options, causal=task.causal, data=task.data, sides=settings.sides)
    if reason or task.trial is None:
        return reason
    try:
        with torch.random.fork_rng([]), torch.no_grad():
            task.trial(entrant.name, entrant.options, settings)
    except ValueError as error:
        return " ".join(str(error).split())
    except Exception:
        return ""  # as above
    return ""


def _trial(name: str, arguments: dict[str, Any], sides: Sequence[int]) -> str:
    """Whether a layer gives a map of the shape that it takes, which its arguments alone do not tell."""
    with torch.random.fork_rng([]), torch.no_grad():
        x = torch.zeros(1, arguments["dim"], *sides)
        y = map_attention(name, **arguments).eval()(x)
    return "" if y.shape == x.shape else f"makes maps of shape {tuple(y.shape)} of {tuple(x.shape)}"


def _group(word: str) -> list[Entrant]:
    """All mechanisms, or those that can be causal; whoever works on other data than the task has is told so."""
    return [Entrant(_ALIASES.get(name, name)) for name in names(causal=True if word == "causal" else None)]


def _value(text: str) -> Any:
    """Python's value where the text is one, True and False in any case, otherwise the text itself."""
    try:
        return ast.literal_eval(text.capitalize() if text.lower() in ("true", "false", "none") else text)
    except (ValueError, SyntaxError):
        return text


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
