"""CoDA, computed straight from the paper's equations; no code of its authors can be had."""

from typing import Any

import torch
from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.layers import MultiHead
from regard.mechanisms.pairs.coda import CoDA, CompositionalAlignment, Gate
from regard.registry import UnsupportedError

_RULES = {r"^F_E\.": "similar.", r"^F_N\.": "apart.", r"^([qkv])\.": r"\1_proj.", r"^o\.": "out_proj."}


def _module(heads: int | None = None, causal: bool = False, **options: Any) -> nn.Module:
    """The alignment of two sequences or, where there are heads, multi-head attention."""
    dim, shared, key_dim = options.pop("dim"), options.pop("shared"), options.pop("key_dim")
    if heads is not None:
        return MultiHead(dim, heads, CoDA(causal=causal, **options))
    if causal:
        raise UnsupportedError("causal=True orders two sequences that have no common order: only with heads")
    return CompositionalAlignment(dim, key_dim, shared, **options)


def _arguments(config: Config) -> dict[str, Any]:
    center, double = config.get("center_N", False), config.get("scale2", False)
    if center and double:
        raise UnsupportedError("center_N=True and scale2=True: gates are centered, or scaled by 2, not both")
    gate: Gate = "centered" if center else "scaled" if double else "plain"
    return {
        "dim": config["dim"] if "dim" in config else config["d"],
        "heads": config.get("heads"),
        "key_dim": config.get("k"),
        "shared": config.get("shared_F", True),
        "causal": config.get("causal", False),
        "gate": gate,
        "center_scores": config.get("center_E", False),
        "alpha": config.get("alpha", 1.0),
        "beta": config.get("beta", 1.0),
    }


def _weights(state: State) -> State:
    return renamed(state, _RULES)


def _call(module: nn.Module, inputs: Inputs, call: Call) -> Outputs:
    if isinstance(module, CompositionalAlignment):
        return _align(module, inputs, call)
    given = bind(inputs, call, "query", "context", "key_mask", "query_mask")
    x, context = given["query"], given.get("context")
    masks: dict[str, Any] = {name: _real(given.get(name)) for name in ("key_mask", "query_mask")}
    source = x if context is None else context
    one_each = torch.eye(source.shape[1], device=x.device)[None, None]
    assert isinstance(module, MultiHead)
    return {
        "out": module(x, context, **masks),
        "weights": module.weigh(x, one_each, context, **masks),
    }


def _align(module: CompositionalAlignment, inputs: Inputs, call: Call) -> Outputs:
    given = bind(inputs, call, "a", "b", "a_mask", "b_mask")
    a, b = given["a"], given["b"]
    masks: dict[str, Any] = {"query_mask": _real(given.get("a_mask")), "key_mask": _real(given.get("b_mask"))}
    out: Any = module(a, b, **masks)
    one_each = torch.eye(b.shape[1], device=a.device)[None, None]
    return {"out": out[0], "b_new": out[1], "M": module.weigh(a, one_each, b, **masks)[:, 0]}


def _real(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask > 0


IMPORTERS = {"equations": Importer(_module, _arguments, _call, _weights)}
