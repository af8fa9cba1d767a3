"""Memory-compressed attention of lucidrains/memory-compressed-attention: our layer, its blocks ending at the end."""

from typing import Any

import torch.nn.functional as F

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.mechanisms.lowrank.memory_compressed import MemoryCompressed
from regard.registry import UnsupportedError


def _arguments(config: Config) -> dict[str, Any]:
    """Theirs scales by the full width."""
    return {
        "dim": config["dim"],
        "num_heads": config.get("heads", 8),
        "causal": config.get("causal", False),
        "factor": config.get("compression_factor", 3),
        "attn_drop": config.get("dropout", 0.0),
        "scale": config["dim"] ** -0.5,
    }


def _weights(state: State) -> State:
    """Their one projection is our three, their null key and value are cut into heads."""
    projections = zip("qkv", state["to_qkv.weight"].chunk(3), strict=True)
    groups = state["compress_fn.conv.weight"].shape[1]
    nulls = {name: state[name].reshape(-1, 1, groups) for name in ("null_k", "null_v")}
    rules = {r"^compress_fn\.": "", "^to_out": "out_proj", "^to_qkv.*|^null_.*": ""}
    return {**renamed(state, rules), **{f"{ours}_proj.weight": t for ours, t in projections}, **nulls}


def _call(module: MemoryCompressed, inputs: Inputs, call: Call) -> Outputs:
    """They fill the first block up with zeros where ours fills the last one: zeros in front of x do the same."""
    given = bind(inputs, call, "x", "input_mask")
    if "input_mask" in given:
        raise UnsupportedError(
            "input_mask: their comparison lets real tokens see the null key alone; pass key_mask to our layer instead"
        )
    before = -given["x"].shape[1] % module.factor
    return {"out": module(F.pad(given["x"], (0, 0, before, 0)))[:, before:]}


IMPORTERS = {
    "lucidrains/memory-compressed-attention:*:MemoryCompressedAttention": Importer(
        MemoryCompressed, _arguments, _call, _weights
    ),
}
