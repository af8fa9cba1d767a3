"""One page a mechanism, the table of all, and the table of crossovers, made from the registry and docs/data.

Nothing is written here that a card, a docstring or a measurement says already.
"""

import inspect
from pathlib import Path

from cards_told import FAMILIES, badges, card_table, cell, paper_link, parity, yes
from costs_told import OF_DATA, SERIES, cost, measured, place, share
from mechanism_examples import example
from pictures import pattern_figure

import regard
from regard.factory import find


def write_pages(folder: Path) -> None:
    """The pages of all mechanisms, their index, and the table that the page "choose" includes."""
    folder.mkdir(exist_ok=True)
    names = regard.names()
    pages = {f"{name}.md": page(name) for name in names}
    pages |= {"index.md": index(names), "crossovers.inc": crossovers(names)}
    for stale in {path.name for path in folder.iterdir()} - pages.keys():
        (folder / stale).unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # Sphinx reads again only what has changed
            path.write_text(text, encoding="utf-8")


def page(name: str) -> str:
    """Everything about one mechanism, in MyST."""
    about = regard.card(name)
    figure = pattern_figure(name)
    parts = [
        f"# {about.title}",
        badges(name, about),
        f"{about.summary} {paper_link(about)}",
        f"```text\n{about.formula}\n```",
        f"```python\n{example(name)}\n```",
        f"## What it does\n\n{_document('automodule', find(name).cls.__module__)}",
        *([f"## Who may look at whom\n\n```{{raw}} html\n{figure}\n```"] if figure else []),
        f"## Card\n\n{card_table(find(name))}",
        f"## Cost\n\n{cost(name, about.data)}",
        f"## The authors' numbers\n\n{parity(name)}",
        f"## Reference\n\n{reference(name)}",
        f"## Of the same family\n\n{relatives(name)}",
    ]
    return "\n\n".join(parts) + "\n"


def reference(name: str) -> str:
    """Signatures and docstrings of the class and the public functions in its file."""
    cls = find(name).cls
    functions = [
        value
        for key, value in vars(inspect.getmodule(cls)).items()
        if inspect.isfunction(value) and value.__module__ == cls.__module__ and not key.startswith("_")
    ]
    return "\n\n".join(
        [
            _document("autoclass", f"{cls.__module__}.{cls.__qualname__}"),
            *(_document("autofunction", f"{one.__module__}.{one.__qualname__}") for one in functions),
        ]
    )


def _document(directive: str, path: str) -> str:
    return f"```{{eval-rst}}\n.. {directive}:: {path}\n```"


def relatives(name: str) -> str:
    """Links to the others of the family."""
    family = regard.card(name).family
    others = [_link(other) for other in regard.names(family=family) if other != name]
    return f"{family.capitalize()}, {FAMILIES[family]}: {', '.join(others)}. [All mechanisms](index.md)."


def _link(name: str, folder: str = "") -> str:
    return f"[{regard.card(name).title}]({folder}{name}.md)"


def index(names: list[str]) -> str:
    """The table of all, which filter.js can narrow."""
    rows = ["| mechanism | on | causal | cross | decodes | time | what it is for |", "|---|---|---|---|---|---|---|"]
    for name in names:
        about = regard.card(name)
        able = [about.causal or "no", yes(about.cross), yes(about.streaming)]
        cells = [_link(name), f"{about.data}s", *able, about.cost, about.summary]
        rows.append(f"| {' | '.join(map(cell, cells))} |")
    words = (
        f"{len(names)} mechanisms behind one interface: `regard.create(name, ...)` makes a layer, `regard.card(name)` "
        'tells what it promises, and the same tests hold all of them to it. "strict": no earlier output changes when a '
        'later input changes. "selection": which keys are picked depends on later tokens. Not sure which? '
        "[Choose an attention](../choose.md)."
    )
    table = ["::::{div} mechanisms", *rows, "::::"]
    toctree = ["```{toctree}", ":hidden:", "", *names, "```"]
    filters = '```{raw} html\n<p class="filters" hidden></p>\n```'
    return (
        "\n\n".join(
            ["---\nhide-toc: true\n---", "# All mechanisms", words, filters, "\n".join(table), "\n".join(toctree)]
        )
        + "\n"
    )


def crossovers(names: list[str]) -> str:
    """Where each mechanism on sequences overtakes full attention, the cheapest first."""
    forward, training = (SERIES[kind] for kind in OF_DATA["sequence"])
    known = [name for name in names if any(name in series["crossovers"] for series in (forward, training))]

    def cheapness(name: str) -> float:
        return min(share(name, series)[0] for series in (forward, training) if name in series["curves"])

    rows = ["| mechanism | time | forward, not causal | training, causal |", "|---|---|---|---|"]
    for name in sorted(known, key=cheapness):
        cells = [_link(name, "mechanisms/"), regard.card(name).cost, place(name, forward), place(name, training)]
        rows.append(f"| {' | '.join(map(cell, cells))} |")
    return "\n".join(rows) + f"\n\n{measured(forward)}\n"
