"""What it is worth to remove heads: the time of a pruned layer and of a pruned model beside that of the whole one.

    python benchmarks/pruned_heads.py [--lengths 512 1024 2048] [--heads 8] [--left 6 4 2 1] [--rounds 7] [--threads 1]

All of them have a turn in every round of one process, so that whatever else the machine does meets all. A number is
the median over rounds of (pruned / whole) of processor time; below 1 is faster. "forward" is evaluation, "training"
forward and backward. The model is a TransformerLM of --depth blocks, whose MLPs and embeddings keep their size.
"""

import argparse
import copy
import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import regard
from regard.bench.turns import Call, Seconds, take_turns
from regard.inspect import prune_heads
from regard.inspect.headed import attentions


def pruned(whole: nn.Module, left: int) -> nn.Module:
    """A copy with the first heads of each attention."""
    model = copy.deepcopy(whole)
    prune_heads(model, {name: range(left, found.num_heads) for name, found in attentions(model).items()})
    return model


def call(model: nn.Module, x: Tensor, train: bool) -> Call:
    """One pass forward, or forward and backward."""
    model.train(train)

    def forward() -> object:
        with torch.no_grad():
            return model(x)

    parameters = list(model.parameters())
    return (lambda: torch.autograd.grad(model(x).square().mean(), parameters)) if train else forward


def compare(whole: nn.Module, x: Tensor, left: list[int], rounds: int, train: bool) -> dict[int, float]:
    """Heads left -> the median of pruned / whole."""
    models = {0: whole} | {number: pruned(whole, number) for number in left}
    builders: dict[str, Callable[[], Call]] = {str(n): partial(call, model, x, train) for n, model in models.items()}
    seconds = dict[str, Seconds]()
    take_turns(builders, rounds, seconds)
    times = {name: found.cpu for name, found in seconds.items()}
    return {n: statistics.median(a / b for a, b in zip(times[str(n)], times["0"], strict=True)) for n in left}


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 1024, 2048])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--left", nargs="+", type=int, default=[6, 4, 2, 1])
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    print(f"dim {given.dim}, {given.heads} heads, batch 1, {given.threads} threads; time relative to the whole\n")
    print("| what | pass | N |" + "".join(f" {left} of {given.heads} |" for left in given.left))
    print("|---|---|---|" + "---|" * len(given.left))
    for length in given.lengths:
        layer = regard.create("full", dim=given.dim, num_heads=given.heads, causal=True)
        model = regard.models.TransformerLM(256, given.dim, given.depth, given.heads, length)
        blocks = f"model, {given.depth} blocks"
        subjects = (
            ("layer", layer, torch.randn(1, length, given.dim)),
            (blocks, model, torch.randint(256, (1, length))),
        )
        for what, whole, x in subjects:
            for train in (False, True):
                ratios = compare(whole, x, given.left, given.rounds, train)
                cells = "".join(f" {ratios[left]:.2f} |" for left in given.left)
                print(f"| {what} | {'training' if train else 'forward'} | {length} |{cells}", flush=True)


if __name__ == "__main__":
    main()
