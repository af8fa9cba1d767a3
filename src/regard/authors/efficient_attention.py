"""Efficient attention of cmsflash/efficient-attention, and from the paper's equations on sequences."""

from typing import Any

import torch

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.mechanisms.linear.efficient_attention import EfficientAttention
from regard.registry import UnsupportedError


def _arguments(config: Config) -> dict[str, Any]:
    """Where heads do not divide the widths, theirs drops channels of queries and keys, or fails at the output."""
    heads, keys, values = (config[name] for name in ("head_count", "key_channels", "value_channels"))
    if keys % heads or values % heads:
        raise UnsupportedError(f"key_channels={keys} and value_channels={values} are no multiples of {heads} heads")
    return {"dim": config["in_channels"], "num_heads": heads, "key_dim": keys, "value_dim": values}


def _weights(state: State) -> State:
    """Convolutions of width 1 are matrices."""
    rules = {"^queries": "q_proj", "^keys": "k_proj", "^values": "v_proj", "^reprojection": "out_proj"}
    return {name: t.flatten(1) if t.ndim == 4 else t for name, t in renamed(state, rules).items()}


def _call(module: EfficientAttention, inputs: Inputs, call: Call) -> Outputs:
    return {"out": module(bind(inputs, call, "input_" if "input_" in inputs else "x").popitem()[1])}


def _equations_arguments(config: Config) -> dict[str, Any]:
    return {
        "dim": config["channels"],
        "num_heads": config.get("heads", 1),
        "key_dim": config.get("key_channels"),
        "value_dim": config.get("value_channels"),
        "normalisation": config.get("normalisation", "softmax"),
        "residual": config.get("residual", False),
    }


def _equations_weights(state: State) -> State:
    return renamed(state, {r"^([qkv])\.": r"\1_proj.", r"^o\.": "out_proj."})


def _equations_call(module: EfficientAttention, inputs: Inputs, call: Call) -> Outputs:
    """Sequences (B, N, C) are lines (B, C, N); their mask is one of keys only, so that all queries have an answer."""
    named = bind(inputs, call, "x", "ctx", "mask")
    context, mask, x = named.get("ctx"), named.get("mask"), named["x"]
    masks = {} if mask is None else {"key_mask": mask.bool(), "query_mask": torch.ones_like(x[..., 0]).bool()}
    return {"out": module(x.mT, None if context is None else context.mT, **masks).mT}


IMPORTERS = {
    "cmsflash/efficient-attention:efficient_attention.py:EfficientAttention": Importer(
        EfficientAttention, _arguments, _call, _weights
    ),
    "equations": Importer(EfficientAttention, _equations_arguments, _equations_call, _equations_weights),
}
