"""``regard check``: the report in the terminal, in a file, as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regard.inspect.loading import check_path
from regard.tasks.documents import InputError
from regard.tasks.writing import write_file


def print_check(
    spec: str, options: Sequence[str], inputs: str | None, *, out: Path | None, as_json: bool, **arguments: Any
) -> bool:
    """Check, print the report, and perhaps write it.

    Args:
        spec, options, inputs, arguments: those of :func:`regard.inspect.loading.check_path`.
        out: a file for the report in Markdown.
        as_json: print JSON instead of the table.

    Returns:
        Whether no rule is broken.
    """
    if out is not None and not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}")
    if out is not None and out.is_dir():
        raise InputError(f"--out {out} is a folder: name a file, such as {out / 'report.md'}")
    report = check_path(spec, options, inputs, **arguments)
    print(json.dumps(report.to_dict(), indent=1) if as_json else report)
    if out is not None:
        write_file(out, report.to_markdown().encode())
        if not as_json:
            print(out)
    return report.ok
