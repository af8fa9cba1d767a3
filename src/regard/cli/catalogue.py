"""``regard list`` and ``regard show``: the registry, for people."""

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from regard.cli.display import make_console
from regard.factory import card, create, names
from regard.inspect.loading import parse_option
from regard.map_layers import fixed_pattern
from regard.patterns import Pattern
from regard.patterns.picture import density_map
from regard.race.entrants import YARDSTICK, nearest
from regard.registry import Card, Layer
from regard.tasks.documents import InputError

SIDE = 32
ROOMY = 110  # columns of a terminal that has room for sentences
SHADES = " ░▒▓█"
ABILITIES = {
    "cross": "cross",
    "gqa": "gqa",
    "streaming": "streaming",
    "segments": "segments",
    "compile": "compile (fullgraph)",
    "dynamic": "dynamic length",
    "export": "export",
    "onnx": "onnx",
}
"""The fields of a card that say yes or no, and what they are called in it."""


def print_list(*, data: Any, causal: bool | None, family: str | None, as_json: bool) -> None:
    """One row a mechanism."""
    found = {name: card(name) for name in names(data=data, causal=causal, family=family)}
    if as_json:
        print(
            json.dumps(
                {name: {**asdict(about), "refuses": dict(about.refuses)} for name, about in found.items()}, indent=1
            )
        )
        return
    if not found:
        families = sorted({card(name).family for name in names()})
        raise InputError(f"no mechanism fits; families are {', '.join(families)}")
    table, console = Table(), make_console()
    for title in ("name", "year", "family", "data", "causal", "cost"):
        table.add_column(title, no_wrap=title != "cost")
    roomy = console.width >= ROOMY
    if roomy:
        table.add_column("what it is")
    for name, about in found.items():
        row = [name, str(about.year), about.family, about.data, about.causal or "no", about.cost]
        table.add_row(*row, *([about.summary or about.title] if roomy else []))
    console.print(table)


def print_card(name: str, *, png: Path | None, length: int, causal: bool | None, options: Sequence[str]) -> None:
    """The card, and the pattern as the terminal or a picture can draw it.

    Raises:
        InputError: an unknown name, or ``png`` for a mechanism without a fixed pattern.
    """
    name = name.replace("-", "_")
    if name != YARDSTICK and name not in names():
        raise InputError(f"no mechanism is called {name!r}: {nearest(name)}")
    if length < 1:
        raise InputError(f"--length {length} is not positive")
    about = card(name)
    causal = bool(about.causal) if causal is None else causal
    layer = _layer(name, about, causal, length, dict(map(parse_option, options)))
    sides = (length,) if about.data != "map" else (math.isqrt(length),) * 2
    length = math.prod(sides)
    pattern = fixed_pattern(layer, sides)
    if png is not None:
        if pattern is None:
            raise InputError(f"{name} has no fixed pattern to draw")
        _draw(pattern, length, png)
        print(png)
        return
    print(describe(name, about))
    if pattern is not None:
        places = f"{length} positions" if len(sides) == 1 else f"{' x '.join(map(str, sides))} pixels, row by row"
        print(f"\n{pattern!r}, {'causal, ' if causal else ''}{places}: queries downwards, keys to the right")
        print(f"density {pattern.density(length, heads=_heads(pattern)):.3g}")
        print(drawn(pattern, length))


def describe(name: str, about: Card) -> str:
    """A card as text."""
    causality = {
        "strict": "yes",
        "selection": "by selection only: which keys are picked depends on later tokens",
        None: "no",
    }
    rows = {
        "paper": f"{about.paper} ({about.year})",
        "family": about.family,
        "data": about.data,
        "formula": about.formula,
        "cost": about.cost,
        "causal": causality[about.causal],
        "can": ", ".join(text for field, text in ABILITIES.items() if getattr(about, field)),
        "refuses": "; ".join(f"{option}: {reason}" for option, reason in about.refuses.items()),
    }
    lines = [f"{name}: {about.title}", *textwrap.wrap(about.summary, 100), ""]
    return "\n".join(lines + [f"  {title:<8} {text}" for title, text in rows.items() if text])


def drawn(pattern: Pattern, length: int, side: int = SIDE) -> str:
    """The pattern in block characters, two columns a cell to look square; different heads below one another."""
    maps = density_map(pattern, length, heads=_heads(pattern), largest=side)
    panels = list({panel.numpy().tobytes(): panel for panel in maps}.values())
    return "\n\n".join("\n".join(_shade(row) for row in panel) for panel in panels)


def _shade(row: Tensor) -> str:
    return "".join(SHADES[shade] * 2 for shade in (row * 4).ceil().int().tolist()).rstrip()


def _heads(pattern: Pattern) -> int | None:
    return pattern.heads


def _layer(name: str, about: Card, causal: bool, length: int, options: dict[str, Any]) -> Layer:
    """The mechanism in sizes that a picture needs."""
    shared: dict[str, Any] = {} if about.data == "pair" else {"dim": 64, "num_heads": 4}
    if about.data in ("sequence", "set"):
        shared |= {"max_length": length}
    if about.causal is not None:
        shared |= {"causal": causal}
    return create(name, **{**shared, **options})


def _draw(pattern: Pattern, length: int, path: Path) -> None:
    """Write the picture, whatever matplotlib's suffix rules would make of the name."""
    import matplotlib

    matplotlib.use("Agg")
    figure = pattern.plot(length).get_figure(root=True)
    assert figure is not None
    try:
        figure.savefig(path, format="png", dpi=150, bbox_inches="tight")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
