"""Interlaced sparse self-attention of openseg: the module, the block of both steps, and the attention in them."""

import re
from typing import Any

from torch import Tensor

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.mechanisms.patterned.interlaced import Attention, Interlaced
from regard.registry import UnsupportedError


def _widths(config: Config) -> dict[str, Any]:
    kind = config.get("bn_type")
    if kind not in ("torchbn", "torchsyncbn", "syncbn"):
        raise UnsupportedError(f"bn_type={kind!r}: of their norms we have batch norm with relu only")
    return {
        "dim": config["in_channels"],
        "key_dim": config["key_channels"],
        "value_dim": config["value_channels"],
        "out_dim": config["in_channels"] if config.get("out_channels") is None else config["out_channels"],
    }


def _block_arguments(config: Config) -> dict[str, Any]:
    return {**_widths(config), "factors": tuple(config.get("down_factor", (8, 8))), "fuse": False}


def _module_arguments(config: Config) -> dict[str, Any]:
    factors = [tuple(pair) for pair in config.get("down_factors", ((8, 8),))]
    return {**_widths(config), "factors": factors, "drop": float(config.get("dropout", 0))}


_PARTS = {
    r"(^|\.)f_(query|key)\.0\.": r"\1\2.0.linear.",
    r"(^|\.)f_(query|key)\.1\.0\.": r"\1\2.0.norm.",
    r"(^|\.)f_(query|key)\.2\.": r"\1\2.1.linear.",
    r"(^|\.)f_(query|key)\.3\.0\.": r"\1\2.1.norm.",
    r"(^|\.)f_value\.": r"\1value.",
    r"(^|\.)W\.0\.": r"\1output.linear.",
    r"(^|\.)W\.1\.0\.": r"\1output.norm.",
    r"(^|\.)long_range_sa\.": r"\1far.",
    r"(^|\.)short_range_sa\.": r"\1near.",
    r"^(far|near)\.": r"blocks.0.\1.",
    r"^stages\.": "blocks.",
    r"^up_conv\.0\.": "widen.linear.",
    r"^up_conv\.1\.0\.": "widen.norm.",
    r"^conv_bn\.0\.": "fuse.linear.",
    r"^conv_bn\.1\.0\.": "fuse.norm.",
}


def _weights(state: State) -> State:
    """Convolutions of width 1 are matrices."""
    found = renamed(state, _PARTS)
    return {name: tensor.flatten(1) if re.search(r"(linear|value)\.weight$", name) else tensor
            for name, tensor in found.items()}  # fmt: skip


def _call(module: Interlaced, inputs: Inputs, call: Call) -> Outputs:
    return {"out": module(bind(inputs, call, "x")["x"])}


def _attention_call(module: Attention, inputs: Inputs, call: Call) -> Outputs:
    """Over all pixels of a map, as one row."""
    x: Tensor = bind(inputs, call, "x")["x"]
    return {"out": module(x.flatten(2).mT[:, None], None)[:, 0].mT.unflatten(-1, x.shape[2:])}


_FILE = "openseg-group/openseg.pytorch:lib/models/modules/isa_block.py:"
IMPORTERS = {
    f"{_FILE}ISA_Module": Importer(Interlaced, _module_arguments, _call, _weights),
    f"{_FILE}ISA_Block": Importer(Interlaced, _block_arguments, _call, _weights),
    f"{_FILE}SelfAttentionBlock2D": Importer(Attention, _widths, _attention_call, _weights),
}
