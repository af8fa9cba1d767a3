"""What a mechanism costs against length, beside dense attention: seconds on this machine, and what can be counted."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from regard.attention import explain
from regard.bench.curves import crossover
from regard.bench.turns import Call, Seconds, take_turns
from regard.explore.choice import Choice
from regard.factory import create, find
from regard.map_layers import fixed_pattern
from regard.models.on_maps import map_attention
from regard.race.entrants import YARDSTICK
from regard.registry import Layer
from regard.tasks.documents import InputError
from regard.train.clock import now

LENGTHS = (256, 512, 1024, 2048, 4096)
SIDES = (16, 23, 32, 45, 64)
"""Of maps, whose pixels are about as many."""

WIDTH, ROUNDS = 128, 2
LIMIT = 4.0
"""Seconds; a length that would go beyond it, by the growth so far, is not begun."""

GROWTH = 4.5
"""What twice the length may cost at the most, roughly: the square, and a little for memory."""

CALLS = ROUNDS + 2
"""Of each layer at a long length: the turns, and those before them."""


def cost(choice: Choice) -> dict[str, Any]:
    """Forward seconds of the layer and of dense attention with the same projections, in turns, one sequence.

    Raises:
        InputError: a mechanism on pairs, or parameters that it refuses.
    """
    about = choice.card
    if about.data == "pair":
        raise InputError("two inputs meet here, so there is no one length to measure against; its card says the cost")
    choice.layer(LENGTHS[0])
    on_map = about.data == "map"
    own: dict[int, float] = {}
    dense: dict[int, float] = {}
    stopped, begun, coming = "", now(), 0.0
    for size in SIDES if on_map else LENGTHS:
        length = size**2 if on_map else size
        if now() - begun + coming > LIMIT:
            stopped = f"stopped before {length:,}: the limit of {LIMIT:g} s"
            break
        seconds = dict[str, Seconds]()
        makers = {"dense": partial(_dense_call, choice, size), "own": partial(_own_call, choice, size)}
        take_turns(makers, ROUNDS, seconds)
        if seconds["own"].error:
            stopped = f"at {length:,}: {seconds['own'].error}"
            break
        own[length], dense[length] = (seconds[name].medians[1] for name in ("own", "dense"))
        coming = (own[length] + dense[length]) * CALLS * GROWTH
    return {
        "unit": "pixels" if on_map else "tokens",
        "own": sorted(own.items()),
        "dense": sorted(dense.items()),
        "crossover": "this is dense attention" if _is_dense(choice) else _in_words(own, dense),
        "stopped": stopped,
        "counted": _counted(choice),
        "how": f"one forward pass of a layer {WIDTH} wide with {choice.num_heads} heads, float32, "
        f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}, median of {ROUNDS} turns",
    }


def _in_words(own: dict[int, float], dense: dict[int, float]) -> str:
    if not own:
        return ""
    words = crossover(own, dense).words
    if words.startswith("not up"):
        return f"slower than dense attention at every measured length, {words.removeprefix('not ')}"
    return (
        f"faster than dense attention from {words} on"
        if not words.startswith("below")
        else ("faster than dense attention at every measured length")
    )


def _counted(choice: Choice) -> list[dict[str, Any]]:
    """Work and memory of the attention itself, where it is exact softmax over a fixed pattern."""
    if choice.card.data == "map":
        return []
    found: list[dict[str, Any]] = []
    for length in (LENGTHS[0], LENGTHS[-1]):
        try:
            pattern = fixed_pattern(choice.layer(length), (length,))
            heads = choice.num_heads
            if pattern is None or pattern.heads not in (None, heads):
                return []
            x = torch.empty(1, 1, 1, 1).expand(1, heads, length, WIDTH // heads)
            told = [explain(x, x, x, pattern), explain(x, x, x, is_causal=choice.causal)]
        except (ValueError, TypeError):
            return []
        for name, one in zip(("own", "dense"), told, strict=True):
            found.append({"who": name, "length": length, "flops": one.flops[0], "memory": one.memory[0]})
    return found


def _is_dense(choice: Choice) -> bool:
    return choice.name == find(YARDSTICK).name and not choice.options


def _own_call(choice: Choice, size: int) -> Call:
    return _call(choice, choice.name, choice.arguments(size**2 if choice.card.data == "map" else size, WIDTH), size)


def _dense_call(choice: Choice, size: int) -> Call:
    about = choice.card
    given: dict[str, Any] = {"dim": WIDTH, "num_heads": choice.num_heads}
    if about.data != "map" and choice.causal:
        given["causal"] = True
    return _call(choice, YARDSTICK, given, size)


def _call(choice: Choice, name: str, given: dict[str, Any], size: int) -> Call:
    torch.manual_seed(0)
    if choice.card.data == "map":
        layer = map_attention(name, **{"num_heads": choice.num_heads, **given})
        return partial(_forward, layer.eval(), torch.randn(1, WIDTH, size, size))
    return partial(_forward, create(name, **given).eval(), torch.randn(1, size, WIDTH))


def _forward(layer: Layer, x: Tensor) -> object:
    with torch.no_grad():
        return layer(x)
