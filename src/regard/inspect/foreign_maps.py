"""The maps of other people's layers: they return their weights, or their call is made a second time."""

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from regard.inspect.map_sources import Again, Parts, removed
from regard.inspect.maps import Map


class TorchAttention:
    """``torch.nn.MultiheadAttention``: asked for the weights of each head, and its caller gets what it wanted."""

    def __init__(self, parts: Parts) -> None:
        self.layers = {path: part for path, part in parts.items() if isinstance(part, nn.MultiheadAttention)}
        self.found: dict[str, list[Map]] = {}

    @contextmanager
    def watch(self) -> Generator[None]:
        """Change the question on the way in and the answer on the way out."""
        with removed(handle for path, layer in self.layers.items() for handle in self._hooks(path, layer)):
            yield

    def _hooks(self, path: str, layer: nn.MultiheadAttention) -> Generator[RemovableHandle]:
        wanted: list[tuple[bool, bool]] = []

        def ask(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            bound = inspect.signature(layer.forward).bind(*args, **kwargs)
            bound.apply_defaults()
            given = bound.arguments
            wanted.append((given["need_weights"], given["average_attn_weights"]))
            return (), given | {"need_weights": True, "average_attn_weights": False}

        def answer(_: nn.Module, args: Any, out: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
            y, weights = out
            need, average = wanted.pop()
            batched = weights.detach() if weights.ndim == 4 else weights.detach()[None]
            self.found.setdefault(path, []).append(Map(batched.nan_to_num(0.0), "exact"))
            return y, (weights.mean(-3) if average else weights) if need else None

        yield layer.register_forward_pre_hook(ask, with_kwargs=True)
        yield layer.register_forward_hook(answer)

    def maps(self, again: Again) -> dict[str, list[Map]]:
        """What was answered."""
        return self.found


class ReturnedWeights:
    """Attentions of Hugging Face models, which return their weights in the implementation "eager"."""

    def __init__(self, parts: Parts) -> None:
        models = {path: part for path, part in parts.items() if _hugging_face(part)}
        configs = {id(part.config): part.config for part in models.values()}
        self.configs: list[Any] = list(configs.values())
        self.layers = {
            path: part
            for path, part in parts.items()
            if ("attention" in type(part).__name__.lower() or "attn" in type(part).__name__.lower())
            and any(path.startswith(f"{outer}." if outer else "") for outer in models)
        }
        self.found: dict[str, list[Map]] = {}

    @contextmanager
    def watch(self) -> Generator[None]:
        """Set the implementation, and keep the weights where they are returned first: in the innermost module."""
        before = [(config, config._attn_implementation) for config in self.configs]

        def hook(path: str) -> Callable[..., None]:
            def keep(_: nn.Module, args: Any, out: Any) -> None:
                weights = [part for part in out if _square(part)] if isinstance(out, tuple) else []
                if weights and not any(inner.startswith(f"{path}.") for inner in self.found):
                    self.found.setdefault(path, []).append(Map(weights[-1].detach(), "exact"))

            return keep

        try:
            for config in self.configs:
                config._attn_implementation = "eager"  # output_attentions would leave hooks of theirs on the model
            with removed(layer.register_forward_hook(hook(path)) for path, layer in self.layers.items()):
                yield
        finally:
            for config, implementation in before:
                config._attn_implementation = implementation

    def maps(self, again: Again) -> dict[str, list[Map]]:
        """What was returned."""
        return self.found


class ProductAttention(TorchFunctionMode):
    """Calls of ``scaled_dot_product_attention`` in modules of other people, named by the module that makes them."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts
        self.running: list[str] = []
        self.found: dict[str, list[Map]] = {}

    @contextmanager
    def watch(self) -> Generator[None]:
        """Follow which module runs, and repeat its calls."""

        def enter(path: str) -> Callable[..., None]:
            return lambda *_: self.running.append(path)  # pyright: ignore[reportUnknownLambdaType]

        def leave(path: str) -> Callable[..., None]:
            def pop(*_: Any) -> None:
                if self.running[-1:] == [path]:  # another hook may have failed before the module was entered
                    self.running.pop()

            return pop

        def handles() -> Generator[RemovableHandle]:
            for path, part in self.parts.items():
                yield part.register_forward_pre_hook(enter(path))
                yield part.register_forward_hook(leave(path), always_call=True)

        with removed(handles()), self:
            yield

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Every call of torch passes here; those that attend are asked twice."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        foreign = self.running and not type(self.parts[self.running[-1]]).__module__.startswith("regard.")
        if func is F.scaled_dot_product_attention and foreign:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            self._ask(func, given.pop("query"), given.pop("key"), given.pop("value"), args[3:], given)
        return out

    def _ask(
        self, func: Any, query: Tensor, key: Tensor, value: Tensor, rest: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        identity = torch.eye(key.shape[-2], device=key.device, dtype=value.dtype).split(value.shape[-1], -1)
        columns = [func(query, key, some.expand(*value.shape[:-1], -1), *rest, **options) for some in identity]
        weights = torch.cat(columns, -1).detach()
        weights = weights.reshape(-1, *weights.shape[-3:]) if weights.ndim > 3 else weights[None]
        self.found.setdefault(self.running[-1], []).append(Map(weights.nan_to_num(0.0), "exact"))

    def maps(self, again: Again) -> dict[str, list[Map]]:
        """What was found."""
        return self.found


def _hugging_face(part: nn.Module) -> bool:
    return hasattr(part, "set_attn_implementation") and hasattr(part, "config")


def _square(part: Any) -> bool:
    """Whether this can be weights (B, H, N, M)."""
    return isinstance(part, Tensor) and part.ndim == 4 and part.is_floating_point()
