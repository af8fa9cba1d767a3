"""Engines: ways to compute one and the same attention. Adding one is adding its module to ``ENGINES``.

The package can be called, ``regard.engines()``: it lists the engines that train on this machine.
"""

import sys
from types import ModuleType

import torch

from regard.engines import dense, flex, native, sdpa, tiles
from regard.engines.calls import Calls
from regard.engines.joining import merge
from regard.engines.operators import operators
from regard.engines.problem import Engine, Problem, Request, Serves
from regard.registry import UnsupportedError

__all__ = [
    "CALLS",
    "ENGINES",
    "Engine",
    "Problem",
    "Request",
    "Serves",
    "choose",
    "merge",
    "preferred",
    "trainable",
]

ENGINES: dict[str, Engine] = {"dense": dense, "sdpa": sdpa, "native": native, "tiles": tiles, "flex": flex}

# Best first; an engine that is not listed runs by name only: dense forms N x M, and so does flex on the CPU.
ORDER = {"cuda": ("sdpa", "flex", "tiles"), "cpu": ("native", "sdpa", "tiles")}
ORDER_ELSEWHERE = ("sdpa", "tiles")
FEW = 4
"""Queries up to which torch's kernel is quicker on the CPU: decoding reads every key once, and starting counts."""


# Engines without a composite of their own borrow that of tiles.
CALLS: dict[str, Calls] = {
    name: operators(name, engine, getattr(engine, "composite", tiles.composite)) for name, engine in ENGINES.items()
}


def preferred(request: Request) -> tuple[str, ...]:
    """The engines that "auto" tries, best first."""
    # a graph is traced for every length, and must not depend on one
    if request.device == "cpu" and not torch.compiler.is_compiling() and request.shape[3] <= FEW:
        return ("sdpa", "native", "tiles")
    return ORDER.get(request.device, ORDER_ELSEWHERE)


def choose(name: str, request: Request) -> str:
    """The engine that runs: the named one, or for "auto" the first preferred one that serves the request.

    Raises:
        ValueError: there is no such engine.
        UnsupportedError: the named engine cannot serve the request; the message says why.
    """
    if name == "auto":
        for candidate in preferred(request):
            if not ENGINES[candidate].serves(request):
                return candidate
        name = preferred(request)[-1]
    if name not in ENGINES:
        raise ValueError(f"there is no engine {name!r}; there are auto, {', '.join(ENGINES)}")
    reasons = ENGINES[name].serves(request)
    if reasons:
        raise UnsupportedError(f"the engine {name!r} cannot serve this: {'; '.join(reasons)}")
    return name


def trainable(device: torch.device | str | None = None) -> list[str]:
    """The names of the engines that train in float32 on a device, by default torch's default device.

    Example:
        >>> "tiles" in trainable("cpu")
        True
    """
    kind = torch.get_default_device().type if device is None else torch.device(device).type
    request = Request(device=kind, dtype=torch.float32, shape=(1, 1, 1, 64, 64, 64, 64), grad=True)
    return [name for name, engine in ENGINES.items() if not engine.serves(request)]


class _Callable(ModuleType):
    """A package that is a function too, for ``regard.engines`` is both."""

    def __call__(self, device: torch.device | str | None = None) -> list[str]:
        return trainable(device)


sys.modules[__name__].__class__ = _Callable
