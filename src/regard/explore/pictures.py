"""Maps and patterns as the page draws them, and the picture of a mechanism that has seen no data."""

import base64
import math
from typing import Any

import torch
from torch import Tensor, nn

from regard.explore.choice import Choice
from regard.inspect import Map, attention_map
from regard.inspect.maps import IN_WORDS
from regard.inspect.picture import relative
from regard.inspect.tensors import first_tensor
from regard.map_layers import fixed_pattern
from regard.patterns import Pattern
from regard.patterns.picture import density_map
from regard.registry import UnsupportedError
from regard.tasks.documents import InputError

FINEST = 256
"""Cells along a picture of a pattern; beyond it a cell is the density of a tile."""

LONGEST = 65_536
"""Positions of a pattern; more would not be quick."""

UNTRAINED = 48
"""Tokens of a random input, where a mechanism has no pattern to draw; of a map 8 x 8 pixels."""

SIDE = 8
MOST_PANELS = 8

MIXTURES = 4
"""Of the output features, where only a Jacobian can be had: half of its norms are then right to 3 to 14 %, by layer."""


def picture(choice: Choice, length: int) -> dict[str, Any]:
    """The pattern of ``length`` positions; where there is none that is fixed, the map of an untrained layer.

    Raises:
        InputError: a length that cannot be drawn, or parameters that the mechanism refuses.
    """
    if not 1 <= length <= LONGEST:
        raise InputError(f"positions: {length:,} cannot be drawn; choose from 1 to {LONGEST:,}")
    on_map = choice.card.data == "map"
    side = max(1, math.isqrt(length))
    sides = (side, side) if on_map else (length,)
    torch.manual_seed(0)
    layer = choice.layer(math.prod(sides))
    try:
        pattern = fixed_pattern(layer, sides)
        if pattern is not None:
            return _pattern(pattern, sides)
        return _untrained(choice, layer if on_map or length <= UNTRAINED else choice.layer(UNTRAINED), length)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise InputError(" ".join(str(error).split())) from error


def pack(weights: Tensor) -> dict[str, Any]:
    """Weights (H, N, M): of each cell its share of the largest magnitude in its row, in a signed byte.

    Raises:
        InputError: a weight that is no number.
    """
    weights = weights.detach().float().cpu()
    if not weights.isfinite().all():
        raise InputError("the map holds weights that are no numbers: these parameters make the mechanism overflow")
    shares = (127 * relative(weights)).round().to(torch.int8)
    return {
        "shape": list(weights.shape),
        "shares": base64.b64encode(shares.numpy().tobytes()).decode(),
        "largest": [float(f"{value:.4g}") for value in weights.abs().amax(-1).flatten().tolist()],
    }


def map_of(layer: nn.Module, x: Tensor, context: Tensor | None = None) -> Map:
    """Exact where the layer has weights, else by the Jacobian of a few random mixtures of its features."""
    try:
        return attention_map(layer, x, context, kind="exact")
    except UnsupportedError:
        return attention_map(_Mixed(layer), x, context, kind="jacobian")


def in_words(found: Map) -> str:
    """What the numbers of a map are."""
    if found.kind == "exact":
        return f"{IN_WORDS['exact']}: what multiplies the values"
    return (
        f"{IN_WORDS['jacobian']}, from {MIXTURES} mixtures of its features: how strongly an output depends on an input"
    )


class _Mixed(nn.Module):
    """A layer, and a few random mixtures of its output features."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Tensor) -> Tensor:
        """As the layer, with so many features."""
        y = first_tensor(self.layer(*inputs))
        axis = 1 if y.ndim > 3 else -1
        generator = torch.Generator().manual_seed(0)
        mixtures = torch.randn(y.shape[axis], MIXTURES, generator=generator).to(y)
        return (y.movedim(axis, -1) @ mixtures).movedim(-1, axis)


def _pattern(pattern: Pattern, sides: tuple[int, ...]) -> dict[str, Any]:
    length = math.prod(sides)
    panels = density_map(pattern, length, heads=pattern.heads, largest=FINEST)
    different = list({panel.numpy().tobytes(): panel for panel in panels}.values())[:MOST_PANELS]
    density = pattern.density(length, heads=pattern.heads)
    places = f"{length:,} positions" if len(sides) == 1 else f"{sides[0]} x {sides[1]} pixels, row by row"
    return {
        "kind": "pattern",
        "title": repr(pattern),
        "words": f"{100 * density:.3g} % of all pairs may look, at {places}",
        "names": [f"head {number}" for number in range(len(different))] if len(different) > 1 else ["all heads"],
        "grid": list(sides) if len(sides) > 1 else None,
        **pack(torch.stack(different)),
    }


def _untrained(choice: Choice, layer: nn.Module, length: int) -> dict[str, Any]:
    """The map of random weights on random numbers: what the mechanism does before it has learned anything."""
    data, width = choice.card.data, choice.arguments(1)["dim"]
    side, count = min(SIDE, max(1, math.isqrt(length))), min(UNTRAINED, length)
    sequence, pixels = (1, count, width), (1, width, side, side)
    in_a_row = f"{count} random vectors"
    ways = {
        "map": [((pixels,), f"{side} x {side} random pixels")],
        "pair": [((sequence,) * 2, f"two times {in_a_row}"), ((pixels,) * 2, f"two maps of {side} x {side} pixels")],
    }.get(data, [((sequence,), in_a_row)])
    for shapes, on in ways:
        generator = torch.Generator().manual_seed(0)
        try:
            found = map_of(layer, *(torch.randn(shape, generator=generator) for shape in shapes))
        except (ValueError, TypeError):
            if data != "pair":
                raise
            continue
        return {
            "kind": found.kind,
            "title": "No fixed pattern: the map of an untrained layer",
            "words": f"random weights on {on}; {in_words(found)}",
            "names": head_names(found),
            "grid": [side, side] if len(shapes[0]) == 4 else None,
            **pack(with_mean(found.tensor[0])),
        }
    return {
        "kind": "none",
        "title": "Nothing to draw",
        "words": "Its inputs have a meaning of their own, so there is no map of random ones; its page in the "
        "documentation says what it takes.",
    }


def head_names(found: Map) -> list[str]:
    """Of the panels of :func:`with_mean`."""
    heads = found.tensor.shape[1]
    return ["mean of the heads", *(f"head {number}" for number in range(heads))] if heads > 1 else ["one head"]


def with_mean(weights: Tensor) -> Tensor:
    """The mean over the heads before the heads themselves; one head is its own mean."""
    return torch.cat([weights.mean(0, keepdim=True), weights]) if len(weights) > 1 else weights
