"""Mechanisms on maps, sets and pairs beside full attention: the cost curves of their pages.

    python benchmarks/cost_curves.py --out layers.json [--rounds 5] [--only maps pairs] [--quick]

Layers of 256 channels and 8 heads where there are heads, float32, one thread, random weights, one random input (two
maps). What is compared takes turns in one process; a number is the median of CPU seconds of one call. The yardstick is
multi-head attention on torch's scaled_dot_product_attention: of a map over all its pixels, of a set over all its
members, of a pair from every token of the one to every token of the other. "training" is the forward pass and the
gradients of inputs and parameters. ``--quick`` takes the two smallest sizes and one round, to see that it runs.
Sequences are measured by ``regard bench``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import regard
from regard.bench.turns import Call, Seconds, take_turns
from regard.models.on_maps import map_attention
from regard.race.machine import machine

DIM, HEADS = 256, 8
MAPS = 2
"""Maps in a batch: with one, those that pool a map to a single value have no statistics of a batch to train with."""
PIXELS = tuple(side**2 for side in (16, 24, 32, 48, 64))
MEMBERS = (256, 512, 1024, 2048, 4096)
TOKENS = (64, 128, 256, 512, 1024)
YARDSTICK = "full"

ABSENT = {
    "alphafold2": "it works on an alignment beside a map of all pairs of residues, and no other attention does",
    "cross_attention_fewshot": "its weights belong to the pixels of one small map, so there is no length to vary",
    "mac": "its cost is that of its steps; each looks once at every word and cell, from one state",
}
"""Pairs that full attention from one sequence to another cannot stand beside."""

Make = Callable[[str, int], tuple[nn.Module, tuple[Tensor, ...]]]


def on_maps(name: str, pixels: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A layer and square maps."""
    layer = map_attention(name, dim=DIM, num_heads=HEADS)
    return layer, (torch.randn(MAPS, DIM, *square(pixels)),)


def on_sets(name: str, members: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A layer and a set."""
    return regard.create(name, dim=DIM, num_heads=HEADS), (torch.randn(1, members, DIM),)


def on_pairs(name: str, tokens: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A layer and two inputs of equal length; co-attention takes maps of as many pixels."""
    options: dict[str, Any] = {"dim": DIM}
    if name in (YARDSTICK, "quasi_attention"):
        options["num_heads"] = HEADS
    if name == "abcnn":
        options["max_length"] = tokens
    shape = (1, DIM, *rectangle(tokens)) if name == "co_attention" else (1, tokens, DIM)
    return regard.create(name, **options), (torch.randn(shape), torch.randn(shape))


def square(pixels: int) -> tuple[int, int]:
    """Height and width."""
    return math.isqrt(pixels), math.isqrt(pixels)


def rectangle(pixels: int) -> tuple[int, int]:
    """Height and width of a power of two: a square, or two of them side by side."""
    height = 2 ** (int(math.log2(pixels)) // 2)
    return height, pixels // height


def workload(make: Make, name: str, size: int, *, training: bool) -> Call:
    """The function that calls a layer once."""
    torch.manual_seed(0)
    layer, inputs = make(name, size)
    if not training:
        layer.eval()
        return partial(forward, layer, inputs)
    leaves = [*(x.requires_grad_() for x in inputs), *(weight for weight in layer.parameters() if weight.requires_grad)]
    return partial(both_ways, layer, inputs, leaves)


def forward(layer: nn.Module, inputs: tuple[Tensor, ...]) -> object:
    """Without gradients."""
    with torch.no_grad():
        return layer(*inputs)


def both_ways(layer: nn.Module, inputs: tuple[Tensor, ...], leaves: list[Tensor]) -> object:
    """With the gradients of the sum of all outputs."""
    out = layer(*inputs)
    total = sum(y.sum() for y in (out if isinstance(out, tuple) else (out,)))
    return torch.autograd.grad(total, leaves, allow_unused=True)


def measure(
    names: list[str], make: Make, sizes: tuple[int, ...], rounds: int, *, training: bool
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Seconds by name and size, and the reasons of those that could not be measured."""
    curves: dict[str, dict[str, float]] = {}
    absent: dict[str, str] = {}
    for size in sizes:
        seconds: dict[str, Seconds] = {}
        builders = {name: partial(workload, make, name, size, training=training) for name in names}
        take_turns(builders, rounds, seconds)
        for name, found in seconds.items():
            if found.error:
                absent[name] = found.error
            else:
                curves.setdefault(name, {})[str(size)] = float(f"{found.medians[0]:.4g}")
        kind = "training" if training else "forward"
        print(f"{make.__name__.removeprefix('on_')}, {kind}, {size}: {len(seconds)} took turns", flush=True)
    return {name: curve for name, curve in curves.items() if name not in absent}, absent


def main() -> None:
    """Measure, and write one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=("maps", "sets", "pairs"), default=("maps", "sets", "pairs"))
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    kinds: dict[str, tuple[list[str], Make, tuple[int, ...], str]] = {
        "maps": (regard.names(data="map"), on_maps, PIXELS, "pixels"),
        "sets": (regard.names(data="set"), on_sets, MEMBERS, "members"),
        "pairs": (
            [name for name in regard.names(data="pair") if name not in ABSENT],
            on_pairs,
            TOKENS,
            "tokens on each side",
        ),
    }
    series: dict[str, Any] = {}
    for kind in given.only:
        names, make, sizes, unit = kinds[kind]
        for training in (False, True):
            rounds, chosen = (1, sizes[:2]) if given.quick else (given.rounds, sizes)
            before = os.getloadavg()
            curves, absent = measure([YARDSTICK, *names], make, chosen, rounds, training=training)
            series[f"{kind}_training" if training else kind] = {
                "words": "forward and backward" if training else "forward",
                "settings": {
                    "dim": DIM,
                    "num_heads": HEADS,
                    "batch": MAPS if kind == "maps" else 1,
                    "dtype": "float32",
                    "threads": 1,
                    "rounds": rounds,
                },
                "unit": unit,
                "yardstick": YARDSTICK,
                "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "machine": machine() | {"load_before": before, "load_after": os.getloadavg()},
                "curves": curves,
                "absent": absent | (ABSENT if kind == "pairs" else {}),
            }
    given.out.write_text(f"{json.dumps({'series': series}, indent=1)}\n")


if __name__ == "__main__":
    main()
