"""What :func:`regard.swap_attention` says about each attention, as a table that reads as text and travels as JSON."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn

Verdict = Literal[
    "exact", "within tolerance", "approximate", "exact by construction", "not measured", "left alone"
]  # fmt: skip
GOOD: tuple[Verdict, ...] = ("exact", "within tolerance", "exact by construction")


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One attention of the model.

    Attributes:
        name: its path in the model.
        kind: what it was, e.g. "torch.nn.MultiheadAttention".
        verdict: "exact": equal to rounding; "within tolerance"; "approximate": further away; "exact by construction":
            not measured, but the new attention computes the same by definition; "not measured"; "left alone".
        error: the largest difference of its output at real tokens, divided by the largest output there, both on what
            the original model put into it.
        rms: the same of root mean squares instead of largest values: how far a typical number is off.
        kl: KL(old row || new row) of the attention maps, in nats, the mean over real queries and heads. A key that the
            new attention never sees counts as one of weight 1e-6, so that it costs a finite amount.
        overlap: share of the 10 heaviest keys of each old row (of all that it has, where they are fewer) that are among
            the equally many heaviest of the new one.
        note: why there is no map, why it was left alone, what could not be kept.
    """

    name: str
    kind: str
    verdict: Verdict
    error: float | None = None
    rms: float | None = None
    kl: float | None = None
    overlap: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class SwapReport:
    """What became of a model's attentions.

    Attributes:
        title: what was put where, in one line.
        rows: one :class:`LayerRow` for each attention that was found.
        tolerance: the error up to which a row is "within tolerance".
        output_error: of the whole model's first output, measured as the rows' errors are; None without a batch.
        notes: what else was done or must be known, in sentences.
        model: the model after the swap; the model itself, unless that is one attention.
        dry_run: nothing was changed.
    """

    title: str
    rows: tuple[LayerRow, ...]
    tolerance: float
    model: nn.Module
    output_error: float | None = None
    notes: tuple[str, ...] = ()
    dry_run: bool = False

    @property
    def ok(self) -> bool:
        """True when every attention that was replaced is exact or within tolerance."""
        return all(row.verdict in GOOD for row in self.swapped)

    @property
    def swapped(self) -> tuple[LayerRow, ...]:
        """The rows that were not left alone."""
        return tuple(row for row in self.rows if row.verdict != "left alone")

    def to_dict(self) -> dict[str, Any]:
        """All but the model, of numbers and text only."""
        return {
            "title": self.title,
            "dry_run": self.dry_run,
            "ok": self.ok,
            "tolerance": self.tolerance,
            "output_error": self.output_error,
            "rows": [asdict(row) for row in self.rows],
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """The same as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        notes = list(dict.fromkeys(row.note for row in self.rows if row.note))
        head = ("attention", "verdict", "largest error", "rms error", "map KL", "top-10", "note")
        lines: list[tuple[str, ...]] = [head]
        for row in self.rows:
            numbers = (_number(value) for value in (row.error, row.rms, row.kl, row.overlap))
            lines.append(
                (row.name or row.kind, row.verdict, *numbers, str(notes.index(row.note) + 1 if row.note else ""))
            )
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
        text = [self.title + (" (dry run: nothing was changed)" if self.dry_run else ""), *table]
        text += [f"note {number}: {note}" for number, note in enumerate(notes, start=1)]
        if self.output_error is not None:
            text.append(f"whole model: the largest error of its output is {_number(self.output_error)}")
        return "\n".join([*text, *self.notes])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
