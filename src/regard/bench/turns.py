"""Seconds of calls that take turns in one process, so that whatever else the machine does meets all of them."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from regard.bench.settings import Settings
from regard.factory import create
from regard.race.entrants import Entrant
from regard.train.clock import now

SHORTEST = 0.05
"""Seconds of a turn: calls that take less are repeated within it."""

Call = Callable[[], object]


@dataclass
class Seconds:
    """What the turns of one call took, in seconds a call.

    Attributes:
        cpu: of all threads of the process.
        wall: on the clock, until the device is done.
        error: why there are no more turns.
    """

    cpu: list[float] = field(default_factory=list[float])
    wall: list[float] = field(default_factory=list[float])
    error: str = ""

    @property
    def medians(self) -> tuple[float, float]:
        """The medians of ``cpu`` and ``wall``."""
        return statistics.median(self.cpu), statistics.median(self.wall)


def workload(entrant: Entrant, length: int, settings: Settings) -> Call:
    """A layer with random weights on one random input: the function that calls it once."""
    torch.manual_seed(0)
    layer = create(entrant.name, **settings.arguments(entrant, length))
    options: dict[str, Any] = {"device": settings.device, "dtype": getattr(torch, settings.dtype)}
    x = torch.randn(settings.batch, length, settings.dim, **options)

    def forward() -> object:
        with torch.no_grad():
            return layer(x)

    if not settings.backward:
        layer.eval()
        return forward
    leaves = [x.requires_grad_(), *layer.parameters()]
    cotangent = torch.randn(x.shape, **options)
    return lambda: torch.autograd.grad(layer(x), leaves, cotangent, allow_unused=True)


def take_turns(builders: Mapping[str, Callable[[], Call]], rounds: int, seconds: dict[str, Seconds]) -> None:
    """Build every call and warm it up, then let each have one turn in each round.

    Args:
        builders: make the calls, by name.
        rounds: turns of each.
        seconds: filled under the same names turn by turn, so that nothing is lost when Ctrl-C ends it.
    """
    calls, repeats = dict[str, Call](), dict[str, int]()
    for turn in range(rounds + 1):
        for name, build in builders.items():
            found = seconds.setdefault(name, Seconds())
            if found.error:
                continue
            try:
                if turn == 0:
                    calls[name] = build()
                    repeats[name] = _repeats(calls[name])
                else:
                    cpu, wall = _turn(calls[name], repeats[name])
                    found.cpu.append(cpu)
                    found.wall.append(wall)
            except Exception as error:  # this mechanism's affair: the others go on
                found.error = describe(error)
                calls.pop(name, None)


def _repeats(call: Call) -> int:
    """How many calls make a turn. The first call does not tell: it also pays for what is done only once."""
    first = _turn(call, 1)[1]
    return math.ceil(SHORTEST / (first if first > SHORTEST else _turn(call, 1)[1]))


def _turn(call: Call, repeats: int) -> tuple[float, float]:
    """CPU and wall seconds a call."""
    wall, cpu = now(), time.process_time()
    for _ in range(repeats):
        call()
    cpu = time.process_time() - cpu
    return cpu / repeats, (now() - wall) / repeats


def describe(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
