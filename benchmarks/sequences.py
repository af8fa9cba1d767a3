"""Every mechanism beside its floor: how far from what its products and its traffic need, and how it grows.

    python benchmarks/sequences.py [--only routing ...] [--lengths 4096] [--growth] [--rounds 5] [--json FILE]

Whole layers with their projections at one setting: batch 1, width 512, 8 heads of 64, float32, one thread, ``eval()``;
options as in ``costs.py``. A few at a time take turns with dense attention and with the yardsticks of the floor in one
process; printed are medians of CPU seconds, forward without gradients and forward with backward for x and all
parameters. On maps of N pixels run those that take maps. ``--growth`` fits exponents of time and memory of one pass
with backward, in a fresh process for each length, from 2,048 to 32,768 tokens; it ends early where the next pass would
take over a minute.
"""

from __future__ import annotations

import argparse
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import regard
from costs import COSTS, DIM, HEADS, Options, sides
from floors import Run, medians
from peaks import Taken, take_elsewhere
from regard.factory import find

GROWTH = (2048, 4096, 8192, 16384, 32768)
TOGETHER = 8
"""Mechanisms that take turns."""
FACTOR, LONGEST = 4, 60
"""Twice the tokens take at most 4 times as long; a pass may take a minute."""
COLUMNS = "mechanism | N | pass | seconds | floor | seconds / floor | dense | dense / seconds"


def build(name: str, length: int) -> nn.Module:
    """The layer in its setting."""
    torch.manual_seed(0)
    setting = COSTS[name]
    options: Options = {"dim": DIM, "num_heads": HEADS, **setting.options, **setting.sized(length)}
    if not takes_maps(name):
        options.setdefault("max_length", length)
    return regard.create(setting.mechanism, **options).eval()


def takes_maps(name: str) -> bool:
    """Whether the mechanism runs on (B, C, H, W)."""
    return find(COSTS[name].mechanism).card.data == "map"


def drawn(name: str, length: int) -> Tensor:
    """An input of so many tokens or pixels."""
    return torch.randn(1, DIM, *sides(length)) if takes_maps(name) else torch.randn(1, length, DIM)


def run_of(name: str, backward: bool, length: int) -> Run:
    """A pass of a layer."""
    layer, x, gradient = build(name, length), drawn(name, length), drawn(name, length)
    if not backward:

        def forward() -> object:
            with torch.no_grad():
                return layer(x)

        return forward
    leaves = [x.requires_grad_(), *(weight for weight in layer.parameters() if weight.requires_grad)]
    return lambda: torch.autograd.grad(layer(x), leaves, gradient, allow_unused=True)


def measure(names: list[str], length: int, backward: bool, rounds: int) -> list[dict[str, Any]]:
    """A record for each mechanism, beside dense attention and the floor."""
    runs = {name: run_of(name, backward, length) for name in (*names, "dense")}
    seconds, rates = medians(runs, rounds)
    return [
        {
            "mechanism": name,
            "length": length,
            "backward": backward,
            "seconds": seconds[name],
            "floor": rates.floor(COSTS[name].cost(length), backward),
            "dense": seconds["dense"],
            "gflops": rates.products / 1e9,
            "gigabytes": rates.moved / 1e9,
        }
        for name in names
    ]


def row(record: dict[str, Any]) -> str:
    """A record as a row of the table."""
    seconds, floor, dense = record["seconds"], record["floor"], record["dense"]
    kind = "with backward" if record["backward"] else "forward"
    cells = [record["mechanism"], f"{record['length']:,}", kind, f"{seconds:.4f}", f"{floor:.4f}"]
    return f"| {' | '.join([*cells, f'{seconds / floor:.2f}', f'{dense:.4f}', f'{dense / seconds:.2f}'])} |"


def slope(values: dict[int, float]) -> float:
    """The exponent of the least-squares line through the logarithms."""
    x, y = [math.log(length) for length in values], [math.log(max(value, 1e-9)) for value in values.values()]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def growth(name: str) -> dict[str, Any]:
    """Exponents of time and memory with backward."""
    taken: dict[int, Taken] = {}
    for n in (n for n in GROWTH if n <= COSTS[name].longest):
        found = take_elsewhere(partial(run_of, name, True), n)
        if found is None:
            break
        taken[n] = found
        if found.seconds * FACTOR > LONGEST:
            break
    return {
        "mechanism": name,
        "cost": find(COSTS[name].mechanism).card.cost,
        "longest": max(taken),
        "time": slope({n: found.seconds for n, found in taken.items()}),
        "memory": slope({n: found.megabytes for n, found in taken.items()}),
        "products": slope({n: COSTS[name].cost(n).products for n in taken}),
        "taken": {n: found._asdict() for n, found in taken.items()},
    }


def main() -> None:
    """Print the tables."""
    names = [name for name in COSTS if name != "dense"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="NAME")
    parser.add_argument("--lengths", nargs="+", type=int, default=[4096])
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write all records to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    records: list[dict[str, Any]] = []
    if options.growth:
        print("| mechanism | cost | up to N | time | memory | products |\n|---|---|---|---|---|---|", flush=True)
        for name in options.only:
            found = growth(name)
            numbers = " | ".join(f"{found[key]:.2f}" for key in ("time", "memory", "products"))
            print(f"| {name} | {found['cost']} | {found['longest']:,} | {numbers} |", flush=True)
            records.append(found)
    else:
        print(f"| {COLUMNS} |\n|{'---|' * len(COLUMNS.split(' | '))}", flush=True)
        for length in options.lengths:
            for backward in (False, True):
                for first in range(0, len(options.only), TOGETHER):
                    found = measure(options.only[first : first + TOGETHER], length, backward, options.rounds)
                    print("\n".join(map(row, found)), flush=True)
                    records += found
    if options.json:
        options.json.write_text(json.dumps({"torch": torch.__version__, "records": records}, indent=1))


if __name__ == "__main__":
    main()
