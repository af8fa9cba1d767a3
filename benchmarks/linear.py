"""How near linear attention and the delta rule come to the arithmetic that they cannot do without.

    python benchmarks/linear.py [--length 4096] [--features 256] [--threads 1] [--rounds 5]

The native kernels, torch operations and a product of two matrices take turns in one process. The floor is what the
products of the chunked form take at the rate of that product: the time of a kernel that did nothing else and never
waited for memory. Printed are medians of CPU seconds (all threads together) and how many floors they are, forward and
forward with backward.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.ops.delta_rule import delta_rule
from regard.ops.feature_attention import feature_attention
from regard.ops.feature_sums import FeatureSums
from regard.ops.features import Kind, orthogonal_rows

HEADS, WIDTH, CHUNK = 8, 64, 64
Runs = list[Callable[[], object]]


class Case(NamedTuple):
    """A row of the table: runs forward and with backward, and the multiplications of both for a token of a head."""

    name: str
    runs: Runs
    forward: float
    backward: float


def feature_products(m: int, rows: int, causal: bool) -> tuple[float, float]:
    """Multiplications of attention by m features, forward and backward, for a token of a head.

    Forward: the rows of W x for a query and a key, the sums read and added to, and causal half a chunk of pairs. Back
    through each of these; the features are made again, and so are, causal, the sums and pairs.
    """
    values, pairs = WIDTH + 1, CHUNK / 2 * causal
    forward = 2 * rows * WIDTH + 2 * m * values + pairs * (m + values)
    backward = 4 * rows * WIDTH + (4 + causal) * m * values + pairs * (3 * m + 2 * values)
    return forward, backward


def delta_products() -> tuple[float, float]:
    """The same for the delta rule: products with the state, and half a chunk of pairs with keys and with values."""
    state, pairs = WIDTH * WIDTH, CHUNK / 2 * WIDTH
    return 3 * state + 4 * pairs, 8 * state + 11 * pairs


def both_ways(function: Callable[..., Tensor], tensors: list[Tensor], gradient: Tensor) -> Runs:
    """A forward pass without gradients, and one with its backward pass."""

    def forward() -> Tensor:
        with torch.no_grad():
            return function(*tensors)

    def with_backward() -> object:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        return torch.autograd.grad(function(*leaves), leaves, gradient)

    return [forward, with_backward]


def feature_case(name: str, kind: Kind, causal: bool, length: int, m: int) -> Case:
    """Attention by features."""
    *tensors, gradient = torch.randn(4, 1, HEADS, length, WIDTH)
    rows = 0 if kind == "elu" else m
    projection = orthogonal_rows(1, rows, WIDTH) if rows else torch.empty(1, 0, WIDTH)
    before = FeatureSums.start(1, HEADS, m, WIDTH)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return feature_attention(q, k, v, projection, before, kind=kind, causal=causal, eps=1e-6)[0]

    return Case(name, both_ways(run, tensors, gradient), *feature_products(m, rows, causal))


def delta_case(length: int) -> Case:
    """The delta rule."""
    q, k, v, gradient = torch.randn(4, 1, HEADS, length, WIDTH)
    tensors = [q, F.normalize(k, dim=-1), v, torch.rand(1, HEADS, length)]
    return Case("delta rule", both_ways(lambda *t: delta_rule(*t)[0], tensors, gradient), *delta_products())


def seconds(run: Callable[[], object], native: bool) -> float:
    """CPU seconds of a run, with the native kernels or without."""
    hidden = {} if native else {"REGARD_NATIVE": "0"}
    before = dict(os.environ)
    os.environ.update(hidden)
    start = time.process_time()
    run()
    found = time.process_time() - start
    os.environ.clear()
    os.environ.update(before)
    return found


def measure(case: Case, length: int, rounds: int) -> str:
    """A line of the table."""
    left, right = torch.randn(2, 512, 512)

    def product() -> object:
        return [torch.mm(left, right) for _ in range(8)]

    found: list[list[float]] = [[] for _ in range(5)]
    for number in range(rounds + 1):
        taken = [seconds(product, True), *(seconds(run, native) for native in (True, False) for run in case.runs)]
        for times, each in zip(found, taken if number else [], strict=False):
            times.append(each)
    rate, *times = (statistics.median(each) for each in found)
    rate = 8 * 512**3 / rate
    work = [HEADS * length * each for each in (case.forward, case.forward + case.backward)]
    line = f"{case.name:26} {2 * rate / 1e9:8.0f}"
    for way, multiplications in enumerate(work):
        floor, native, torch_time = multiplications / rate, times[way], times[way + 2]
        line += f" {floor:9.4f} {native:9.4f} {native / floor:6.2f} {torch_time:9.4f} {torch_time / floor:6.2f}"
    return line


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    length, m = options.length, options.features
    print(f"torch {torch.__version__}, {options.threads} thread(s), 1 x {HEADS} heads x {length} x {WIDTH}, float32")
    columns = f"{'floor s':>9} {'native s':>9} {'ratio':>6} {'torch s':>9} {'ratio':>6}"
    print(f"{'':35} {'forward':42} forward with backward\n{'':26} {'GFLOP/s':>8} {columns} {columns}")
    for causal in (True, False):
        ending = "causal" if causal else "all pairs"
        print(measure(feature_case(f"elu, {ending}", "elu", causal, length, WIDTH), length, options.rounds), flush=True)
        name = f"softmax, m={m}, {ending}"
        print(measure(feature_case(name, "softmax", causal, length, m), length, options.rounds), flush=True)
    print(measure(delta_case(length), length, options.rounds))


if __name__ == "__main__":
    main()
