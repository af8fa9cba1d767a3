"""Recorded cases: where they lie, what they are called, and what is in them."""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from regard.tasks.documents import InputError

IN_A_WHEEL = Path(__file__).parents[1] / "authors" / "numbers"
IN_A_CHECKOUT = Path(__file__).parents[3] / "tests" / "parity" / "data"
HEADER = ("mechanism", "source")


class CaseError(ValueError):
    """A file that is no recorded case; the message says what is wrong with it."""


@dataclass(frozen=True)
class Case:
    """One file of recorded numbers.

    Attributes:
        name: "mechanism/case": by its header, or by its folder where the header cannot be read; and by its file name.
        path: of the file.
    """

    name: str
    path: Path


def numbers() -> Path:
    """The folder of the authors' numbers that came with regard: inside its wheel, or in the checkout it runs from."""
    return IN_A_WHEEL if IN_A_WHEEL.is_dir() else IN_A_CHECKOUT


def find_cases(folder: Path) -> list[Case]:
    """Every ``*.safetensors`` file in a folder and below it, by name.

    Raises:
        InputError: there is none.
    """
    found = sorted((_name(path), path) for path in folder.rglob("*.safetensors"))
    if not found:
        raise InputError(f"no recorded numbers: there is no *.safetensors file in {folder}")
    return [Case(name, path) for name, path in found]


def select(cases: Sequence[Case], words: Sequence[str]) -> list[Case]:
    """The cases that were asked for, in their order; all of them where nothing was.

    Args:
        cases: to choose from.
        words: each a mechanism or "mechanism/case"; with commas between, several.

    Raises:
        InputError: a word that fits no case; the message lists the nearest ones.
    """
    wanted = [_folded(word.strip()) for words_ in words for word in words_.split(",") if word.strip()]
    known = {_folded(name): name for case in cases for name in (case.name, case.name.partition("/")[0])}
    for word in wanted:
        if word not in known:
            near = [known[name] for name in difflib.get_close_matches(word, known, n=3, cutoff=0.5)]
            mechanisms = sorted(name for name in known.values() if "/" not in name)
            advice = f"did you mean {' or '.join(near)}?" if near else f"there are some of {', '.join(mechanisms)}"
            raise InputError(f"there are no recorded numbers of {word!r}: {advice}")
    return [
        case
        for case in cases
        if not wanted or {_folded(case.name), _folded(case.name.partition("/")[0])}.intersection(wanted)
    ]


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header of a recorded case.

    Raises:
        CaseError: the file cannot be read, is damaged, has no header, or records nothing.
    """
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CaseError(f"not a safetensors file that can be read: {error}") from error
    if missing := [name for name in HEADER if name not in meta]:
        raise CaseError(f"its header has no {' and no '.join(missing)}")
    try:
        _ = [json.loads(meta.get(name, "{}")) for name in ("config", "call")]
    except ValueError as error:
        raise CaseError(f"config or call in its header is not JSON: {error}") from error
    if not any(name.startswith("out/") for name in tensors):
        raise CaseError("it records no outputs: no tensor is called out/...")
    return tensors, meta


def _name(path: Path) -> str:
    try:
        with safe_open(path, "pt") as file:
            mechanism = (file.metadata() or {}).get("mechanism")
    except (SafetensorError, OSError):
        mechanism = None
    return f"{mechanism or path.resolve().parent.name}/{path.stem}"


def _folded(name: str) -> str:
    return name.replace("-", "_").lower()
