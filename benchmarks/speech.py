"""How much faster than speech a recognizer runs on a processor: whole recordings, and as they come in.

    python benchmarks/speech.py [--dim 144] [--depth 6] [--seconds 10] [--rounds 5] [--threads 1]

A real-time factor is processor time over the time of the recording, the median of some rounds in which all have a turn:
below 1 keeps up with one speaker, at 0.01 with a hundred. "whole" hears a recording at once, from the samples to the
labels of a greedy search; pieces come in one after the other, with the memory of a stream. Weights are random, which
makes no difference to that; how many steps a decoder takes depends on what was learned, so it is given by the label.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from regard.memory import named_tensors
from regard.models.speech_recognizer import SpeechRecognizer
from regard.ops.ctc_search import GreedySearch, greedy_labels

RATE, LABELS = 16000, 30
ENCODERS: dict[str, dict[str, Any]] = {
    "full": {"mechanism": "full"},
    "local, 64 to each side": {"mechanism": "local", "window": 64},
    "local, causal, 64 back": {"mechanism": "local", "causal": True, "window": 64},
    "local, chunks of 16": {"mechanism": "local", "chunk": 16, "history": 4},
    "linear_transformer, causal": {"mechanism": "linear_transformer", "causal": True},
}
PIECES = (0.1, 0.5, 1.0)
"""Seconds of speech that come in at a time."""


def whole(model: SpeechRecognizer, x: Tensor) -> None:
    """A recording at once."""
    greedy_labels(model(x))


def streamed(model: SpeechRecognizer, x: Tensor, size: int) -> None:
    """The same in pieces."""
    memory, search = model.begin_stream(len(x)), GreedySearch(len(x))
    for piece in x.split(size, 1):
        log_probs, memory = model.stream(piece, memory)
        search.read(log_probs)
    search.read(model.finish(memory))


def spelled(model: SpeechRecognizer, encoded: Any, beams: int, labels: int) -> None:
    """So many steps of the decoder with so many hypotheses."""
    memory, last = model.begin_encoded(encoded), torch.full((beams,), model.end)
    for _ in range(labels):
        _, memory = model.step(last, memory)


def medians(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Processor seconds of each; they take turns."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            found[name].append(time.process_time() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in found.items()}


def remembered(model: SpeechRecognizer, x: Tensor) -> int:
    """Numbers in the memory of a stream after a recording."""
    _, memory = model.stream(x, model.begin_stream(len(x)))
    return sum(tensor.numel() for tensor in named_tensors(memory).values())


@torch.no_grad()
def main() -> None:
    """Measure and print two Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=144)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    x = 0.1 * torch.randn(1, round(given.seconds * RATE))
    models = {
        name: SpeechRecognizer(LABELS, given.dim, given.depth, 4, decoder=None, **options).eval()
        for name, options in ENCODERS.items()
    }
    runs: dict[str, Callable[[], None]] = {}
    for name, model in models.items():
        runs[f"{name}/whole"] = partial(whole, model, x)
        for seconds in PIECES if model.encoder.streams else ():
            runs[f"{name}/{seconds}"] = partial(streamed, model, x, round(seconds * RATE))
    found = medians(runs, given.rounds)
    size = f"dim {given.dim}, {given.depth} blocks, {given.seconds:g} s of speech, {given.threads} threads"
    print(f"{size}: real-time factor\n")
    print("| encoder | parameters | whole |" + "".join(f" {s} s pieces |" for s in PIECES) + " numbers remembered |")
    print("|---|---|---|" + "---|" * len(PIECES) + "---|")
    for name, model in models.items():
        count = sum(parameter.numel() for parameter in model.parameters())
        cells = [
            f"{found[key] / given.seconds:.4f}" if (key := f"{name}/{s}") in found else "" for s in ("whole", *PIECES)
        ]
        memory = f"{remembered(model, x):,}" if model.encoder.streams else ""
        print(f"| {name} | {count:,} | " + " | ".join(cells) + f" | {memory} |")
    print("\n| decoder | ms a label, 8 hypotheses |\n|---|---|")
    for decoder in ("lstm", "transformer"):
        model = SpeechRecognizer(LABELS, given.dim, 1, 4, decoder=decoder).eval()
        encoded = model.encode(x.expand(8, -1))
        seconds = medians({"steps": partial(spelled, model, encoded, 8, 50)}, given.rounds)["steps"]
        print(f"| {decoder} | {seconds / 50 * 1000:.2f} |")


if __name__ == "__main__":
    main()
