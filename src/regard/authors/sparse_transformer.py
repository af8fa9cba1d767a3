"""Sparse attention on (B, T, heads * D), every head a slice: openai/sparse_attention and the paper's equations."""

from typing import Any

import torch
from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, bind, deepspeed, renamed
from regard.authors.deepspeed import SHORT
from regard.mechanisms.patterned.sparse_transformer import SparseTransformer
from regard.patterns import Full
from regard.registry import UnsupportedError


class Heads(nn.Module):
    """A core on (B, T, heads * D), where every head owns a slice of the features.

    Args:
        num_heads: H.
        options: those of :class:`SparseTransformer`.
    """

    def __init__(self, num_heads: int, **options: Any) -> None:
        super().__init__()
        self.num_heads, self.core = num_heads, SparseTransformer(num_heads=num_heads, **options)

    def forward(self, *qkv: Tensor) -> Tensor:
        """(B, T, heads * D)."""
        heads = [x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in qkv]
        return self.core(*heads).transpose(1, 2).flatten(2)


def _openai_arguments(config: Config) -> dict[str, Any]:
    """Their fixed mode has summary columns in whole blocks, another group for every one of ``num_verts`` heads."""
    mode, heads, context = config["attn_mode"], config["heads"], config.get("local_attn_ctx")
    common = {"num_heads": heads, "causal": True}
    if mode == "all":
        return {**common, "pattern": Full()}
    if mode == "local":
        return {**common, "kind": "strided", "how": "local", "stride": context, "window": context}
    if mode == "strided":
        return {**common, "kind": "strided", "how": "far", "stride": context}
    if mode != "fixed" or config.get("kernel") == "dense":
        raise UnsupportedError(f"attn_mode={mode!r} is not computed by their {config.get('kernel', 'any')} kernel")
    verts, size, block = (
        config.get(name) or default for name, default in (("num_verts", 4), ("vertsize", 1), ("blocksize", 32))
    )
    return {**common, "kind": "fixed", "stride": context, "columns": size * block, "groups": verts}


def _equations_arguments(config: Config) -> dict[str, Any]:
    """``parts`` names the set of each head; ``c`` its summary columns."""
    parts = config.get("parts", "merged")
    heads = config.get("heads", config.get("num_heads")) or (len(parts) if isinstance(parts, list) else 1)
    return {
        "num_heads": heads,
        "kind": config["kind"],
        "stride": config["stride"],
        "columns": config.get("c") or 1,
        "how": parts,
        "window": config.get("window"),
        "groups": heads if config.get("per_head_columns", False) else config.get("groups", 1),
        "causal": True,
    }


def _heads_call(module: Heads, inputs: Inputs, call: Call) -> Outputs:
    given = bind(renamed(inputs, SHORT), call, "query", "key", "value")
    y, length = module(given["query"], given["key"], given["value"]), given["query"].shape[1]
    mask = module.core.pattern.dense(length, heads=module.num_heads).expand(module.num_heads, -1, -1)
    return {"out": y, "mask": mask.to(torch.uint8)}


IMPORTERS = {
    "openai/sparse_attention:attention.py:*attention_impl": Importer(Heads, _openai_arguments, _heads_call),
    "equations": Importer(Heads, _equations_arguments, _heads_call),
    **deepspeed.IMPORTERS,
}
