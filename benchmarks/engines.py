"""How much of dense SDPA's rate each engine keeps on sparse patterns, beside the GEMM of the machine.

    python benchmarks/engines.py [--lengths 4096 16384] [--dtypes float32 bfloat16] [--threads 1] [--rounds 5]
                                 [--engines native tiles flexattention]

All engines on all patterns and torch's dense SDPA take turns in one process: a round runs each of them once. The rate
counts allowed pairs only, so the ratio

    share of allowed pairs x SDPA's time / the engine's time

is 1 when sparsity costs nothing: a pattern that allows a tenth of the pairs then takes a tenth of the time. Printed are
medians and that ratio, forward and forward with backward; with one thread the time is CPU seconds, with more of them it
is wall-clock seconds. "flexattention" is torch's own, compiled, with the pattern's BlockMask: on the CPU it has no
backward. Above each table: what a product of 1024 x 1024 matrices (GEMM) of its dtype reaches, the limit in float32.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

import regard
from regard.patterns import BigBird, Causal, CrissCross, Full, Global, Neighborhood, Pattern, Strided, Window

HEADS, WIDTH = 8, 64


def patterns(length: int) -> list[Pattern]:
    """The patterns of the table; grids need a square length."""
    side = int(length**0.5)
    grid = (side, side)
    return [
        Full(),
        Causal(),
        Window(256),
        Causal() & Window(512),
        Window(256) | Global(16),
        BigBird(64, 3, 2, 3),
        Causal() & Strided(64),
        *([CrissCross(grid), Neighborhood(grid, 31), Neighborhood(grid, 7)] if side * side == length else []),
    ]


def clock() -> float:
    """CPU seconds of one thread; seconds on the wall where there are more."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def medians(runs: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median seconds of each run; one round runs all of them, after one warm-up round."""
    seconds: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + 1):
        for run, found in zip(runs, seconds, strict=True):
            start = clock()
            run()
            if number:
                found.append(clock() - start)
    return [statistics.median(found) for found in seconds]


def both_ways(attention: Callable[..., Tensor], tensors: list[Tensor], gradient: Tensor) -> list[Callable[[], object]]:
    """A forward pass without gradients, and one with its backward pass."""

    def forward() -> Tensor:
        with torch.no_grad():
            return attention(*tensors)

    def with_backward() -> object:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        return torch.autograd.grad(attention(*leaves), leaves, gradient)

    return [forward, with_backward]


def entrant(engine: str, pattern: Pattern, length: int) -> Callable[..., Tensor]:
    """Attention over the pattern by one engine, or by torch's FlexAttention."""
    if engine != "flexattention":
        return lambda q, k, v: regard.attend(q, k, v, pattern, engine=engine)
    mask, compiled = pattern.block_mask(length, length, "cpu"), torch.compile(flex_attention)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask)


def table(length: int, dtype: torch.dtype, engines: list[str], rounds: int) -> None:
    """Measure and print all patterns at one length in one dtype."""
    *tensors, gradient = torch.randn(4, 1, HEADS, length, WIDTH).to(dtype)
    square = torch.randn(1024, 1024).to(dtype)
    pairs = [(pattern, engine) for pattern in patterns(length) for engine in engines]
    # the BlockMask of a pattern that differs by head has an entry for every head, pair of tiles and choice
    pairs = [(pattern, engine) for pattern, engine in pairs if not (engine == "flexattention" and pattern.by_head)]
    runs = [lambda: square @ square, *both_ways(scaled_dot_product_attention, tensors, gradient)]
    for pattern, engine in pairs:
        ways = both_ways(entrant(engine, pattern, length), tensors, gradient)
        runs += ways[: 1 if engine == "flexattention" else 2]
    product, *found = medians(runs, rounds)
    dense, found = found[:2], found[2:]
    work = 4 * HEADS * length**2 * WIDTH / 1e9
    print(f"\n1 x {HEADS} heads x {length} x {WIDTH}, {dtype}; GEMM {2 * 1.024**3 / product:.0f} GFLOP/s")
    print(f"torch's dense SDPA: {dense[0]:.4f} s forward, {dense[1]:.4f} s with backward", end="; ")
    print(f"{work / dense[0]:.0f} and {3.5 * work / dense[1]:.0f} GFLOP/s")
    print(f"{'pattern':40} {'engine':13} {'share':>7} {'forward s':>10} {'ratio':>6} {'+ backward s':>13} {'ratio':>6}")
    for pattern, engine in pairs:
        share = pattern.density(length, heads=HEADS)
        ours = [found.pop(0) for _ in range(1 if engine == "flexattention" else 2)]
        columns = [f"{seconds:10.4f} {share * sdpa / seconds:6.2f}" for seconds, sdpa in zip(ours, dense, strict=False)]
        print(f"{pattern!r:40.40} {engine:13} {share:7.4f} {'    '.join(columns)}", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096])
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--engines", nargs="+", default=["native", "tiles"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    gc.disable()  # a full collection takes a quarter of a second, and would always meet the same run
    torch._dynamo.config.recompile_limit = 64  # FlexAttention is compiled for each pattern
    print(f"torch {torch.__version__}, {options.threads} thread(s)")
    for dtype in options.dtypes:
        for length in options.lengths:
            table(length, getattr(torch, dtype), options.engines, options.rounds)


if __name__ == "__main__":
    main()
