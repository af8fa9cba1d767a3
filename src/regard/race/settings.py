"""What a race is: every number that two entrants share, checked before anything is written."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from regard.race.discipline import Discipline
from regard.race.disciplines import DISCIPLINES
from regard.tasks.documents import InputError
from regard.train.budget import Budget


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a race.

    Attributes:
        files: files and directories of the user; empty: the default text.
        smoke: little data that needs no package, instead of the default.
        task: the name of a :class:`Discipline`.
        scale: "small" fits the default budget, "full" has the sizes of the published benchmark.
        horizon: steps to forecast, where the task is forecasting.
        mechanisms: as given: "causal", "all", or NAME or NAME:option=value,... each.
        length: positions per sequence, or pixels on the side of an image.
        ngram: each position also reads the embeddings of the tokens before it, this many tokens in all; 1: its own.
        steps, seconds: the budget of each entrant, one of the two.
        dim, depth, num_heads: the Transformer that all entrants share.
        batch: sequences or images per step.
        seed: of the shared initial weights and of the data order.
        learning_rate: at its peak.
        device: "auto" or "cpu".
    """

    files: tuple[str, ...] = ()
    smoke: bool = False
    task: str = "lm"
    scale: Literal["small", "full"] = "small"
    horizon: int | None = None
    mechanisms: tuple[str, ...] = ()
    length: int = 2048
    ngram: int = 4
    steps: int | None = None
    seconds: float | None = None
    dim: int = 128
    depth: int = 2
    num_heads: int = 4
    batch: int = 1
    seed: int = 0
    learning_rate: float = 3e-3
    device: Literal["auto", "cpu"] = "auto"

    def __post_init__(self) -> None:
        for name in ("length", "ngram", "dim", "depth", "num_heads", "batch", "learning_rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"--{_option(name)} {getattr(self, name)} is not positive")
        if self.seed < 0 or self.seed >= 2**31:
            raise InputError(f"--seed {self.seed} is not between 0 and {2**31 - 1:,}")
        if self.dim % self.num_heads:
            raise InputError(f"--dim {self.dim} cannot be shared equally by --num-heads {self.num_heads}")
        if self.horizon is not None and self.horizon < 1:
            raise InputError(f"--horizon {self.horizon} is not positive")
        if self.scale not in ("small", "full"):
            raise InputError(f"--scale {self.scale} is unknown: small or full")
        takes = self.discipline.takes
        for name, default in (("files", ()), ("scale", "small"), ("horizon", None)):
            if getattr(self, name) != default and name not in takes:
                raise InputError(f"--task {self.task} takes no {'files' if name == 'files' else f'--{name}'}")
        if self.device not in ("auto", "cpu"):
            raise InputError(f"--device {self.device} is unknown: auto or cpu")
        _ = self.budget

    @property
    def discipline(self) -> Discipline:
        """What the race is about.

        Raises:
            InputError: there is no such task.
        """
        return _discipline(self.task)

    @property
    def budget(self) -> Budget:
        """The budget of each entrant."""
        return Budget(self.steps, self.seconds)

    @property
    def sides(self) -> tuple[int, ...]:
        """What attention sees at once: the length of a sequence, or the sides of a map."""
        patch = self.discipline.patch
        return (self.length,) if patch is None else (-(-self.length // patch),) * 2

    @property
    def positions(self) -> int:
        """How many places attention sees at once."""
        return math.prod(self.sides)

    def intake(self, unit: str) -> str:
        """What the model reads, in words; ``unit`` is what a position of the data is, in the plural."""
        patch = self.discipline.patch
        return f"{self.ngram}-grams of {unit}" if patch is None else f"patches of {patch} x {patch} {unit}"

    def portion(self, unit: str) -> str:
        """What it reads in one step of training, in words."""
        sides = f"{self.length:,}" if self.discipline.patch is None else f"{self.length:,} x {self.length:,}"
        return f"{self.batch} x {sides} {unit} a step"

    @property
    def digest(self) -> str:
        """Short name of these settings; a checkpoint carries it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Settings":
        """Settings from the options that were given; the rest as the task has it, at its scale."""
        chosen = {name: value for name, value in given.items() if value is not None}
        discipline = _discipline(chosen.get("task", "lm"))
        usual: dict[str, Any] = dict(discipline.defaults)
        if chosen.get("scale") == "full":
            usual |= discipline.full
        if chosen.get("smoke"):
            if chosen.get("files"):
                raise InputError("--smoke brings its own text: leave out either it or the files")
            usual |= discipline.smoke
        if "steps" in chosen or "seconds" in chosen:
            usual = {name: value for name, value in usual.items() if name not in ("steps", "seconds")}
        elif "steps" in usual:
            usual.pop("seconds", None)
        else:
            usual.setdefault("seconds", DEFAULT_SECONDS)
        return cls(**usual | chosen)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Settings":
        """The inverse of ``dataclasses.asdict`` through JSON."""
        known = {item.name for item in fields(cls)}
        values: dict[str, Any] = {name: value for name, value in stored.items() if name in known}
        values |= {name: tuple(values[name]) for name in ("files", "mechanisms")}
        return cls(**values)

    def differences(self, given: Mapping[str, Any]) -> list[str]:
        """What ``given`` (None: not given) asks for that these settings are not, in words."""
        return [
            f"{_option(name)} was {_words(getattr(self, name))} and is now {_words(value)}"
            for name, value in given.items()
            if value is not None and value != getattr(self, name)
        ]


DEFAULT_SECONDS = 14.0
"""Eight entrants and the control then take less than four minutes on two cores, start and examinations included."""


def _discipline(name: str) -> Discipline:
    if name not in DISCIPLINES:
        raise InputError(f"--task {name} is unknown: {', '.join(DISCIPLINES)}")
    return DISCIPLINES[name]


def _option(name: str) -> str:
    """The name on the command line."""
    return {"seconds": "budget"}.get(name, name.replace("_", "-"))


def _words(value: Any) -> str:
    if value is None:
        return "(none)"
    return " ".join(map(str, value)) or "(none)" if isinstance(value, tuple) else str(value)
