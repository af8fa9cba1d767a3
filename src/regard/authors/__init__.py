"""The authors' checkpoints: their constructor arguments and weights become our modules.

One file a mechanism holds ``IMPORTERS``: under the name of a source ("owner/repository:path:Class", or "equations"
for what was computed straight from a paper) an :class:`Importer`, three pure functions and a class of ours.
:func:`load` builds a module with the authors' weights; :mod:`regard.authors.replay` repeats their numbers.
"""

import importlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from regard.registry import UnsupportedError

__all__ = ["Importer", "bind", "find", "load", "normalise", "renamed"]

Config = Any  # a JSON value: nearly always a mapping of constructor arguments
State = Mapping[str, Tensor]
Inputs = Mapping[str, Tensor]
Outputs = dict[str, Tensor]
Call = Mapping[str, Any]


def _unchanged(state: State) -> State:
    return state


@dataclass(frozen=True)
class Importer:
    """How one class of the authors maps to one of ours.

    Args:
        module: our class, or a function that builds our module.
        arguments: the authors' constructor arguments -> those of ``module``.
        weights: the authors' state dict -> ours, by views, splits and concatenations only, so that gradients flow
            back to the authors' names.
        call: (module, inputs by the authors' names, call notes) -> outputs: the main one as "out", the rest by the
            authors' names.
    """

    module: Callable[..., nn.Module]
    arguments: Callable[[Config], dict[str, Any]]
    call: Callable[[Any, Inputs, Call], Outputs]
    weights: Callable[[State], State] = _unchanged


def normalise(source: str) -> str:
    """Strip the commit, the version and every remark: what names the code stays.

    Example:
        >>> normalise("openai/sparse_attention@c53f3bd:attention.py:attention_impl")
        'openai/sparse_attention:attention.py:attention_impl'
        >>> normalise("pypi transformers==5.23.0:models/longformer/modeling_longformer.py:LongformerSelfAttention")
        'transformers:models/longformer/modeling_longformer.py:LongformerSelfAttention'
        >>> normalise("equations (arXiv 1706.03762 sec. 3)")
        'equations'
    """
    if source.strip().lower().startswith("equations"):
        return "equations"
    parts = [re.split(r"[\s(;,]", part.strip())[0] for part in source.strip().removeprefix("pypi ").split(":")[:3]]
    parts[0] = re.split(r"@|==", parts[0])[0]
    return ":".join(parts)


def bind(inputs: Inputs, call: Call, *names: str) -> dict[str, Tensor]:
    """The inputs by the parameters of the source's call.

    Args:
        inputs: the recorded inputs.
        call: its ``args`` name the input in each place, its ``kwargs`` the input for a parameter.
        names: the parameters, in order; an input of that name serves where the call says nothing.

    Example:
        >>> import torch
        >>> x = torch.zeros(3)
        >>> sorted(bind({"x": x, "mask": x}, {"args": ["x", "x"]}, "query", "key", "mask"))
        ['key', 'mask', 'query']
    """
    places = dict(zip(names, call.get("args", ()), strict=False)) | dict(call.get("kwargs", {}))
    bound: dict[str, Tensor] = {}
    for name in names:
        place = places.get(name, name)
        source = place if isinstance(place, str) and place in inputs else name
        if source in inputs:
            bound[name] = inputs[source]
    return bound


def renamed(state: State, rules: Mapping[str, str]) -> State:
    """Every name with the rules (regular expression -> replacement) applied in turn; what becomes empty is left out.

    Example:
        >>> import torch
        >>> list(renamed({"w_1.bias": torch.zeros(1), "pe": torch.zeros(1)}, {"^w_1": "first", "^pe$": ""}))
        ['first.bias']
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, replacement in rules.items():
            name = re.sub(pattern, replacement, name)
        if name:
            found[name] = tensor
    return found


def find(mechanism: str, source: str) -> Importer:
    """The importer for a source, by its full name first, else by the name of its class alone.

    Raises:
        UnsupportedError: the mechanism has no importers, or none for this source.
    """
    try:
        importers = importlib.import_module(f"{__name__}.{mechanism}").IMPORTERS
    except (ModuleNotFoundError, AttributeError) as error:
        if error.name not in (f"{__name__}.{mechanism}", "IMPORTERS"):
            raise
        raise UnsupportedError(f"no authors' weights can be loaded for {mechanism!r}") from None
    name = normalise(source)
    for pattern, importer in importers.items():
        if fnmatchcase(name, pattern):
            return importer
    words = re.findall(r"\w+", source)
    for pattern, importer in importers.items():
        if any(fnmatchcase(word, pattern.split(":")[-1]) for word in words):
            return importer
    raise UnsupportedError(f"{mechanism} cannot load {name!r}; it knows {', '.join(importers)}")


def load(mechanism: str, source: str, config: Config, state_dict: State) -> nn.Module:
    """Our module with the authors' configuration and weights, in the dtype and on the device of the weights.

    Args:
        mechanism: registry name, e.g. "longformer".
        source: "owner/repository:path:Class"; a commit and remarks are ignored.
        config: the authors' constructor arguments, as a mapping or as JSON.
        state_dict: the authors' weights under their names.

    Raises:
        UnsupportedError: an unknown source, or an option of theirs that we do not compute.
        RuntimeError: weights that do not fit the configuration.

    Example:
        >>> import torch
        >>> theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        >>> config = {"embed_dim": 8, "num_heads": 2, "batch_first": True}
        >>> ours = load("multi_head", "torch.nn.MultiheadAttention", config, theirs.state_dict())
        >>> x = torch.randn(1, 5, 8)
        >>> torch.allclose(ours(x, x, x)[0], theirs(x, x, x)[0], atol=1e-6)
        True
    """
    importer = find(mechanism, source)
    module = importer.module(**importer.arguments(json.loads(config) if isinstance(config, str) else config))
    weights = importer.weights(state_dict)
    for weight in weights.values():
        if weight.is_floating_point():
            module.to(weight)
            break
    module.load_state_dict(dict(weights), strict=True)
    return module
