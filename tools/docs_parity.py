"""Writes docs/data/parity.json: how near each mechanism is to its authors' numbers on this machine.

What ``regard verify`` finds, with the commits of the authors' code. python tools/docs_parity.py
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from regard.race.machine import machine
from regard.tasks.writing import write_file
from regard.verify.cases import find_cases, numbers, read
from regard.verify.comparison import RECORDED
from regard.verify.results import result_of

OUT = Path(__file__).parents[1] / "docs" / "data" / "parity.json"


def whose(source: str) -> str:
    """The repository with its commit, or "equations" for what was computed straight from the paper.

    Example:
        >>> whose("openai/sparse_attention@c53f3bdbf6225be0582f0357072e82b13c69be7d:attention.py:attention_impl")
        'openai/sparse_attention@c53f3bd'
        >>> whose("equations (arXiv 1706.03762 sec. 3)"), whose("pypi transformers==5.23.0:models/a.py:B")
        ('equations', 'transformers 5.23.0')
    """
    if source.startswith("equations"):
        return "equations"
    repository = source.split(":")[0].removeprefix("pypi ").replace("==", " ")
    name, _, commit = repository.partition("@")
    is_hash = len(commit.split()[0]) == 40 if commit else False
    return f"{name}@{commit[:7]}" if is_hash else repository


def main() -> int:
    """Repeat every recorded case; 1, and nothing written, where one is not within the limits."""
    mechanisms: dict[str, dict[str, Any]] = {}
    for case in find_cases(numbers()):
        result = result_of(case)
        if result.status != "ok":
            print(f"{case.name}: {result.status}: {result.reason}", file=sys.stderr)
            return 1
        found = mechanisms.setdefault(
            case.name.split("/")[0], {"cases": 0, "outputs": 0.0, "gradients": 0.0, "sources": Counter()}
        )
        found["cases"] += 1
        found["outputs"] = max(found["outputs"], result.outputs or 0.0)
        found["gradients"] = max(found["gradients"], result.gradients or 0.0)
        found["sources"][whose(read(case.path)[1]["source"])] += 1
    facts = {"schema": "regard.docs.parity/1", "created": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    text = json.dumps({**facts, "machine": machine(), "limits": asdict(RECORDED), "mechanisms": mechanisms}, indent=1)
    write_file(OUT, f"{text}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
