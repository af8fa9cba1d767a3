"""Global memory from the papers' equations: GMAT with its learned memory, and ETC's global-local attention.

The authors of GMAT never released code, and ETC's is TensorFlow's, so these are the names of the recorded equations.
"""

from typing import Any

import torch
from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, renamed
from regard.mechanisms.memory.global_memory import GlobalMemory, MemoryTokens, Structure
from regard.patterns import Blocks, Full, Pattern, Window
from regard.registry import UnsupportedError


class WithMemory(nn.Module):
    """One layer and, where the memory is no input, the learned tokens in front of it."""

    def __init__(self, learned: bool, **options: Any) -> None:
        super().__init__()
        self.memory = MemoryTokens(options["num_global"], options["dim"]) if learned else None
        self.layer = GlobalMemory(**options)


def _first(given: Config, *names: str) -> Any:
    """The first of several spellings."""
    return next((given[name] for name in names if given.get(name) is not None), None)


def _pattern(config: Config) -> Pattern:
    chunk, radius = _first(config, "chunk", "block"), _first(config, "radius", "local_radius", "r", "window")
    if chunk is not None and radius is not None:
        raise UnsupportedError(f"long tokens meet in chunks of {chunk} or within a radius of {radius}, not both")
    if chunk is not None:
        return Blocks(chunk)
    return Full() if radius is None else Window(radius)


def _arguments(config: Config) -> dict[str, Any]:
    distance = _first(config, "max_distance", "clip", "k", "K")
    return {
        "learned": "chunk" in config or bool(config.get("learned")),
        "dim": _first(config, "dim", "C", "hidden_size"),
        "num_heads": _first(config, "heads", "num_heads", "H"),
        "num_global": _first(config, "mem", "num_global", "globals", "G"),
        "pattern": _pattern(config),
        "max_distance": distance,
        "separate": not config.get("shared", distance is None),
    }


def _weights(state: State) -> State:
    """Letters, with a side where both have their own: "q", or "ql" and "qg"; labels (R, H, D) there, (H, R, D) here."""
    rules = {
        r"^(?:memory|M)$": "memory.start",
        r"^([qkv])_?(?:l|long)\.": r"layer.\1_proj.rest.",
        r"^([qkv])_?(?:g|global)\.": r"layer.\1_proj.first.",
        r"^([qkv])\.": r"layer.\1_proj.",
        r"^(?:o|out)\.": "layer.out_proj.",
        r"^(?:a|rel|table|labels)(?:\.weight)?$": "layer.labels",
    }
    found = renamed(state, rules)
    labels = found.get("layer.labels")
    if labels is None:
        return found
    return {**found, "layer.labels": labels.transpose(0, 1)}


def _call(module: WithMemory, inputs: Inputs, call: Call) -> Outputs:
    """Padded tokens ask as well, as in the equations; only as keys are they left out."""
    x, memory = _first(inputs, "x", "long", "x_long"), _first(inputs, "memory", "global", "g", "x_global")
    real, real_memory = _first(inputs, "valid", "valid_long"), _first(inputs, "valid_global", "global_valid")
    count, structure = module.layer.num_global, Structure(owner=_first(inputs, "owner", "belongs"))
    if memory is None and module.memory is not None:
        x, real = module.memory(x, real)
    elif memory is not None:
        x, real = _join(memory, x, real_memory, real)
    everyone = None if real is None else torch.ones_like(real)
    y = module.layer(x, key_mask=real, query_mask=everyone, structure=structure)
    return {"out": y[:, count:], "memory": y[:, :count]}


def _join(memory: Tensor, x: Tensor, real_memory: Tensor | None, real: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The memory in front, and which of all tokens are real."""
    whole = torch.cat((memory, x), 1)
    if real_memory is None and real is None:
        return whole, None
    masks = (real_memory, memory), (real, x)
    return whole, torch.cat(
        [mask if mask is not None else torch.ones(t.shape[:2], dtype=torch.bool, device=t.device) for mask, t in masks],
        1,
    )


IMPORTERS = {"equations": Importer(WithMemory, _arguments, _call, _weights)}
