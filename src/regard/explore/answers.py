"""What the page asks for, by name: JSON in, JSON out."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from regard.explore.choice import MOST_HEADS, Choice, takes
from regard.explore.controls import controls
from regard.explore.cost import cost
from regard.explore.looking import look
from regard.explore.pictures import picture
from regard.explore.reading import LENGTH
from regard.explore.trainings import KINDS, Kind, Trainings, Turn
from regard.factory import card, find, names
from regard.tasks.documents import InputError
from regard.train.budget import Budget

Answer = Callable[[Mapping[str, Any]], dict[str, Any]]

TOOLS = {
    "compile": "torch.compile",
    "dynamic": "other lengths without compiling anew",
    "export": "torch.export",
    "onnx": "ONNX",
}

CAUSALITY = {
    "strict": "yes: no earlier output changes when a later input changes",
    "selection": "by selection only: which keys are picked depends on later tokens",
    None: "no: every token may see every other",
}


class Answers:
    """All that the page can ask.

    Args:
        budget: of each training.
    """

    def __init__(self, budget: Budget) -> None:
        self.turn = Turn()
        self.trainings = Trainings(budget, self.turn)
        self._costs: dict[str, dict[str, Any]] = {}
        self.by_name: dict[str, Answer] = {
            "mechanisms": self.mechanisms,
            "describe": self.describe,
            "picture": self.picture,
            "cost": self.cost,
            "look": self.look,
            "train": self.train,
            "training": self.training,
        }

    def mechanisms(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """All of them, and what holds for the whole page."""
        listed = [
            {"name": name, "title": about.title, "family": about.family, "data": about.data}
            for name, about in ((name, card(name)) for name in names())
        ]
        return {"mechanisms": listed, "budget": str(self.trainings.budget), "length": LENGTH}

    def describe(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The card of ``asked["name"]``, and its controls."""
        name = Choice.read({"name": asked.get("name")}).name
        about = card(name)
        found, only_code = controls(name)
        return {
            "name": name,
            "title": about.title,
            "summary": about.summary,
            "data": about.data,
            "causal": causality(name),
            "heads": about.data != "pair" or takes(name, "num_heads"),
            "most_heads": MOST_HEADS,
            "controls": [control.to_json() for control in found],
            "only_code": only_code,
            "card": card_rows(name),
        }

    def picture(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The pattern, or the map of an untrained layer, and the code that makes the layer."""
        choice, length = _choice(asked), _whole(asked.get("length", 256), "positions")
        with self.turn.taken():
            return {**picture(choice, length), "call": choice.call(length)}

    def cost(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Seconds against length; measured once."""
        choice = _choice(asked)
        if choice.key not in self._costs:
            with self.turn.taken():
                self._costs[choice.key] = cost(choice)
        return self._costs[choice.key]

    def look(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The maps on the user's input."""
        choice, given = _choice(asked), asked.get("input")
        with self.turn.taken():
            return look(choice, _kind(asked), given if isinstance(given, Mapping) else {}, self.trainings)

    def train(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Begin to train."""
        return asdict(self.trainings.start(_choice(asked), _kind(asked)))

    def training(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """How far it is."""
        return asdict(self.trainings.state(_choice(asked), _kind(asked)))


def causality(name: str) -> str:
    """Whether the causal form can be chosen: "never", "always" or "either"."""
    about = card(name)
    if about.causal is None:
        return "never"
    return "either" if takes(name, "causal") else "always"


def card_rows(name: str) -> list[tuple[str, str]]:
    """What the card says, for people."""
    about = card(name)
    able = [word for word in ("cross", "gqa", "streaming", "segments") if getattr(about, word)]
    tools = [words for name, words in TOOLS.items() if getattr(about, name)]
    rows = {
        "paper": f"{about.paper} ({about.year})",
        "formula": about.formula,
        "cost": f"{about.cost} for N places" if about.cost else "",
        "causal": CAUSALITY[about.causal],
        "works on": {"map": "maps of pixels", "pair": "pairs of inputs"}.get(about.data, f"{about.data}s"),
        "family": about.family,
        "also": ", ".join(able),
        "goes with": ", ".join(tools),
        "refuses": "; ".join(f"{option}: {reason}" for option, reason in about.refuses.items()),
        "code": inspect.getmodule(find(name).cls).__name__,  # pyright: ignore[reportOptionalMemberAccess]
    }
    return [(title, text) for title, text in rows.items() if text]


def _choice(asked: Mapping[str, Any]) -> Choice:
    given = asked.get("choice")
    if not isinstance(given, Mapping):
        raise InputError("no mechanism was chosen")
    choice = Choice.read(given)
    fixed = {"never": False, "always": True}.get(causality(choice.name))
    return choice if fixed is None else Choice(choice.name, choice.num_heads, fixed, choice.options)


def _kind(asked: Mapping[str, Any]) -> Kind:
    given = asked.get("kind")
    for kind in KINDS:
        if given == kind:
            return kind
    raise InputError(f"{given!r} is no kind of input: there are {', '.join(KINDS)}")


def _whole(given: Any, what: str) -> int:
    try:
        return int(str(given))
    except ValueError:
        raise InputError(f"{what}: {given!r} is no whole number") from None
