"""Where a step's time goes: attention or the rest, and how much memory the process has had."""

import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn


class AttentionClock:
    """Adds up the seconds inside some modules, forward and backward, while it is entered.

    Attributes:
        seconds: the sum so far.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> with AttentionClock([layer]) as clock:
        ...     layer(torch.ones(1, 2, requires_grad=True)).sum().backward()
        >>> clock.seconds > 0
        True
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.modules, self.seconds = list(modules), 0.0
        self._start = 0.0
        self._hooks = ExitStack()

    def __enter__(self) -> "AttentionClock":
        for module in self.modules:
            for handle in (
                module.register_forward_pre_hook(self._begin),
                module.register_forward_hook(self._end),
                module.register_full_backward_pre_hook(self._begin),
                module.register_full_backward_hook(self._end),
            ):
                self._hooks.callback(handle.remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.close()

    def _begin(self, *_: Any) -> None:
        self._start = now()

    def _end(self, *_: Any) -> None:
        self.seconds += now() - self._start


def now() -> float:
    """Seconds, once the device has done what it was given."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def memory_now() -> int:
    """Bytes of memory that the process holds at this moment (where the system tells; else the most so far)."""
    return _status("VmRSS") or memory_peak()


def memory_peak() -> int:
    """The most bytes of memory that this process has ever held.

    On Linux from /proc: ``ru_maxrss`` there also counts the parent's memory before the child's own program started.
    """
    if told := _status("VmHWM"):
        return told
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device_memory_peak() -> int:
    """The most bytes that tensors have taken on the accelerator; 0 without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def _status(field: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)
