"""Jukebox's attention beside dense attention and beside the published way to compute it, and sampling with its caches.

    python benchmarks/jukebox.py [--lengths 2048 8192] [--codes 32]

Cores: batch 1, 2 heads of 64, rows of 64, float32, one thread, forward with backward; CPU seconds and the memory at
the peak over what was held before, of the second pass in a fresh process (the first one plans the patterns of this
length). "published": rows cut out by ``view``, a matrix of scores times a mask of zeros and ones plus -1e9, softmax,
and a product, as in the authors' code.

Sampling: a prior of 6 layers, width 256, 4 heads, a window of 2048 codes in rows of 32, batch 1. Milliseconds of CPU a
code after so many codes, with caches, and with everything before it read anew.
"""

import argparse
import math
import time
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from floors import Run
from peaks import take_elsewhere
from regard.mechanisms.patterned.jukebox import FactoredAttention, Kind
from regard.models.code_prior import CodePrior
from regard.models.jukebox_sampling import sample_codes
from regard.models.jukebox_transformer import JukeboxTransformer

HEADS, WIDTH, ROW = 2, 64, 64
KINDS: tuple[Kind, ...] = ("dense", "row", "column", "previous_row", "summary")
WINDOW = 2048
AFTER = (64, 512, 1024, 2000)


def published(kind: Kind, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The authors' formulation, on heads-first tensors."""
    rows = q.shape[2] // ROW

    def cut(x: Tensor) -> Tensor:
        x = x.unflatten(2, (rows, ROW))
        return x.transpose(2, 3) if kind == "column" else x

    if kind == "dense":
        return _masked(q, k, v, torch.ones(q.shape[2], q.shape[2]).tril())
    if kind == "summary":
        mask = torch.ones(q.shape[2], q.shape[2]).tril()[:, ROW - 1 : -1 : ROW]
        keys, values = (F.pad(x.unflatten(2, (rows, ROW))[:, :, :-1, -1], (0, 0, 1, 0)) for x in (k, v))
        return _masked(q, keys, values, F.pad(mask, (1, 0), value=1.0))
    q, k, v = cut(q), cut(k), cut(v)
    if kind == "previous_row":
        k, v = (F.pad(x[:, :, :-1], (0, 0, 0, 0, 1, 0)) for x in (k, v))
        return _masked(q, k, v, None).flatten(2, 3)
    out = _masked(q, k, v, torch.ones(q.shape[3], q.shape[3]).tril())
    return (out.transpose(2, 3) if kind == "column" else out).flatten(2, 3)


def _masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scale = q.shape[-1] ** -0.25
    scores = (q * scale) @ (k * scale).mT
    if mask is not None:
        scores = scores * mask + -1e9 * (1 - mask)
    return scores.softmax(-1) @ v


def core_pass(kind: Kind, ours: bool, length: int) -> Run:
    """One forward with backward."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, length, WIDTH, requires_grad=True) for _ in range(3))
    options = {} if kind == "dense" else {"row_length": ROW, "max_length": length}
    core = FactoredAttention(kind, causal=True, **options)

    def run() -> None:
        out = core(q, k, v) if ours else published(kind, q, k, v)
        torch.autograd.grad(out.sum(), (q, k, v))

    run()
    return run


def check(kind: Kind) -> float:
    """The largest difference between both ways."""
    q, k, v = (torch.randn(1, HEADS, 512, WIDTH) for _ in range(3))
    options = {} if kind == "dense" else {"row_length": ROW, "max_length": 512}
    return float((FactoredAttention(kind, causal=True, **options)(q, k, v) - published(kind, q, k, v)).abs().max())


def sampling(codes: int) -> None:
    """Time a code, with and without caches."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    prior = CodePrior(512, WINDOW, JukeboxTransformer(256, 6, 4, row_length=32)).eval()
    generator = torch.Generator().manual_seed(0)
    given = torch.randint(512, (1, WINDOW), generator=generator)
    print("codes before | cached ms | anew ms | times")
    for after in AFTER:
        memory = prior.memory(1)
        with torch.no_grad():
            _, memory = prior.resume(given[:, : after - 1], memory)
            start = time.process_time()
            for place in range(after - 1, after - 1 + codes):
                _, memory = prior.resume(given[:, place : place + 1], memory)
            cached = (time.process_time() - start) / codes
            prior(given[:, :after])  # plans are made once for a length
            start = time.process_time()
            prior(given[:, :after])
            anew = time.process_time() - start
        print(f"{after:,} | {1e3 * cached:.2f} | {1e3 * anew:.1f} | {anew / cached:.0f}", flush=True)
    start = time.process_time()
    sample_codes(prior, 1, WINDOW, generator=generator)
    seconds = time.process_time() - start
    print(f"a whole window of {WINDOW:,} codes: {seconds:.1f} s, {1e3 * seconds / WINDOW:.2f} ms a code")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=[2048, 8192])
    parser.add_argument("--codes", type=int, default=32)
    given = parser.parse_args()
    print("kind | N | regard s | published s | times | regard MB | published MB | largest difference")
    for length in given.lengths:
        for kind in KINDS:
            ours, theirs = (take_elsewhere(partial(core_pass, kind, which), length) for which in (True, False))
            if ours is None or theirs is None:
                print(f"{kind} | {length:,} | out of memory")
                continue
            ratio = theirs.seconds / max(ours.seconds, math.ulp(0))
            times = f"{ours.seconds:.3f} | {theirs.seconds:.3f} | {ratio:.1f}"
            sizes = f"{ours.megabytes:.1f} | {theirs.megabytes:.1f}"
            print(f"{kind} | {length:,} | {times} | {sizes} | {check(kind):.0e}", flush=True)
    sampling(given.codes)


if __name__ == "__main__":
    main()
