"""From what a user passes, or from a registered mechanism alone, to a subject."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regard.inspect.networks import as_network
from regard.inspect.subject import KEYS, Subject
from regard.map_layers import MapLayer
from regard.pair_layers import PairLayer
from regard.registry import Card, Causality, Core

LENGTH, SIDES = 17, (6, 7)
"""The tokens and the image of inputs made here; odd, so that nothing divides them."""

OTHER_LENGTH, OTHER_SIDES = 13, (5, 7)
"""Those of the other one of a pair."""


def make_subject(
    module: nn.Module,
    inputs: Any = None,
    *,
    time_dim: int | None = 1,
    mask_name: str = "key_mask",
    mask_true: Literal["keep", "drop"] = "keep",
    mask_dtype: torch.dtype | None = None,
    causal: Causality | None = None,
    card: Card | None = None,
) -> Subject:
    """Arrange what is to be checked; arguments as in :func:`regard.check`.

    Args:
        card: instead of the module's own, where a sample claims less.

    Raises:
        TypeError, ValueError: arguments that make no sense, each with the way out.
    """
    if mask_true not in ("keep", "drop"):
        raise ValueError(f'mask_true={mask_true!r} is neither "keep" (True = takes part) nor "drop" (True = ignored)')
    if causal not in (None, "strict", "selection"):
        raise ValueError(f'causal={causal!r} is none of None, "strict" and "selection"')
    card = card or _card(module)
    network = as_network(module)
    if network and mask_name == "key_mask":
        mask_name = network.mask_name(inputs)
    if network and network.still(inputs):
        time_dim = None
    if isinstance(module, Core):
        time_dim = 2
    elif isinstance(module, MapLayer) or (card is not None and card.data == "map"):
        time_dim = -1
    if inputs is None:
        inputs = network.inputs() if network else default_inputs(module, card)
    values, positional = _by_name(module, inputs)
    if mask_name in values:
        raise ValueError(f"inputs hold {mask_name}: leave it out, check makes masks of its own")
    axes, squares = _axes(values, time_dim)
    subject = Subject(
        module=_evaluated(module),
        inputs=values,
        positional=positional,
        axes=axes,
        squares=squares,
        time_dim=time_dim if axes else None,
        mask_name=mask_name,
        mask_true=mask_true,
        card=card,
        claim=causal or (card.causal if card and is_causal(module) else None),
        mask_dtype=mask_dtype or torch.bool,
    )
    if network:
        subject = network.complete(subject, mask_dtype=mask_dtype, causal=causal)
    if mask_name != "key_mask" and not subject.takes_mask:
        parameters = ", ".join(inspect.signature(module.forward).parameters)
        raise ValueError(f"mask_name={mask_name!r}, but the forward of {type(module).__name__} takes {parameters}")
    return subject


def is_causal(module: nn.Module) -> bool:
    """Whether a registered mechanism was built causal."""
    return any(getattr(part, "causal", False) is True for part in module.modules())


def default_inputs(module: nn.Module, card: Card | None) -> dict[str, Tensor]:
    """Two random sequences, or images, that fit a module made from the registry.

    Raises:
        ValueError: another module, or one whose sizes cannot be seen.
    """
    way_out = "pass inputs, e.g. check(module, torch.randn(2, 17, 64))"
    if card is None:
        raise ValueError(f"{type(module).__name__} is not from the registry, so nothing says what it takes: {way_out}")
    weight = next((value for value in module.parameters() if value.is_floating_point()), torch.empty(0))
    place: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
    generator = torch.Generator(weight.device).manual_seed(0)
    length = min(LENGTH, _size(module, "max_length") or LENGTH)
    if isinstance(module, Core):
        heads, width = _size(module, "num_heads") or 2, _size(module, "head_dim") or 6
        groups = (_size(module, "num_kv_heads") or heads) if card.gqa else heads
        counts = {"q": heads, "k": groups, "v": groups}
        return {name: torch.randn(2, n, length, width, generator=generator, **place) for name, n in counts.items()}
    width = _size(module, "dim")
    pair, on_maps = card.data == "pair", isinstance(module, MapLayer)
    if width is None or (pair and not isinstance(module, (PairLayer, MapLayer))):
        raise ValueError(f"nothing says how wide the inputs of {type(module).__name__} are: {way_out}")
    shape = (2, width, *SIDES) if on_maps or card.data == "map" else (2, length, width)
    shapes = {"x": shape}
    if pair:
        other = _size(module, "context_dim") or width
        shapes["context"] = (2, other, *OTHER_SIDES) if on_maps else (2, min(length, OTHER_LENGTH), other)
    return {name: torch.randn(shape, generator=generator, **place) for name, shape in shapes.items()}


def _size(module: nn.Module, name: str) -> int | None:
    """A size that the module, or a part of it, keeps under this name."""
    return next((vars(part)[name] for part in module.modules() if isinstance(vars(part).get(name), int)), None)


def _card(module: nn.Module) -> Card | None:
    card = getattr(module, "card", None)
    return card if isinstance(card, Card) else None


def _by_name(module: nn.Module, inputs: Any) -> tuple[dict[str, Any], int]:
    """The arguments by the names that forward has for them, and how many were given by position."""
    if isinstance(inputs, Mapping):
        return {str(name): value for name, value in inputs.items()}, 0
    values: Sequence[Any] = inputs if isinstance(inputs, (tuple, list)) else [inputs]
    if not any(isinstance(value, Tensor) for value in values):
        raise TypeError("inputs holds no tensor: pass a tensor, a tuple of positional or a dict of named arguments")
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    known = [name for name, p in inspect.signature(module.forward).parameters.items() if p.kind in named]
    names = known[: len(values)] + [f"input {index}" for index in range(len(known), len(values))]
    return dict(zip(names, values, strict=True)), len(values)


def _axes(values: Mapping[str, Any], time_dim: int | None) -> tuple[dict[str, int], tuple[str, ...]]:
    """Which inputs have a time axis, and which are square in it."""
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    if time_dim is None:
        return {}, ()
    first = next(iter(tensors.values()))
    if first.ndim <= max(time_dim, ~time_dim) or first.ndim < 2:
        raise ValueError(
            f"the first input has shape {tuple(first.shape)}, which has no axis {time_dim}: pass time_dim="
        )
    batch_axis = 1 if time_dim == 0 else 0
    batch, length = first.shape[batch_axis], first.shape[time_dim]
    axes: dict[str, int] = {}
    squares: list[str] = []
    for name, value in tensors.items():
        fits = value.ndim >= 2 and value.ndim > max(time_dim, ~time_dim) and value.shape[batch_axis] == batch
        if fits and (value.shape[time_dim] == length or name in KEYS):
            axes[name] = time_dim % value.ndim
        elif value.ndim >= 2 and value.shape[-2:] == (length, length):
            squares.append(name)
    return axes, tuple(squares)


def _evaluated(module: nn.Module) -> nn.Module:
    """A copy in eval mode: nothing that the rules do reaches the user's module."""
    try:
        return copy.deepcopy(module).eval()
    except Exception as error:
        raise ValueError(
            f"{type(module).__name__} cannot be copied (copy.deepcopy: {error}), which check needs"
        ) from error
