"""The Evoformer's parts beside Hugging Face's EsmFold modules and alphafold2-pytorch: time and memory of one pass.

    pip install --no-deps --target FOLDER alphafold2-pytorch einops
    python benchmarks/proteins.py --lengths 128 256 512 --lucidrains FOLDER --json FILE

One protein, float32, one thread, the paper's sizes: pairs of 128 channels, 4 heads of 32, a triangle width of 128; 32
sequences of 256 channels, 8 heads of 32. All take turns in one process; printed are medians of CPU seconds, forward
without gradients and forward with backward for inputs and parameters. Memory is the peak of a process of its own over
what it held before the pass. "in chunks" computes 32 rows at a time, and again in the backward pass; Hugging Face's
chunks do so without gradients only. The parts of alphafold2-pytorch are those that stand in the same place; its outer
mean is a Hadamard product, less work than an outer product. Its structure module and data loaders are not used.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor, nn

from peaks import FRESH
from regard.mechanisms.pairs.alphafold2 import AlphaFold2
from regard.ops.outer_product_mean import OuterProductMean
from regard.ops.triangle_attention import TriangleAttention
from regard.ops.triangle_multiplication import TriangleMultiplication
from regard.train.clock import memory_now, memory_peak

FRESH.set_forkserver_preload(["__main__", "transformers.models.esm.modeling_esmfold"])
DIM, HEADS, WIDTH, MSA_DIM, SEQUENCES, CHUNK = 128, 4, 32, 256, 32, 32
Run = Callable[[], object]


def inputs(part: str, length: int) -> list[Tensor]:
    """What a part gets: the pairs, or the alignment, or both."""
    pair = torch.randn(1, length, length, DIM)
    msa = torch.randn(1, SEQUENCES, length, MSA_DIM)
    return {"outer": [msa], "block": [msa, pair]}.get(part, [pair])


def ours(part: str, chunk: int | None = None) -> tuple[nn.Module, Callable[..., object]]:
    """A module of ours and how it is called."""
    if part == "triangle attention":
        module: nn.Module = TriangleAttention(DIM, HEADS, WIDTH)
        return module, partial(module, chunk_size=chunk)
    if part == "triangle multiplication":
        module = TriangleMultiplication(DIM, DIM)
    elif part == "outer":
        module = OuterProductMean(MSA_DIM, DIM, 32)
    else:
        module = AlphaFold2(MSA_DIM, DIM, chunk_size=chunk)
    return module, module


def hugging_face(part: str, chunk: int | None = None) -> tuple[nn.Module, Callable[..., object]] | None:
    """EsmFold has the parts on pairs."""
    from transformers.models.esm import modeling_esmfold as esm

    if part == "triangle attention":
        module = esm.EsmFoldTriangleAttention(DIM, WIDTH, HEADS)
        return module, partial(module, chunk_size=chunk)
    if part == "triangle multiplication" and chunk is None:
        module = esm.EsmFoldTriangleMultiplicativeUpdate(SimpleNamespace(pairwise_state_dim=DIM), True)
        return module, module
    return None


def lucidrains(folder: Path, part: str) -> tuple[nn.Module, Callable[..., object]] | None:
    """alphafold2-pytorch without what its parts do not need; it has one width for pairs and alignment."""
    for name, given in (
        ("alphafold2_pytorch.utils", ()),
        ("invariant_point_attention", ("IPABlock",)),
        ("pytorch3d", ()),
        ("pytorch3d.transforms", ("quaternion_multiply", "quaternion_to_matrix")),
    ):
        stub = sys.modules.setdefault(name, ModuleType(name))
        for attribute in given:
            setattr(stub, attribute, None)
    sys.path.insert(0, str(folder))
    from alphafold2_pytorch import alphafold2

    if part == "triangle attention":
        options = {"row_attn": True, "col_attn": False, "accept_edges": True}
        module = alphafold2.AxialAttention(dim=DIM, heads=HEADS, dim_head=WIDTH, **options)
        return module, lambda pair: module(pair, edges=pair)
    if part == "triangle multiplication":
        module = alphafold2.TriangleMultiplicativeModule(dim=DIM, mix="outgoing")
        return module, module
    if part == "outer":
        module = alphafold2.OuterMean(MSA_DIM, 32)
        return module, module
    return None


def entrant(name: str, part: str, folder: Path | None) -> tuple[nn.Module, Callable[..., object]] | None:
    """A module by the name of its column; None where it has no such part."""
    chunk = CHUNK if name.endswith("in chunks") else None
    if name.startswith("ours"):
        return None if chunk and part in ("triangle multiplication", "outer") else ours(part, chunk)
    if name.startswith("hugging_face"):
        return hugging_face(part, chunk)
    return None if folder is None else lucidrains(folder, part)


ENTRANTS = ("ours", "ours, in chunks", "hugging_face", "hugging_face, in chunks", "lucidrains")


def prepare(name: str, part: str, length: int, backward: bool, folder: Path | None) -> Run | None:
    """One pass of an entrant."""
    torch.manual_seed(0)
    found = entrant(name, part, folder)
    if found is None or (backward and name == "hugging_face, in chunks"):
        return None
    module, call = found
    for parameter in module.parameters():  # an update that starts at 0 may be quicker
        nn.init.normal_(parameter, std=0.05)
    leaves = [x.requires_grad_(backward) for x in inputs(part, length)]

    def run() -> None:
        with torch.set_grad_enabled(backward):
            out = call(*leaves)
            if backward:
                total = sum(t.sum() for t in (out if isinstance(out, tuple) else (out,)))
                torch.autograd.grad(total, [*leaves, *module.parameters()])

    return run


def peak(name: str, part: str, length: int, backward: bool, folder: Path | None) -> float:
    """Megabytes of one pass over what the process held before it; to be called in a fresh one."""
    torch.set_num_threads(1)
    small, run = prepare(name, part, 16, backward, folder), prepare(name, part, length, backward, folder)
    assert small is not None
    assert run is not None
    small()  # what a first call leaves behind is not the pass's
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    base = memory_now()
    run()
    return (memory_peak() - base) / 1e6


def measure(part: str, length: int, backward: bool, rounds: int, folder: Path | None, memory: bool) -> list[dict]:
    """A row for each entrant that has the part."""
    runs = {name: prepare(name, part, length, backward, folder) for name in ENTRANTS}
    runs = {name: run for name, run in runs.items() if run is not None}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if number:  # the first warms up
                seconds[name].append(time.process_time() - start)
    rows = []
    for name in runs:
        row = {"part": part, "length": length, "backward": backward, "entrant": name}
        row["seconds"] = statistics.median(seconds[name])
        if memory:
            with ProcessPoolExecutor(1, FRESH) as fresh:
                try:
                    row["megabytes"] = fresh.submit(peak, name, part, length, backward, folder).result()
                except (BrokenProcessPool, MemoryError):
                    row["megabytes"] = None
        rows.append(row)
        base = rows[0]
        ratio = row["seconds"] / base["seconds"]
        told = f"{row['seconds']:.3f} s ({ratio:.2f})"
        if row.get("megabytes"):
            told += f"  {row['megabytes']:.0f} MB ({row['megabytes'] / max(base['megabytes'], 1.0):.2f})"
        print(f"{part:24} {length:4} {'backward' if backward else 'forward ':8} {name:26} {told}", flush=True)
    return rows


def main() -> None:
    """Measure and print; ratios are to ours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument(
        "--parts", nargs="+", default=["triangle attention", "triangle multiplication", "outer", "block"]
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lucidrains", type=Path, metavar="FOLDER")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row
        for part in given.parts
        for length in given.lengths
        for backward in (False, True)
        for row in measure(part, length, backward, given.rounds, given.lucidrains, not given.no_memory)
    ]
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
