"""``regard verify``: the authors' numbers on this machine, one line a case."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from regard.race.machine import installed, machine
from regard.verify.comparison import LIMITS, RECORDED
from regard.verify.results import Result, cases, check_arithmetic, result_of

SCHEMA = "regard.verify/1"


def print_verification(
    names: Sequence[str], *, folder: Path | None, device: str, dtype: str | None, as_json: bool
) -> bool:
    """Repeat the cases and print what became of each.

    Returns:
        Whether all of them are ok.
    """
    kind: torch.dtype | None = None if dtype is None else getattr(torch, dtype)
    check_arithmetic(device, kind)
    chosen = cases(names, folder)
    limits, told = (LIMITS[kind] if kind else RECORDED), dtype or "as recorded"
    if not as_json:
        allowed = f"outputs {limits.outputs:.2g}, gradients {limits.gradients:.2g}"
        print(f"on {device}, {told}; errors relative to max(1, largest), allowed are {allowed}")
    results: list[Result] = []
    width = max(len(case.name) for case in chosen)
    for case in chosen:
        results.append(result_of(case, device=device, dtype=kind))
        if not as_json:
            print(line(results[-1], width), flush=True)
    if as_json:
        facts: dict[str, Any] = {"schema": SCHEMA, "machine": machine(), "device": device, "dtype": dtype}
        print(
            json.dumps({**facts, "limits": asdict(limits), "cases": [_plain(result) for result in results]}, indent=1)
        )
    else:
        print(summary(results, f"regard {installed('regard')}, torch {torch.__version__}, {device}, {told}"))
    return all(result.status == "ok" for result in results)


def summary(results: Sequence[Result], where: str) -> str:
    """What can be quoted: how many mechanisms and cases, whether all are met, the largest errors, and where."""
    mechanisms = len({result.name.partition("/")[0] for result in results})
    head = f"{counted(mechanisms, 'mechanism')}, {counted(len(results), 'case')}"
    wrong = [result for result in results if result.status != "ok"]
    if wrong:
        counts = Counter(result.status for result in results)
        words = ", ".join(f"{counts[status]} {status}" for status in ("ok", "FAIL", "cannot") if counts[status])
        return f"{head}: {words} ({where})\nnot met: {', '.join(result.name for result in wrong)}"
    worst = ", ".join(
        f"{name} {max(errors):.1e}"
        for name in ("outputs", "gradients")
        if (errors := [error for result in results if (error := getattr(result, name)) is not None])
    )
    return f"{head}: all within the limits, largest errors {worst} ({where})"


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "case"), counted(2, "case")
        ('1 case', '2 cases')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def line(result: Result, width: int) -> str:
    """One case in one line; its name takes ``width`` columns."""
    errors = [
        f"{name} {error:.1e}"
        for name, error in (("outputs", result.outputs), ("gradients", result.gradients))
        if error is not None
    ]
    words = ", ".join(errors) + (": " if errors and result.reason else "") + result.reason
    return f"{result.status:6}  {result.name:{width}}  {words}" + (f"  ({result.source})" if result.source else "")


def _plain(result: Result) -> dict[str, Any]:
    """For JSON, which has no word for numbers that are not finite."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(result).items()
    }
