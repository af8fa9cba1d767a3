"""Stand-alone self-attention from the paper's equations: the layer, and the stem; Google published no code."""

import re
from typing import Any

import torch

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind
from regard.mechanisms.patterned.sasa import SASA, SASAStem
from regard.registry import UnsupportedError


def _layer(**options: Any) -> SASA:
    return SASAStem(**options) if "mixtures" in options else SASA(**options)


def _arguments(config: Config) -> dict[str, Any]:
    if config.get("scale", 1.0) != 1.0:
        raise UnsupportedError(f"scale={config['scale']}: the paper's logits have no factor")
    stem = bool(config.get("mixtures"))
    arguments = {
        "dim": config["in_channels"],
        "dim_out": config.get("out_channels"),
        "num_heads": config.get("heads", 8),
        "kernel": config["kernel_size"],
        "edge": config.get("edge", "mask"),
        "grouped": config.get("grouped_projection", False),
        "relative": config.get("rel", not stem),
    }
    if not stem:
        return arguments | {"stride": config.get("stride", 1)}
    if config.get("stride", 1) != 1:
        raise UnsupportedError(f"stride={config['stride']}: after the stem come maxima, which are no part of it")
    return arguments | {"mixtures": config["mixtures"], "embed_dim": config.get("emb_dim")}


_NAMES = {
    "q.weight": "q_proj.weight",
    "kk.weight": "k_proj.weight",
    "v.weight": "v_proj.weight",
    "rel_row": "rows",
    "rel_col": "columns",
    "emb_row": "row_embedding",
    "emb_col": "column_embedding",
    "mix": "mixing",
}


def _weights(state: State) -> State:
    """Convolutions of width 1 are matrices; the stem's for values stand below each other."""
    found = {_NAMES[name]: t.flatten(1) if t.ndim == 4 else t for name, t in state.items() if name in _NAMES}
    values = sorted(
        (name for name in state if re.fullmatch(r"v\.\d+\.weight", name)), key=lambda n: int(n.split(".")[1])
    )
    return found | {"v_proj.weight": torch.cat([state[name].flatten(1) for name in values])} if values else found


def _call(module: SASA, inputs: Inputs, call: Call) -> Outputs:
    return {"out": module(bind(inputs, call, "x")["x"])}


IMPORTERS = {"equations": Importer(_layer, _arguments, _call, _weights)}
