"""The answer: a name, the call that makes it, and the table it was read from."""

import textwrap
from dataclasses import asdict, dataclass, field
from typing import Any

from regard.advice.verdict import PLAIN, Row
from regard.bench.table import milliseconds
from regard.race.entrants import YARDSTICK

SCHEMA = "regard.recommend/1"
WIDTH = 80

QUALITY = (
    "Mechanisms are different functions. This table says how fast they are, not how well they learn: "
    "regard race trains them on your data."
)


@dataclass(frozen=True)
class Recommendation:
    """What :func:`regard.recommend` found; it prints as a table.

    Attributes:
        name: the mechanism to take, as NAME or NAME:option=value,...; "full" is plain softmax attention; empty where
            nothing stays within the limits.
        call: the exact call that makes the layer; empty where ``name`` is.
        sentence: the answer with its reason.
        rows: one :class:`Row` a candidate.
        question: what was asked, in one line.
        clock: the seconds that count: "cpu" or "wall".
        machine: processor, cores, threads, versions.
        measured: when, ISO 8601.
        kept: the answer comes from an earlier measurement.
        interrupted: Ctrl-C ended the measuring.
        notes: what else must be said.
    """

    name: str
    call: str
    sentence: str
    rows: tuple[Row, ...]
    question: str
    clock: str
    machine: dict[str, Any]
    measured: str
    kept: bool = False
    interrupted: bool = False
    notes: tuple[str, ...] = field(default=())

    @property
    def crossovers(self) -> dict[str, str]:
        """From which length on each is faster than plain softmax, in words: "1480", "below 512", "not up to 8k"."""
        return {row.label: row.crossover for row in self.rows if row.crossover}

    def __getitem__(self, label: str) -> Row:
        """The row of one candidate.

        Raises:
            KeyError: nobody has this label.
        """
        for row in self.rows:
            if row.label == label:
                return row
        raise KeyError(f"no candidate {label!r}; there are {', '.join(row.label for row in self.rows)}")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"schema": SCHEMA, **asdict(self)}

    def __repr__(self) -> str:
        return f"Recommendation({self.name!r}: {self.sentence})"

    def __str__(self) -> str:
        machine = self.machine
        threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
        place = machine["processor"] if self.clock == "cpu" or not machine["accelerator"] else machine["accelerator"]
        when = f"measured {self.measured}" + (" and kept since then" if self.kept else "")
        lines = [*_wrapped(self.question)]
        lines += _wrapped(f"{place}, {threads}, torch {machine['torch']}; {when}")
        lines += ["", *self._table(), ""]
        lines += _wrapped(f"ms: median {self.clock} time of a call; of {YARDSTICK}: share of {PLAIN}, round by round")
        lines += [line for note in self.notes for line in _wrapped(note)]
        lines += self._others()
        lines += ["", *_wrapped(self.sentence), *([f"  {self.call}"] if self.call else []), *_wrapped(QUALITY)]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        head = ("mechanism", "ms", f"of {YARDSTICK}", "spread", "MB", "faster from", "")
        body = [_cells(row) for row in self.rows if row.seconds is not None]
        widths = [max(len(cells[column]) for cells in (head, *body)) for column in range(len(head))]
        return [
            "  ".join(
                cell.ljust(wide) if column in (0, len(head) - 1) else cell.rjust(wide)
                for column, (cell, wide) in enumerate(zip(cells, widths, strict=True))
            ).rstrip()
            for cells in (head, *body)
        ]

    def _others(self) -> list[str]:
        """Those without a time, and why; each reason is told once."""
        found: dict[str, list[str]] = {}
        for row in self.rows:
            if row.seconds is None:
                found.setdefault(_why_not(row), []).append(row.label)
        lines = ["not measured:"] if found else []
        for why, labels in found.items():
            lines += textwrap.wrap(f"{', '.join(labels)}: {why}", WIDTH, initial_indent="  ", subsequent_indent="    ")
        return lines


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.label,
        "" if row.seconds is None else milliseconds(row.seconds),
        "" if row.relative is None else f"{row.relative:.2f}",
        "" if row.spread is None or row.label == YARDSTICK else f"{row.spread:.2f}",
        "" if row.memory_bytes is None else f"{row.memory_bytes / 1e6:,.0f}",
        row.crossover,
        "" if row.status == "measured" else row.status,
    )


def _why_not(row: Row) -> str:
    if row.status in ("cannot", "left out", "no room"):
        return row.reason
    return f"{row.status}: {row.reason}" if row.reason else row.status


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")
