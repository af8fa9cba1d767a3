"""The maps of our layers in a model: of those that are called, and of those whose projections somebody else uses."""

import inspect
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from regard.inspect.map_sources import Again, Draws, Parts, removed
from regard.inspect.maps import Map, attention_map
from regard.layers import MultiHead
from regard.registry import UnsupportedError


class Weighing:
    """Layers of ours that have ``weigh``; the outermost where one is a part of another."""

    KNOWN = ("context", "key_mask", "query_mask", "segments", "generator")

    def __init__(self, parts: Parts) -> None:
        self.layers: dict[str, nn.Module] = {}
        for path, part in parts.items():
            if _weighs(part) and not any(path.startswith(f"{outer}." if outer else "") for outer in self.layers):
                self.layers[path] = part
        self.calls: dict[str, list[tuple[dict[str, Any], Draws]]] = {}

    @contextmanager
    def watch(self) -> Generator[None]:
        """Keep the arguments of each call."""

        def hook(path: str) -> Callable[..., None]:
            def keep(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                given = inspect.signature(layer.forward).bind(*args, **kwargs).arguments
                given = {name: value for name, value in given.items() if value is not None and name != "return_aux"}
                if unknown := [name for name in given if name not in ("x", *self.KNOWN)]:
                    layer_name = path or "the model"
                    raise UnsupportedError(
                        f"{layer_name} was called with {unknown[0]}, without which its weights are others: "
                        "name it in jacobian="
                    )
                kept: dict[str, Any] = {
                    name: value.clone() if isinstance(value, Tensor) else value for name, value in given.items()
                }
                if "generator" in kept:
                    kept["generator"] = kept["generator"].clone_state()
                self.calls.setdefault(path, []).append((kept, Draws()))

            return keep

        with removed(
            layer.register_forward_pre_hook(hook(path), with_kwargs=True) for path, layer in self.layers.items()
        ):
            yield

    def maps(self, again: Again) -> dict[str, list[Map]]:
        """Ask each layer again, with the draws that it made."""
        found: dict[str, list[Map]] = {}
        for path, calls in self.calls.items():
            for given, draws in calls:
                draws.restore()
                try:
                    found.setdefault(path, []).append(attention_map(self.layers[path], **given, kind="exact"))
                except UnsupportedError as error:
                    raise UnsupportedError(f"{path or 'the model'}: {error}; name it in jacobian=") from error
        return found


class Projections:
    """Multi-head layers that are not called themselves, but whose projections are.

    With columns of the identity in the place of the values, column m at a time, what reaches the output projection is
    column m of A. It is kept, and the output projection gets what it got in the first run: all that follows is as
    before, so all layers are asked in the same runs.
    """

    def __init__(self, parts: Parts) -> None:
        self.layers = {path: part for path, part in parts.items() if isinstance(part, MultiHead) and _weighs(part)}
        self.called: set[str] = set()
        self.joined: dict[str, list[Tensor]] = {}
        self.lengths: dict[str, list[int]] = {}

    @contextmanager
    def watch(self) -> Generator[None]:
        """See which layers are called, and keep what reaches the output projections of the others."""

        def call(path: str) -> Callable[..., None]:
            return lambda *_: self.called.add(path)  # pyright: ignore[reportUnknownLambdaType]

        def keep_length(path: str) -> Callable[..., None]:
            def keep(_: nn.Module, args: tuple[Tensor]) -> None:
                self.lengths.setdefault(path, []).append(args[0].shape[1])

            return keep

        def keep_joined(path: str) -> Callable[..., None]:
            def keep(_: nn.Module, args: tuple[Tensor]) -> None:
                self.joined.setdefault(path, []).append(args[0].clone())

            return keep

        def handles() -> Generator[RemovableHandle]:
            for path, layer in self.layers.items():
                yield layer.register_forward_pre_hook(call(path))
                yield layer.v_proj.register_forward_pre_hook(keep_length(path))
                yield layer.out_proj.register_forward_pre_hook(keep_joined(path), prepend=True)  # before gates on heads

        with removed(handles()):
            yield

    def maps(self, again: Again) -> dict[str, list[Map]]:
        """Run the model once for as many columns as heads are wide, and put the columns together."""
        asked = {path: self.layers[path] for path in self.joined if path not in self.called}
        for path in asked:
            if len(self.lengths.get(path, [])) != len(self.joined[path]):
                raise UnsupportedError(f"{path} does not project its values once for each output: name it in jacobian=")
        columns = {path: [list[Tensor]() for _ in self.joined[path]] for path in asked}
        longest = max((max(self.lengths[path]) / layer.head_dim for path, layer in asked.items()), default=0.0)
        for number in range(-int(-longest // 1)):
            with torch.no_grad(), removed(self._probes(asked, columns, number)):
                again()
        return {
            path: [
                Map(torch.cat(found, -1)[..., :length], "exact")
                for found, length in zip(columns[path], self.lengths[path], strict=True)
            ]
            for path in asked
        }

    def _probes(
        self, asked: Mapping[str, MultiHead], columns: dict[str, list[list[Tensor]]], number: int
    ) -> Generator[RemovableHandle]:
        for path, layer in asked.items():
            joined = iter(zip(self.joined[path], columns[path], strict=True))

            def values(_: nn.Module, args: Any, out: Tensor, layer: MultiHead = layer) -> Tensor:
                d, m = layer.head_dim, out.shape[1]
                here = torch.arange(m, device=out.device)[:, None] == torch.arange(d, device=out.device) + number * d
                return here.to(out.dtype).repeat(1, layer.num_kv_heads).expand_as(out)

            def join(_: nn.Module, args: tuple[Tensor], layer: MultiHead = layer, joined: Any = joined) -> Tensor:
                before, found = next(joined)
                found.append(args[0].unflatten(-1, (layer.num_heads, -1)).transpose(1, 2).clone())
                return before

            yield layer.v_proj.register_forward_hook(values)
            yield layer.out_proj.register_forward_pre_hook(join, prepend=True)


def _weighs(part: nn.Module) -> bool:
    return callable(getattr(part, "weigh", None)) and bool(getattr(getattr(part, "core", None), "weighs_values", True))
