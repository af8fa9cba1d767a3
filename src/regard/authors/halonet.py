"""HaloNet's attention from the paper's equations, from lucidrains/halonet-pytorch and from timm; Google published none.

lucidrains' mask, which hid the image instead of what is around it until a fix, is taken as it was meant.
"""

from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind
from regard.mechanisms.patterned.halonet import HaloNet
from regard.registry import UnsupportedError


def _call(module: HaloNet, inputs: Inputs, call: Call) -> Outputs:
    return {"out": module(bind(inputs, call, "x")["x"])}


def _equations_arguments(config: Config) -> dict[str, Any]:
    return {
        "dim": config["dim"],
        "dim_out": config.get("dim_out"),
        "num_heads": config["heads"],
        "head_dim": config.get("dim_head_qk"),
        "block": config["block_size"],
        "halo": config["halo_size"],
        "stride": config.get("stride", 1),
        "edge": config.get("edge", "mask"),
    }


def _equations_weights(state: State) -> State:
    names = {"q.weight": "q_proj.weight", "k.weight": "k_proj.weight", "v.weight": "v_proj.weight"}
    names |= {"rel_row": "rows", "rel_col": "columns"}
    return {names[name]: tensor.flatten(1) for name, tensor in state.items()}


class LongTables(HaloNet):
    """Our layer with the tables of both ports, 2 (b + 2 h) - 1 rows, of which no pair has the first.

    Args:
        options: those of :class:`HaloNet`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        length = 2 * (self.block + 2 * self.halo) - 1
        self.rows, self.columns = (nn.Parameter(self.rows.new_empty(length, self.head_dim)) for _ in range(2))
        self.reset_parameters()


def _lucidrains_arguments(config: Config) -> dict[str, Any]:
    return {
        "dim": config["dim"],
        "num_heads": config.get("heads", 8),
        "head_dim": config.get("dim_head", 64),
        "block": config["block_size"],
        "halo": config["halo_size"],
        "edge": config.get("edge", "mask"),
        "project": True,
    }


def _lucidrains_weights(state: State) -> State:
    k, v = state["to_kv.weight"].chunk(2)
    return {
        "q_proj.weight": state["to_q.weight"],
        "k_proj.weight": k,
        "v_proj.weight": v,
        "out_proj.weight": state["to_out.weight"],
        "out_proj.bias": state["to_out.bias"],
        "rows": state["rel_pos_emb.rel_height"],
        "columns": state["rel_pos_emb.rel_width"],
    }


class Pooled(LongTables):
    """What timm's layer does to halve a map if it may not, or cannot, let fewer pixels ask: means of 2 x 2 pixels."""

    card = replace(
        HaloNet.card,
        refuses={
            **HaloNet.card.refuses,
            "key_mask": "the means of timm's layer count every pixel, and drop the last of odd sides",
        },
    )

    def respond(self, x: Tensor, source: Tensor, **options: Any) -> Tensor:
        """Attend, then take means."""
        return F.avg_pool2d(super().respond(x, source, **options), 2)

    def weigh(self, *args: Any, **options: Any) -> Tensor:
        """Refuse.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError("timm's layer has no weights to show where it takes means")


def _timm(pooled: bool, **options: Any) -> HaloNet:
    return Pooled(**options) if pooled else LongTables(**options)


def _timm_arguments(config: Config) -> dict[str, Any]:
    dim_out, heads = config.get("dim_out") or config["dim"], config.get("num_heads", 8)
    block, stride = config.get("block_size", 8), config.get("stride", 1)
    pooled = stride > 1 and (config.get("avg_down", False) or block % stride != 0)
    return {
        "pooled": pooled,
        "dim": config["dim"],
        "dim_out": dim_out,
        "num_heads": heads,
        "head_dim": config.get("dim_head") or _divisible(dim_out * config.get("qk_ratio", 1.0)) // heads,
        "block": block,
        "halo": config.get("halo_size", 3),
        "stride": 1 if pooled else stride,
        "edge": config.get("edge", "zeros"),
        "scale_rel": config.get("scale_pos_embed", False),
        "coarse_offsets": True,
        "qkv_bias": config.get("qkv_bias", False),
    }


def _divisible(width: float) -> int:
    """timm's rounding of a width to eights: to the nearest, but never to less than 0.9 of it."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


def _timm_weights(state: State) -> State:
    """Their keys and values are one convolution, whose channels are [k | v] of each head in turn."""
    width = state["pos_embed.height_rel"].shape[1]
    found = {"rows": state["pos_embed.height_rel"], "columns": state["pos_embed.width_rel"]}
    for kind in ("weight", "bias"):
        if f"q.{kind}" in state:
            q = found[f"q_proj.{kind}"] = state[f"q.{kind}"].flatten(1) if kind == "weight" else state["q.bias"]
            by_head = state[f"kv.{kind}"].unflatten(0, (len(q) // width, -1))
            for name, part in (("k", by_head[:, :width]), ("v", by_head[:, width:])):
                part = part.flatten(0, 1)
                found[f"{name}_proj.{kind}"] = part.flatten(1) if kind == "weight" else part
    return found


IMPORTERS = {
    "equations": Importer(HaloNet, _equations_arguments, _call, _equations_weights),
    "lucidrains/halonet-pytorch:*:HaloAttention": Importer(
        LongTables, _lucidrains_arguments, _call, _lucidrains_weights
    ),
    "*:timm/layers/halo_attn.py:HaloAttn": Importer(_timm, _timm_arguments, _call, _timm_weights),
}
