"""What :func:`regard.check` returns: a table of verdicts that reads as plain text and travels as JSON."""

import math
import textwrap
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["pass", "FAIL", "info", "skipped"]

WIDTH = 120


@dataclass(frozen=True, kw_only=True)
class Row:
    """One rule and what became of it.

    Attributes:
        name: the rule, e.g. "causality".
        verdict: "pass"; "FAIL"; "info": measured, but nothing was promised; "skipped": could not be asked.
        measured, limit: the largest difference, relative to max(1, largest value), and what is allowed; None where the
            rule is not a number, infinite where the result is not finite.
        explanation: one or two sentences for the reader of the report.
        meaning: what the rule asks for, in one sentence.
    """

    name: str
    verdict: Verdict
    measured: float | None = None
    limit: float | None = None
    explanation: str = ""
    meaning: str = ""

    @property
    def numbers(self) -> str:
        """Measured against allowed, e.g. "3.1e-07 <= 1e-05"."""
        if self.measured is None:
            return ""
        if self.limit is None:
            return f"{self.measured:.2g}"
        return f"{self.measured:.2g} {'<=' if self.measured <= self.limit else '>'} {self.limit:.2g}"


@dataclass(frozen=True)
class Report:
    """The rows of one check, in the order in which the rules ran.

    Attributes:
        subject: what was checked, e.g. "MultiHead on x float32 (2, 17, 12)".
        rows: one :class:`Row` a rule.
        about: how it was tried: claims, masks, positions, seed, device and versions, a sentence each.

    Example:
        >>> report = Report("Identity on input float32 (2, 3, 4)", (Row(name="determinism", verdict="pass"),))
        >>> report.ok, report["determinism"].verdict
        (True, 'pass')
    """

    subject: str
    rows: tuple[Row, ...]
    about: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True when no rule failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows that failed."""
        return tuple(row for row in self.rows if row.verdict == "FAIL")

    def __getitem__(self, name: str) -> Row:
        """The row of this name.

        Raises:
            KeyError: no such rule.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no rule {name!r}; the rules are {', '.join(row.name for row in self.rows)}")

    def raise_if_failed(self) -> None:
        """Raise, with the whole report as the message, if a rule failed; for use in tests.

        Raises:
            AssertionError: a rule failed.
        """
        if not self.ok:
            raise AssertionError(str(self))

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the subject, ``ok``, how it was tried, the rows; infinity and NaN, unknown to JSON, are text."""
        rows = [
            {
                key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in asdict(row).items()
            }
            for row in self.rows
        ]
        return {"subject": self.subject, "ok": self.ok, "about": list(self.about), "rows": rows}

    def to_markdown(self) -> str:
        """For a reader who was not there: the verdict, how it was tried, every rule with what it asks, how to read it.

        Example:
            >>> row = Row(name="determinism", verdict="pass", meaning="Two calls agree.", explanation="they do")
            >>> print(Report("Identity on input float32 (2, 3, 4)", (row,)).to_markdown().splitlines()[0])
            # regard check: Identity
        """
        from regard.inspect.written_report import markdown  # which is about reports

        return markdown(self)

    def __str__(self) -> str:
        names = max((len(row.name) for row in self.rows), default=0)
        numbers = max((len(row.numbers) for row in self.rows), default=0)
        lines = [f"{self.subject}: {self.summary}"]
        for row in self.rows:
            head = f"  {row.verdict:<7}  {row.name:<{names}}  {row.numbers:<{numbers}}  "
            wide = max(WIDTH, len(head) + 40)
            lines += textwrap.wrap(row.explanation, wide, initial_indent=head, subsequent_indent=" " * len(head)) or [
                head.rstrip()
            ]
        return "\n".join(lines)

    @property
    def summary(self) -> str:
        """How many rules failed, passed, and so on."""
        counts = {
            verdict: sum(row.verdict == verdict for row in self.rows) for verdict in ("FAIL", "pass", "info", "skipped")
        }
        words = {"FAIL": "failed", "pass": "passed", "info": "for information", "skipped": "skipped"}
        return ", ".join(f"{count} {words[verdict]}" for verdict, count in counts.items() if count or verdict == "FAIL")
