"""How much of dense SDPA's rate each engine keeps on sparse patterns.

    python benchmarks/engines.py [--length 4096] [--engines tiles] [--threads 1] [--rounds 5]

Engines and torch's dense SDPA take turns in one process. The rate counts allowed pairs only, so the ratio

    share of allowed pairs x SDPA's CPU time / the engine's CPU time

is 1 when sparsity costs nothing: a pattern that allows a tenth of the pairs then takes a tenth of the time. Printed are
medians of CPU seconds (all threads together) and that ratio, forward and forward with backward.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import regard
from regard.patterns import BigBird, Causal, CrissCross, Full, Global, Neighborhood, Pattern, Strided, Window


def patterns(length: int) -> list[Pattern]:
    """The patterns of the table; grids need a square length."""
    side = int(length**0.5)
    return [
        Full(),
        Causal(),
        Window(256),
        Causal() & Window(512),
        Window(256) | Global(16),
        BigBird(64, 3, 2, 3),
        Causal() & Strided(64),
        *([CrissCross((side, side)), Neighborhood((side, side), 31)] if side * side == length else []),
    ]


def medians(runs: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median CPU seconds of each run; one round runs all of them, after one warm-up round."""
    seconds: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + 1):
        for run, found in zip(runs, seconds, strict=True):
            start = time.process_time()
            run()
            if number:
                found.append(time.process_time() - start)
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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--engines", nargs="+", default=["tiles"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    *tensors, gradient = torch.randn(4, 1, 8, options.length, 64)
    print(f"torch {torch.__version__}, {options.threads} thread(s), 1 x 8 heads x {options.length} x 64, float32")
    print(f"{'pattern':58} {'engine':8} {'share':>7} {'forward s':>10} {'ratio':>6} {'+ backward s':>13} {'ratio':>6}")
    for pattern in patterns(options.length):
        share = pattern.density(options.length, heads=8)
        for engine in options.engines:

            def ours(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern = pattern, engine: str = engine) -> Tensor:
                return regard.attend(q, k, v, pattern, engine=engine)

            runs = both_ways(ours, tensors, gradient) + both_ways(scaled_dot_product_attention, tensors, gradient)
            forward, backward, dense_forward, dense_backward = medians(runs, options.rounds)
            print(
                f"{pattern!r:58.58} {engine:8} {share:7.4f} {forward:10.4f} {share * dense_forward / forward:6.2f} "
                f"{backward:13.4f} {share * dense_backward / backward:6.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
