"""The new attention: a mechanism with the projections of the old one."""

import copy
import inspect
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from regard import factory
from regard.layers import MultiHead
from regard.patterns import Pattern
from regard.registry import Core, Layer, UnsupportedError
from regard.swap.reading import Reading, even_biases, has_bias

_NO_PLACE = {
    "reformer": "its queries are its keys, one projection for both, and this model has two: neither could be kept",
}


def build(
    mechanism: str | Pattern,
    reading: Reading,
    causal: bool,
    max_length: int | None,
    generator: torch.Generator | None,
    options: dict[str, Any],
) -> tuple[Layer, str]:
    """A layer that asks, is asked and answers with the projections that were read, and what could not be kept.

    Args:
        mechanism: a registry name, or a pattern for softmax attention over its pairs.
        reading: the attention that is replaced.
        causal: whether the layer hides the future.
        max_length: the longest sequence.
        generator: seeds what the mechanism draws.
        options: of the mechanism.

    Raises:
        TypeError, ValueError, UnsupportedError: as :func:`regard.create`; and a mechanism without these projections.
    """
    name, options = (
        ("sparse_transformer", {"pattern": mechanism} | options)
        if isinstance(mechanism, Pattern)
        else (
            mechanism,
            dict(options),
        )
    )
    record = factory.find(name)
    parameters = inspect.signature(record.cls).parameters
    kept: dict[str, Any] = {"dim": reading.dim, "num_heads": reading.num_heads, "max_length": max_length}
    kept |= {"device": reading.q.weight.device, "dtype": reading.q.weight.dtype}
    if causal or "causal" in parameters:
        kept["causal"] = causal
    if reading.num_kv_heads != reading.num_heads:
        kept["num_kv_heads"] = reading.num_kv_heads
    if reading.head_dim * reading.num_heads != reading.dim:
        kept["head_dim"] = reading.head_dim
    if "qkv_bias" in parameters:
        kept["qkv_bias"] = has_bias(even_biases(reading)["q_proj"])
    note = ""
    if reading.attn_drop and ("attn_drop" in parameters or name == "multi_head"):
        kept["attn_drop"] = reading.attn_drop
    elif reading.attn_drop and "attn_drop" not in options:
        reason = record.card.refuses.get("attn_drop", "it has no dropout on its weights")
        note = f"its dropout of {reading.attn_drop:g} on the weights is gone: {reason}"
    with drawn_from(generator, reading.q.weight.device):
        layer = factory.create(name, **(kept | options))
    _furnish(layer, reading, record.cls)
    return layer, note


def _furnish(layer: Layer, reading: Reading, cls: type[Core] | type[Layer]) -> None:
    """Put the projections of the old attention in the places of the new ones."""
    name = layer.mechanism
    for place, part in even_biases(reading).items():
        new = getattr(layer, place, None)
        if name in _NO_PLACE or not isinstance(new, nn.Linear) or new.weight.shape != part.weight.shape:
            reason = _NO_PLACE.get(name, f"it has no {place} that could be the model's")
            raise UnsupportedError(f"{name} cannot take over the weights of an attention: {reason}")
        setattr(layer, place, part)
        if hasattr(
            layer, place.replace("_proj", "_global")
        ):  # Longformer, section 5: global tokens start as local ones
            setattr(layer, place.replace("_proj", "_global"), copy.deepcopy(part).requires_grad_())
    if not isinstance(getattr(layer, "out_proj", None), (nn.Linear, nn.Identity)):
        raise UnsupportedError(f"{name} cannot take over the weights of an attention: it has no out_proj")
    layer.out_proj = nn.Identity() if reading.out is None else reading.out
    around = {"q_norm": reading.q_norm, "k_norm": reading.k_norm, "rotary": reading.rotary}
    for place, part in around.items():
        if part is not None and not isinstance(layer, MultiHead):
            raise UnsupportedError(
                f"{name} owns its projections and has no place for the model's {place}: choose a mechanism with a core"
            )
        if isinstance(layer, MultiHead):
            setattr(layer, place, part)


@contextmanager
def drawn_from(generator: torch.Generator | None, device: torch.device) -> Generator[None]:
    """Inside, torch's own random numbers come from the generator, where there is one."""
    with torch.random.fork_rng(cuda_only(device), enabled=generator is not None):
        if generator is not None:
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
        yield


def cuda_only(*devices: torch.device) -> list[torch.device]:
    """Those whose random state has to be kept apart from the CPU's."""
    return list({device for device in devices if device.type == "cuda"})
