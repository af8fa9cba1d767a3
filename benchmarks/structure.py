"""Invariant point attention beside Hugging Face's EsmFoldInvariantPointAttention: time and memory of one pass.

    python benchmarks/structure.py --lengths 128 256 512 --json FILE

One protein, float32, one thread, the paper's sizes (12 heads of 16, c_s 384, c_z 128, 4 and 8 points) and the same
weights. Both take turns in one process; printed are medians of CPU seconds, forward without gradients and forward with
backward for inputs and parameters. Memory is the peak of a process of its own over what it held before the pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from peaks import FRESH, take_elsewhere
from regard.models.invariant_point import InvariantPointAttention
from regard.ops.frames import Frames, quaternion_to_rotation

FRESH.set_forkserver_preload(["__main__", "transformers.models.esm.modeling_esmfold"])
Run = Callable[[], object]
NAMES = {
    "query": "linear_q",
    "key_value": "linear_kv",
    "query_points": "linear_q_points",
    "key_value_points": "linear_kv_points",
    "pair_bias": "linear_b",
    "output": "linear_out",
}


def modules() -> tuple[InvariantPointAttention, nn.Module]:
    """Ours and theirs with the same weights."""
    from transformers.models.esm.configuration_esm import StructureModuleConfig
    from transformers.models.esm.modeling_esmfold import EsmFoldInvariantPointAttention

    torch.manual_seed(0)
    ours, theirs = InvariantPointAttention(), EsmFoldInvariantPointAttention(StructureModuleConfig())
    with torch.no_grad():
        theirs.linear_out.weight.normal_(std=0.02)
        ours.point_weights.copy_(theirs.head_weights)
    for our_name, their_name in NAMES.items():
        getattr(ours, our_name).load_state_dict(getattr(theirs, their_name).state_dict())
    return ours, theirs


def prepare(name: str, backward: bool, length: int) -> Run:
    """One pass of "ours" or "hugging_face"; it returns the update."""
    from transformers.models.esm.openfold_utils import Rigid, Rotation

    ours, theirs = modules()
    torch.manual_seed(1)
    leaves = [torch.randn(1, length, 384), torch.randn(1, length, length, 128)]
    single, pair = (x.requires_grad_(backward) for x in leaves)
    frames = Frames(quaternion_to_rotation(torch.randn(1, length, 4)), 3 * torch.randn(1, length, 3))
    body, everyone = Rigid(Rotation(rot_mats=frames.rotation), frames.translation), torch.ones(1, length)
    module = ours if name == "ours" else theirs
    call = partial(ours, single, pair, frames) if name == "ours" else partial(theirs, single, pair, body, everyone)

    def run() -> object:
        with torch.set_grad_enabled(backward):
            out = call()
            if backward:
                torch.autograd.grad(out.sum(), [single, pair, *module.parameters()])
        return out

    return run


def measure(length: int, backward: bool, rounds: int) -> list[dict]:
    """A row for each of both."""
    runs = {name: prepare(name, backward, length) for name in ("ours", "hugging_face")}
    apart = (runs["ours"]() - runs["hugging_face"]()).abs().max().item()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    rows = []
    for name in runs:
        taken = take_elsewhere(partial(prepare, name, backward), length)
        row = {"length": length, "backward": backward, "entrant": name, "seconds": statistics.median(seconds[name])}
        rows.append({**row, "megabytes": None if taken is None else taken.megabytes, "largest_difference": apart})
        ratio = rows[-1]["seconds"] / rows[0]["seconds"]
        told = f"{rows[-1]['seconds']:.3f} s ({ratio:.2f})"
        if rows[-1]["megabytes"] and rows[0]["megabytes"]:
            told += f"  {rows[-1]['megabytes']:.0f} MB ({rows[-1]['megabytes'] / rows[0]['megabytes']:.2f})"
        print(f"{length:4} {'backward' if backward else 'forward ':8} {name:13} {told}", flush=True)
    return rows


def main() -> None:
    """Measure and print; ratios are to ours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    turns = [(length, backward) for length in given.lengths for backward in (False, True)]
    rows = [row for length, backward in turns for row in measure(length, backward, given.rounds)]
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
