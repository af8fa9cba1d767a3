"""``regard verify``: the authors' numbers on this machine, one line a case."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from regard.race.machine import machine
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
        allowed = f"outputs {limits.outputs:.1g}, gradients {limits.gradients:.1g}"
        print(f"on {device}, {told}; errors relative to max(1, largest), allowed are {allowed}")
    results: list[Result] = []
    width = max(len(case.name) for case in chosen)
    for case in chosen:
        results.append(result_of(case, device=device, dtype=kind))
        if not as_json:
            print(line(results[-1], width), flush=True)
    counts = Counter(result.status for result in results)
    if as_json:
        facts: dict[str, Any] = {"schema": SCHEMA, "machine": machine(), "device": device, "dtype": dtype}
        print(
            json.dumps({**facts, "limits": asdict(limits), "cases": [_plain(result) for result in results]}, indent=1)
        )
    else:
        print(f"{len(results)} cases: {', '.join(f'{number} {status}' for status, number in counts.items())}")
    return counts["ok"] == len(results)


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
