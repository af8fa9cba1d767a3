"""Where an entrant looked: the attention map of its last layer on a held-out passage that is the same for everybody."""

import base64
import math
import zlib
from typing import Any

import torch
from torch import Tensor, nn

from regard.inspect import Map, attention_map
from regard.inspect.measure import said
from regard.inspect.picture import relative
from regard.registry import UnsupportedError
from regard.tasks.task import Task

LONGEST = 96
"""Tokens of the passage: as many as the eye can follow."""

WEIGHTS = 72_000
"""Of all heads together, a byte each: about 100 KB of results.json at the most."""

MIXTURES = 8
"""Of its output features, where only a Jacobian can be had: a sixteenth of the time, and the norms to some percent."""


def choose_passage(task: Task, num_heads: int) -> bytes:
    """A piece of the test part, a byte a token, as long as its maps may be; empty where there is nothing to see."""
    return task.passage(min(LONGEST, task.length, math.isqrt(WEIGHTS // num_heads)))


def look(model: nn.Module, passage: bytes) -> dict[str, Any]:
    """The map of the last attention, as :func:`pack` writes it, or why there is none; no reason to lose a run.

    The model, a :class:`regard.models.transformer.TransformerEncoder` or its like, reads the passage alone.
    """
    training = model.training
    try:
        return pack(_last_map(model.eval(), passage))
    except Exception as error:
        return {"error": said(error)}
    finally:
        model.train(training)


def pack(found: Map) -> dict[str, Any]:
    """The first sequence's map for JSON, each weight in a byte: its share of the largest magnitude in its row.

    Raises:
        ValueError: a weight that is no number.
    """
    weights = found.tensor[0].float().cpu()
    if not weights.isfinite().all():
        raise ValueError("the map holds weights that are no numbers")
    shares = (127 * relative(weights)).round().to(torch.int8)
    return {
        "kind": found.kind,
        "shape": list(weights.shape),
        "shares": base64.b64encode(zlib.compress(shares.numpy().tobytes(), 9)).decode(),
        "largest": base64.b64encode(weights.abs().amax(-1).numpy().astype("<f4").tobytes()).decode(),
    }


def unpack(told: dict[str, Any]) -> Tensor:
    """The weights (H, N, N) of what :func:`pack` wrote, up to 1/254 of the largest in each row."""
    heads, n, m = told["shape"]
    shares = torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(told["shares"]))), dtype=torch.int8)
    largest = torch.frombuffer(bytearray(base64.b64decode(told["largest"])), dtype=torch.float32)
    return shares.view(heads, n, m) / 127 * largest.view(heads, n, 1)


def _last_map(model: nn.Module, passage: bytes) -> Map:
    """Exact where the attention has weights, else by the Jacobian of a few random mixtures of its features."""
    layer = [module for name, module in model.named_modules() if name.endswith(".attention")][-1]
    place = next(model.parameters()).device
    caught: list[Tensor] = []

    def catch(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        caught.append(arguments[0])

    devices = [place] if place.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices), layer.register_forward_pre_hook(catch):
        model(torch.tensor([list(passage)], device=place))
    (x,) = caught
    try:
        return attention_map(layer, x, kind="exact")
    except UnsupportedError:
        mixtures = torch.randn(x.shape[-1], MIXTURES, generator=torch.Generator().manual_seed(0)).to(x)

        def mixed(tokens: Tensor) -> Tensor:
            return layer(tokens) @ mixtures

        return attention_map(mixed, x, kind="jacobian")
