"""Mechanisms on maps beside packages, published formulations and convolutions: time, memory, and how both grow.

    python benchmarks/vision.py [--only sasa ...] [--sides 32 64 128] [--rounds 5] [--no-memory] [--json FILE]
    python benchmarks/vision.py --peers        against packages and plain formulations, with equal weights
    python benchmarks/vision.py --growth       exponents of time and memory over the number of pixels
    python benchmarks/vision.py --ccnet        criss-cross against non-local attention at 97 x 97 x 512

In the environment of ``peers-requirements.txt`` for ``--peers``; packages that are not installed are left out. One map
of 256 channels, 8 heads where there are heads, float32, one thread, ``eval()``. What is compared takes turns in one
process, with a 3 x 3 and a 7 x 7 convolution of as many channels as yardsticks; printed are medians of CPU seconds,
forward without gradients and forward with backward for x and all parameters. Memory is the peak of a process of its own
over what it held before the call. A first call, which plans windows, is not counted.
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
from torch.utils.flop_counter import FlopCounterMode

import regard
from floors import Run, medians
from peaks import Taken, take_elsewhere
from peers_vision import HEADS, MAP_PAIRS, MOST_PIXELS, MapPair
from regard.engines import native_library

DIM = 256
TOGETHER = 6
"""Mechanisms that take turns."""
GROWTH = (1024, 4096, 16384)
OPTIONS: dict[str, dict[str, Any]] = {"axial": {"qkv_bias": False}}
"""What differs from the defaults."""
QUADRATIC = {"non_local": 4096, "dual_attention": 4096}
"""All pixels meet all pixels: seconds grow with the square, and growth is measured up to here."""
YARDSTICKS = {"3 x 3 convolution": 3, "7 x 7 convolution": 7}
CLAIM = "the paper's claim for CCNet: 11 times less memory and about 85% fewer operations than non-local"


def sides(pixels: int) -> tuple[int, int]:
    """Of a square map of so many pixels, or of the next smaller one that blocks of 8 divide."""
    side = math.isqrt(pixels) // 8 * 8
    return side, side


def build(name: str, pixels: int) -> nn.Module:
    """A mechanism, a yardstick, or one side of a pair ("peer NAME" or "ours NAME")."""
    torch.manual_seed(0)
    if name in YARDSTICKS:
        return nn.Conv2d(DIM, DIM, YARDSTICKS[name], padding="same").eval()
    side, _, pair = name.partition(" ")
    if pair in MAP_PAIRS:
        return getattr(MAP_PAIRS[pair](DIM, *sides(pixels)), side).eval()
    return regard.create(name, dim=DIM, num_heads=HEADS, **OPTIONS.get(name, {})).eval()


def run_of(layer: nn.Module, x: Tensor, backward: bool) -> Run:
    """A pass of a layer."""

    def forward() -> object:
        with torch.no_grad():
            return layer(x)

    if not backward:
        return forward
    gradient = torch.randn_like(layer(x))
    leaves = [x.clone().requires_grad_(), *(weight for weight in layer.parameters() if weight.requires_grad)]
    return lambda: torch.autograd.grad(layer(leaves[0]), leaves, gradient, allow_unused=True)


def prepared(name: str, backward: bool, pixels: int) -> Run:
    """A pass with an input of its own; the plans of windows have been made before."""
    layer, x = build(name, pixels), torch.randn(1, DIM, *sides(pixels))
    with torch.no_grad():
        layer(x)
    return run_of(layer, x, backward)


def measure(names: list[str], pixels: int, backward: bool, rounds: int, memory: bool) -> list[dict[str, Any]]:
    """A record for each name, measured in turns."""
    seconds, _ = medians({name: prepared(name, backward, pixels) for name in names}, rounds)
    taken = {name: take_elsewhere(partial(prepared, name, backward), pixels) if memory else None for name in names}
    return [
        {
            "name": name,
            "sides": list(sides(pixels)),
            "backward": backward,
            "seconds": seconds[name],
            "megabytes": None if (found := taken[name]) is None else found.megabytes,
        }
        for name in names
    ]


def works(name: str, pixels: int) -> str:
    """Why this size is refused; empty where it is not."""
    try:
        prepared(name, False, pixels)
    except (ValueError, ImportError) as error:
        return str(error)
    return ""


def cells(*values: object) -> str:
    """A row of a table."""
    return f"| {' | '.join(f'{v:.4g}' if isinstance(v, float) else '-' if v is None else str(v) for v in values)} |"


def heading(columns: str) -> str:
    """The head of a table."""
    return f"| {columns} |\n|{'---|' * len(columns.split(' | '))}"


def table(names: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every mechanism beside convolutions."""
    print(heading("mechanism | sides | pass | seconds | / 3 x 3 | / 7 x 7 | MB"), flush=True)
    records: list[dict[str, Any]] = []
    for pixels, backward in ((side**2, backward) for side in options.sides for backward in (False, True)):
        able = [name for name in names if not works(name, pixels)]
        for first in range(0, len(able), TOGETHER):
            turns = [*able[first : first + TOGETHER], *YARDSTICKS]
            found = measure(turns, pixels, backward, options.rounds, options.memory)
            three, seven = (record["seconds"] for record in found[-2:])
            for record in found if first + TOGETHER >= len(able) else found[:-2]:
                now, kind = record["seconds"], "with backward" if backward else "forward"
                size = " x ".join(map(str, record["sides"]))
                print(cells(record["name"], size, kind, now, now / three, now / seven, record["megabytes"]), flush=True)
            records += found
    return records


