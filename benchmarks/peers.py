"""Layers of ours against the packages that people use: time, memory, and whether both compute the same.

    python benchmarks/peers.py [--only linformer ...] [--lengths 1024 4096] [--rounds 5] [--no-memory] [--json FILE]

In an environment of its own (``peers-requirements.txt`` says how). Whole layers with their projections, the same
setting and the same weights on both sides: batch 1, width 512, 8 heads of 64, float32, one thread, ``eval()``. All
peers, ours and dense attention (``regard.create("full")``, torch's SDPA) take turns in one process; printed are medians
of CPU seconds, forward without gradients and forward with backward for x and all parameters. Memory is the peak of a
process of its own over what it held before the call, with an allocator that gives back at once what is freed. The floor
is that of ``floors.py`` for ours.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import regard
from costs import COSTS, DIM, HEADS
from floors import Run, medians
from peaks import FRESH, take_elsewhere
from peers_chosen import CHOSEN
from peers_linear import LINEAR
from peers_memory import MEMORY
from peers_pair import Pair
from peers_patterned import PATTERNED

PAIRS = PATTERNED | CHOSEN | LINEAR | MEMORY
LONG = 4096
"""From here on rounds are few, and what takes too much memory is left out."""
MODELS = ("longformer.modeling_longformer", "big_bird.modeling_big_bird", "reformer.modeling_reformer")
LEFT_OUT = {("performer-pytorch, causal", True): "it holds 0.6 GB for every 1024 tokens"}
FRESH.set_forkserver_preload(["__main__", *(f"transformers.models.{name}" for name in MODELS)])
COLUMNS = "peer | N | pass | peer s | ours s | peer / ours | dense s | floor s | peer MB | ours MB | peer / ours"


def build(name: str, length: int) -> Pair:
    """A pair by its name; "dense" is the baseline, twice."""
    torch.manual_seed(0)
    if name != "dense":
        return PAIRS[name](length)
    dense = regard.create("full", dim=DIM, num_heads=HEADS)
    return Pair(dense, dense, COSTS["dense"].cost(length), "torch's SDPA")


def run_of(layer: nn.Module, x: Tensor, gradient: Tensor, backward: bool) -> Run:
    """A pass of a layer."""
    layer.eval()
    leaves = [x.clone().requires_grad_(), *layer.parameters()]

    def forward() -> object:
        with torch.no_grad():
            return layer(x)

    def with_backward() -> object:
        return torch.autograd.grad(layer(leaves[0]), leaves, gradient, allow_unused=True)

    return with_backward if backward else forward


def prepared(name: str, side: str, backward: bool, length: int) -> Run:
    """A pass of one side of a pair, with inputs of its own."""
    x, gradient = torch.randn(2, 1, length, DIM)
    return run_of(getattr(build(name, length), side), x, gradient, backward)


def agreement(name: str, length: int) -> tuple[str, float, float]:
    """The setting, and the largest differences of outputs and of gradients of x, relative to max(1, largest)."""
    pair = build(name, length)
    x, gradient = torch.randn(2, 1, length, DIM)
    found: list[tuple[Tensor, Tensor]] = []
    for layer in (pair.peer.eval(), pair.ours.eval()):
        torch.manual_seed(0)  # of hashes that are drawn in the call
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        found.append((y.detach(), torch.autograd.grad(y, leaf, gradient)[0]))
    errors = [float((a - b).abs().max() / a.abs().max().clamp(min=1)) for a, b in zip(*found, strict=True)]
    return pair.setting + (f"; {pair.differs}" if pair.differs else ""), errors[0], errors[1]


def race(names: list[str], length: int, backward: bool, rounds: int, memory: bool) -> list[dict[str, object]]:
    """A record for each peer."""
    names = [name for name in names if length <= LONG or (name, backward) not in LEFT_OUT]
    x, gradient = torch.randn(2, 1, length, DIM)
    built = {name: build(name, length) for name in (*names, "dense")}
    sides = [(name, side) for name in names for side in ("peer", "ours")] + [("dense", "ours")]
    runs = {f"{side} {name}": run_of(getattr(built[name], side), x, gradient, backward) for name, side in sides}
    seconds, rates = medians(runs, rounds if length <= LONG else min(rounds, 3))
    taken = {
        f"{side} {name}": take_elsewhere(partial(prepared, name, side, backward), length) if memory else None
        for name, side in sides
    }
    held = {key: None if found is None else found.megabytes for key, found in taken.items()}
    return [
        {
            "peer": name,
            "length": length,
            "pass": "forward + backward" if backward else "forward",
            "peer_seconds": seconds[f"peer {name}"],
            "ours_seconds": seconds[f"ours {name}"],
            "dense_seconds": seconds["ours dense"],
            "floor_seconds": rates.floor(built[name].cost, backward),
            "product_gflops": rates.products / 1e9,
            "copied_gigabytes": rates.moved / 1e9,
            "peer_megabytes": held[f"peer {name}"],
            "ours_megabytes": held[f"ours {name}"],
            "dense_megabytes": held["ours dense"],
        }
        for name in names
    ]


def row(record: dict[str, object]) -> str:
    """A record as a row of the table."""

    def ratio(unit: str) -> str:
        peer, ours = record[f"peer_{unit}"], record[f"ours_{unit}"]
        return f"{peer / ours:.2f}" if isinstance(peer, float) and isinstance(ours, float) and ours else "-"

    def number(key: str, digits: int) -> str:
        value = record[key]
        return f"{value:.{digits}f}" if isinstance(value, float) else "-"

    cells = [str(record[key]) for key in ("peer", "length", "pass")]
    cells += [number("peer_seconds", 4), number("ours_seconds", 4), ratio("seconds")]
    cells += [number("dense_seconds", 4), number("floor_seconds", 4)]
    cells += [number("peer_megabytes", 1), number("ours_megabytes", 1), ratio("megabytes")]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(PAIRS), choices=list(PAIRS), metavar="NAME")
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024, 4096, 16384], help="multiples of 512")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path, help="also write all records to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| peer | setting | outputs differ by | gradients differ by |\n|---|---|---|---|")
    for name in options.only:
        setting, *errors = agreement(name, min(options.lengths))
        print(f"| {name} | {setting} | {errors[0]:.1e} | {errors[1]:.1e} |", flush=True)
    print(f"\n| {COLUMNS} |\n|{'---|' * len(COLUMNS.split(' | '))}", flush=True)
    records: list[dict[str, object]] = []
    for length in options.lengths:
        for backward in (False, True):
            found = race(options.only, length, backward, options.rounds, options.memory)
            records += found
            print("\n".join(map(row, found)), flush=True)
    for (name, _), reason in LEFT_OUT.items():
        if name in options.only and max(options.lengths) > LONG:
            print(f"\n{name} with backward is left out beyond {LONG} tokens: {reason}.")
    if options.json:
        options.json.write_text(json.dumps({"torch": torch.__version__, "records": records}, indent=1))


if __name__ == "__main__":
    main()
