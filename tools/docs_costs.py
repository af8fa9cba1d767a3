"""Reduces benchmarks to what the pages of the mechanisms show, docs/data/costs.json.

regard bench --lengths 256,512,1k,2k,4k,8k --limit 20 --out full-forward
regard bench --lengths 256,512,1k,2k,4k --limit 20 --causal --backward --out causal-backward
python benchmarks/cost_curves.py --out layers.json
python tools/docs_costs.py full-forward/bench.json causal-backward/bench.json layers.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from regard.bench.curves import crossover
from regard.tasks.writing import write_file

OUT = Path(__file__).parents[1] / "docs" / "data" / "costs.json"


def reduced(bench: dict[str, Any]) -> dict[str, Any]:
    """One benchmark of sequences in the form of benchmarks/cost_curves.py: seconds by length, who is absent and why.

    A mechanism that has no second length, because the first took too long, is absent too.
    """
    settings, clock = bench["settings"], f"{bench['clock']}_seconds"
    causal = "causal" if settings["causal"] else "not causal"
    passes = "forward and backward" if settings["backward"] else "forward"
    curves: dict[str, dict[str, float]] = {}
    memory: dict[str, dict[str, int]] = {}
    absent = {entry["name"]: entry["reason"] for entry in bench["absent"]}
    for entrant in bench["entrants"]:
        points = [point for point in entrant["points"] if point["status"] == "measured"]
        if len(points) < 2:
            absent[entrant["mechanism"]] = entrant["points"][-1]["status"]
            continue
        curves[entrant["mechanism"]] = {str(point["length"]): float(f"{point[clock]:.4g}") for point in points}
        memory[entrant["mechanism"]] = {str(point["length"]): point["memory_bytes"] for point in points}
    return {
        "words": f"{passes}, {causal}",
        "settings": {name: settings[name] for name in ("dim", "num_heads", "batch", "dtype", "threads", "rounds")},
        "unit": "tokens",
        "yardstick": "full",
        "created": bench["created"],
        "machine": bench["machine"],
        "curves": curves,
        "memory": memory,
        "absent": absent,
    }


def with_crossovers(series: dict[str, Any]) -> dict[str, Any]:
    """The series, with the words and the length from which each mechanism is faster than the yardstick."""
    curves = {name: {int(n): s for n, s in seconds.items()} for name, seconds in series["curves"].items()}
    found = {}
    for name, seconds in curves.items():
        dense = curves[series.get("yardsticks", {}).get(name, series["yardstick"])]
        if seconds is not dense:
            point = crossover(seconds, dense)
            found[name] = {"words": point.words, "length": point.length and round(point.length)}
    return series | {"crossovers": found}


def main() -> int:
    """Read the benchmarks, write the one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("full", type=Path, help="bench.json: not causal, forward")
    parser.add_argument("causal", type=Path, help="bench.json: causal, forward and backward")
    parser.add_argument("layers", type=Path, help="of benchmarks/cost_curves.py: maps, sets and pairs")
    given = parser.parse_args()
    full, causal, layers = (json.loads(path.read_text()) for path in (given.full, given.causal, given.layers))
    series = {"forward": reduced(full), "training": reduced(causal), **layers["series"]}
    found = {"schema": "regard.docs.costs/1", "series": {name: with_crossovers(one) for name, one in series.items()}}
    write_file(OUT, f"{json.dumps(found, indent=1)}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
