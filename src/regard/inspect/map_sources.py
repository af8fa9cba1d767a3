"""What the maps of a model are made from: hooks while it runs, and what is asked afterwards."""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from regard.inspect.maps import Map, attention_map
from regard.registry import UnsupportedError

Parts = Mapping[str, nn.Module]
Again = Callable[[], None]
"""Runs the model once more, with the draws of the first time."""


class Source(Protocol):
    """Hooks that keep what they see while the model runs, and what is made of it afterwards."""

    def watch(self) -> AbstractContextManager[None]:
        """Hooks, for as long as the model runs."""
        ...

    def maps(self, again: Again) -> dict[str, list[Map]]:
        """By path, one map for each time that the layer ran."""
        ...


class Draws:
    """The random state of the CPU at this moment."""

    def __init__(self) -> None:
        self.state = torch.get_rng_state()

    def restore(self) -> None:
        """Draw again what was drawn from here on."""
        torch.set_rng_state(self.state)


@contextmanager
def removed(handles: Iterable[RemovableHandle]) -> Generator[None]:
    """Hooks that are gone at the end."""
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


class Jacobians:
    """Modules that were named: how each of their outputs depends on each token of their first input."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.calls: dict[str, list[tuple[tuple[Any, ...], dict[str, Any], Draws]]] = {}

    @contextmanager
    def watch(self) -> Generator[None]:
        """Keep the arguments of each call."""

        def hook(path: str) -> Callable[..., None]:
            def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))
                if not args:
                    raise UnsupportedError(f"{path} was called by names only: its first input is not known")
                self.calls.setdefault(path, []).append((args, kwargs, Draws()))

            return keep

        with removed(part.register_forward_pre_hook(hook(path), with_kwargs=True) for path, part in self.parts.items()):
            yield

    def maps(self, again: Again) -> dict[str, list[Map]]:
        """One sequence at a time, as what else a module was given may belong to one of them."""
        return {
            path: [Map(torch.cat([self._row(path, row, *call) for row in range(len(call[0][0]))]), "jacobian")]
            for path, calls in self.calls.items()
            for call in calls
        }

    def _row(self, path: str, row: int, args: tuple[Any, ...], kwargs: dict[str, Any], draws: Draws) -> Tensor:
        size = len(args[0])
        (x, *rest), kwargs = pytree.tree_map_only(
            Tensor, lambda each: each[row : row + 1] if each.shape[:1] == (size,) else each, (args, kwargs)
        )
        draws.restore()
        part = self.parts[path]

        def one_input(x: Tensor) -> Any:
            return part(x, *rest, **kwargs)

        return attention_map(one_input, x, kind="jacobian").tensor
