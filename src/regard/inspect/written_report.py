"""A report of :func:`regard.check` as Markdown, for somebody who reviews a model and did not run the check."""

from regard.inspect.report import Report, Row, Verdict

HEADINGS: dict[Verdict, str] = {
    "FAIL": "Failed",
    "info": "For information: measured, but nothing was promised",
    "pass": "Passed",
    "skipped": "Could not be asked",
}

READING = """\
- Nothing here is read from the code: inputs were changed, and the outputs compared. A rule that passed held for these
  inputs and sizes; one that failed is broken, and the row says where.
- Numbers are the largest difference of an output, relative to max(1, its largest value), against what is let pass:
  1e-6 in float64, which causality and prefix are tried in, 1e-5 in float32, 1e-2 in float16, 5e-2 in bfloat16.
- "For information" is no fault by itself: an encoder may look at later tokens, and other libraries promise no numbers
  for a sequence that is masked as a whole.
- Random weights show the code, trained weights the model: both are worth a check."""


def markdown(report: Report) -> str:
    """The report in Markdown; see :meth:`regard.inspect.Report.to_markdown`."""
    module, _, inputs = report.subject.partition(" on ")
    lines = [f"# regard check: {module}", "", f"**{_verdict(report)}** ({report.summary}.)", ""]
    lines += ["## What was tried", "", f"- Inputs: {inputs or 'none'}", *(f"- {line}" for line in report.about), ""]
    for verdict, heading in HEADINGS.items():
        rows = [row for row in report.rows if row.verdict == verdict]
        if rows:
            lines += [f"## {heading}", "", "| rule | what it asks | largest error | found |", "|---|---|---|---|"]
            lines += [_row(row) for row in rows] + [""]
    return "\n".join([*lines, "## How to read this", "", READING, ""])


def _verdict(report: Report) -> str:
    broken = [row.name for row in report.failures]
    if not broken:
        return "No rule is broken."
    return f"{len(broken)} rule{'s are' if len(broken) > 1 else ' is'} broken: {', '.join(broken)}."


def _row(row: Row) -> str:
    cells = (row.name, row.meaning, row.numbers, row.explanation)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
