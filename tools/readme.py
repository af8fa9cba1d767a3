"""Writes the README's table of mechanisms from the registry; ``--check`` only says whether it is current.

python tools/readme.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

import regard

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- mechanisms: made by tools/readme.py -->", "<!-- end of mechanisms -->"


def table() -> str:
    """One row a mechanism."""
    rows = [
        "| name | mechanism | on | causal | cross | decodes | time | what it is for |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in regard.names():
        card = regard.card(name)
        link = f"[{card.title}, {card.year}](https://arxiv.org/abs/{card.paper.removeprefix('arXiv:')})"
        if not card.paper.startswith("arXiv:"):
            link = f"{card.title}, {card.year}"
        yes = {True: "yes", False: "-"}
        able = [card.causal or "-", yes[card.cross], yes[card.streaming]]
        cells = [f"`{name}`", link, f"{card.data}s", *able, card.cost, card.summary]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def current() -> str:
    """The README as it should be."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(START)
    return f"{before}{START}\n{table()}\n{END}{rest.split(END)[1]}"


def main() -> int:
    """Write the table, or with ``--check`` return 1 where it is out of date."""
    wanted = current()
    if "--check" in sys.argv:
        return int(README.read_text(encoding="utf-8") != wanted)
    README.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
