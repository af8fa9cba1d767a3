"""The attention maps of every layer of a model, by hooks, from one forward pass.

Four ways to a map, by what the layer is; all of them give exact weights:

- a layer of ours: what it was called with is kept, and :func:`regard.inspect.attention_map` asks it again, so that
  linear attention, random features and other cores without a map have one as well;
- a :class:`regard.layers.MultiHead` whose projections are used by somebody else (the Transformer of 2017 and its mask
  for each pair): its values are replaced by columns of the identity, what reaches the output projection is A, and the
  output projection still gets what it got before;
- ``torch.nn.MultiheadAttention`` and the attentions of Hugging Face models: they return their weights when asked to;
- any other module that calls ``scaled_dot_product_attention``: the same call, with columns of the identity as values.

For what has no weights a Jacobian can be had on request. Nothing stays on the model: hooks, modes, settings and random
states are as they were.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from regard.inspect.foreign_maps import ProductAttention, ReturnedWeights, TorchAttention
from regard.inspect.map_sources import Jacobians, Source
from regard.inspect.maps import Map, _evaluated
from regard.inspect.own_maps import Projections, Weighing
from regard.registry import Layer, UnsupportedError

__all__ = ["attention_maps", "maps_of"]


def attention_maps(model: nn.Module, *args: Any, jacobian: Sequence[str] = (), **kwargs: Any) -> dict[str, Map]:
    """Run ``model(*args, **kwargs)`` and return the map of each attention in it.

    Args:
        model: of ours, of Hugging Face, of torch, or anybody's.
        args, kwargs: what the model is called with.
        jacobian: paths of modules, (B, N, C) -> (B, N, C'), of which the Jacobian norm is wanted instead.

    Returns:
        By the path of the layer in the model, in its order. A layer that runs several times has "path", "path#2", ...

    Raises:
        ValueError: a path under which there is no module, or one that did not run.
        UnsupportedError: no attention was found, or one that was called with more than its weights can be asked for.

    Example:
        >>> from regard.models import TransformerLM
        >>> model = TransformerLM(256, 16, 2, 2, 64, "linear_transformer")
        >>> attention_maps(model, torch.randint(256, (1, 5)))
        {'blocks.0.attention': Map(exact weights: batch=1, heads=2, queries=5, keys=5), \
'blocks.1.attention': Map(exact weights: batch=1, heads=2, queries=5, keys=5)}
    """
    return maps_of(model, lambda: model(*args, **kwargs), jacobian=jacobian)


def maps_of(model: nn.Module, run: Callable[[], Any], *, jacobian: Sequence[str] = ()) -> dict[str, Map]:
    """The same for a model that is run by a function, such as ``lambda: model.encode(tokens)``.

    Args:
        model: where the layers are looked for.
        run: runs it, always in the same way.
        jacobian: as in :func:`attention_maps`.

    Returns, Raises:
        As :func:`attention_maps`.

    Example:
        >>> layer = nn.MultiheadAttention(12, 3, batch_first=True)
        >>> x = torch.randn(2, 5, 12)
        >>> maps_of(layer, lambda: layer(x, x, x, need_weights=False))
        {'MultiheadAttention': Map(exact weights: batch=2, heads=3, queries=5, keys=5)}
    """
    parts = dict(model.named_modules())
    if missing := [path for path in jacobian if path not in parts]:
        raise ValueError(f"there is no module {missing[0]!r} in {type(model).__name__}")
    asked = {path: parts[path] for path in jacobian}
    wanted: list[Source] = [
        Jacobians(asked),
        Weighing({path: part for path, part in parts.items() if path not in asked}),
        Projections(parts),
        TorchAttention(parts),
        ReturnedWeights(parts),
        ProductAttention(parts),
    ]
    found: dict[str, list[Map]] = {}
    with _evaluated(model), _random_state_kept(model):
        state = torch.get_rng_state()

        def again() -> None:
            torch.set_rng_state(state)
            run()

        with ExitStack() as stack, torch.no_grad():
            for source in wanted:
                stack.enter_context(source.watch())
            run()
        for source in wanted:
            for path, maps in source.maps(again).items():
                found.setdefault(path, maps)
    if silent := [path for path in jacobian if path not in found]:
        raise ValueError(f"{silent[0]!r} did not run: it has no Jacobian")
    if not found:
        raise UnsupportedError(f"{type(model).__name__} has no attention that was found: {_advice(parts)}")
    ordered = {path: maps for path in parts if (maps := found.get(path))}
    return {
        (path or type(model).__name__) + (f"#{number}" if number > 1 else ""): each
        for path, maps in ordered.items()
        for number, each in enumerate(maps, start=1)
    }


def _advice(parts: Mapping[str, nn.Module]) -> str:
    """The way out, and for what of ours it is one."""
    ours = [f"{path} ({part.mechanism})" for path, part in parts.items() if isinstance(part, Layer) and part.mechanism]
    return f"for Jacobians name {', such as '.join(['modules in jacobian=', *ours[:1]])}"


@contextmanager
def _random_state_kept(model: nn.Module) -> Generator[None]:
    first: Tensor | None = next(model.parameters(), None)
    with torch.random.fork_rng([first.device] if first is not None and first.is_cuda else []):
        yield
