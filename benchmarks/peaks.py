"""The memory and the time of one pass, measured in a process of its own."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch

from floors import Run
from regard.train.clock import memory_now, memory_peak

FRESH = get_context("forkserver")
FRESH.set_forkserver_preload(["__main__"])
WARM_UP = 512


class Taken(NamedTuple):
    """What a pass took.

    Attributes:
        megabytes: at the peak, over what the process held before the pass.
        seconds: of the CPU.
    """

    megabytes: float
    seconds: float


def take(prepare: Callable[[int], Run], length: int) -> Taken:
    """One pass, in a process that does nothing else and in which freed memory goes back at once.

    Args:
        prepare: makes the pass at a length.
        length: the length.
    """
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: what a tensor took goes back at once, not into a heap
    prepare(WARM_UP)()  # what a first call leaves behind is not the pass's
    run = prepare(length)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    base, start = memory_now(), time.process_time()
    run()
    seconds = time.process_time() - start
    return Taken((memory_peak() - base) / 1e6, seconds)


def take_elsewhere(prepare: Callable[[int], Run], length: int) -> Taken | None:
    """:func:`take` in a fresh process; None if that ran out of memory. ``prepare`` is pickled on its way there."""
    with ProcessPoolExecutor(1, FRESH) as fresh:
        try:
            return fresh.submit(take, prepare, length).result()
        except (BrokenProcessPool, MemoryError):
            return None