def agreement(pair: MapPair, pixels: int) -> tuple[float, float]:
    """The largest differences of outputs and of gradients of x, relative to max(1, largest)."""
    x, gradient = torch.randn(2, 1, DIM, *sides(pixels))
    found: list[tuple[Tensor, Tensor]] = []
    for layer in (pair.peer.eval(), pair.ours.eval()):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        found.append((y.detach(), torch.autograd.grad(y, leaf, gradient)[0]))
    first, second = (float((a - b).abs().max() / a.abs().max().clamp(min=1)) for a, b in zip(*found, strict=True))
    return first, second


def peers(names: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Packages and plain formulations beside ours."""
    least, able = min(options.sides) ** 2, list[str]()
    print(heading("peer | setting | outputs differ by | gradients differ by"), flush=True)
    for name in names:
        if reason := works(f"peer {name}", least):
            print(cells(name, reason, None, None), flush=True)
            continue
        torch.manual_seed(0)
        pair = MAP_PAIRS[name](DIM, *sides(least))
        setting = pair.setting + (f"; {pair.differs}" if pair.differs else "")
        print(cells(name, setting, *(f"{error:.1e}" for error in agreement(pair, least))), flush=True)
        able.append(name)
    print(
        "\n" + heading("peer | sides | pass | peer s | ours s | peer / ours | peer MB | ours MB | peer / ours"),
        flush=True,
    )
    records: list[dict[str, Any]] = []
    for pixels, backward in ((side**2, backward) for side in options.sides for backward in (False, True)):
        for name in (name for name in able if pixels <= MOST_PIXELS.get((name, backward), pixels)):
            found = measure([f"peer {name}", f"ours {name}"], pixels, backward, options.rounds, options.memory)
            (theirs, ours), (much, little) = ([r[key] for r in found] for key in ("seconds", "megabytes"))
            size, kind = " x ".join(map(str, sides(pixels))), "with backward" if backward else "forward"
            ratio = much / little if much and little else None
            print(cells(name, size, kind, theirs, ours, theirs / ours, much, little, ratio), flush=True)
            records += found
    return records


def slope(values: dict[int, float]) -> float:
    """The exponent of the least-squares line through the logarithms."""
    x, y = [math.log(n) for n in values], [math.log(max(value, 1e-9)) for value in values.values()]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def growth(names: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Exponents over the number of pixels, with backward, each size in a fresh process."""
    print(heading("mechanism | cost | up to N | time | memory"), flush=True)
    records: list[dict[str, Any]] = []
    for name in names:
        counts = [n for n in GROWTH if n <= QUADRATIC.get(name, n) and not works(name, n)]
        found = {n: take_elsewhere(partial(prepared, name, True), n) for n in counts}
        taken: dict[int, Taken] = {n: value for n, value in found.items() if value is not None}
        if len(taken) < 2:
            continue
        time, memory = (slope({n: getattr(t, key) for n, t in taken.items()}) for key in ("seconds", "megabytes"))
        cost = regard.card(name).cost
        print(cells(name, cost, f"{max(taken):,}", f"{time:.2f}", f"{memory:.2f}"), flush=True)
        records.append(
            {"name": name, "time": time, "memory": memory, "taken": {n: t._asdict() for n, t in taken.items()}}
        )
    return records


CCNET = ("CCNet, published form", "non-local, published form")


def of_ccnet(name: str, backward: bool, side: int, pixels: int) -> Run:
    """A pass at 97 x 97 x 512 of one side of a pair; the map that warms up is small."""
    which, _, pair = name.partition(" ")
    height, width = (side, side) if pixels == side * side else sides(pixels)
    layer, x = getattr(MAP_PAIRS[pair](512, height, width), which).eval(), torch.randn(1, 512, height, width)
    with torch.no_grad():
        layer(x)
    return run_of(layer, x, backward)


def operations(name: str, side: int) -> float:
    """Floating-point operations of the products of a published form, projections included."""
    layer = MAP_PAIRS[name](512, side, side).peer
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(torch.randn(1, 512, side, side))
    return counter.get_total_flops() / 1e9


def ccnet(side: int) -> list[dict[str, Any]]:
    """Criss-cross and non-local attention, both in their published form and in ours."""
    print(heading("layer | pass | seconds | MB | GFLOP forward"), flush=True)
    counted = {name: operations(name, side) for name in CCNET}
    records: list[dict[str, Any]] = []
    for name, which, backward in ((n, w, b) for n in CCNET for w in ("peer", "ours") for b in (False, True)):
        taken = take_elsewhere(partial(of_ccnet, f"{which} {name}", backward, side), side * side)
        kind = "with backward" if backward else "forward"
        title = name if which == "peer" else f"ours, as {name.removesuffix(', published form')}"
        seconds, memory = (None, None) if taken is None else (taken.seconds, taken.megabytes)
        print(cells(title, kind, seconds, memory, counted[name]), flush=True)
        records.append({"layer": title, "pass": kind, "seconds": seconds, "megabytes": memory, "gflop": counted[name]})
    fewer = 1 - counted[CCNET[0]] / counted[CCNET[1]]
    print(f"\n{side} x {side} x 512: {fewer:.0%} fewer operations than non-local; {CLAIM}.")
    return records


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_mutually_exclusive_group()
    for kind in ("peers", "growth", "ccnet"):
        kinds.add_argument(f"--{kind}", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="mechanisms, or with --peers peers")
    parser.add_argument("--sides", nargs="+", type=int, default=[32, 64, 128], help="powers of two; --ccnet: one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path, help="also write all records to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if missing := native_library.missing():
        print(f"without the native kernels: {missing}\n")
    known = list(MAP_PAIRS) if options.peers else regard.names(data="map")
    names = options.only or known
    if wrong := [name for name in names if name not in known]:
        parser.error(f"--only {wrong[0]!r}: there are {', '.join(known)}")
    if options.ccnet:
        records = ccnet(options.sides[0] if len(options.sides) == 1 else 97)
    else:
        records = (peers if options.peers else growth if options.growth else table)(names, options)
    if options.json:
        options.json.write_text(json.dumps({"torch": torch.__version__, "records": records}, indent=1))


if __name__ == "__main__":
    main()
