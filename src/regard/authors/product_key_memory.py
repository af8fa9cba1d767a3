"""Product-key memories: facebookresearch/XLM's, and lucidrains' product-key-memory."""

from typing import Any

import torch
from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed, xlm_memory
from regard.ops.product_keys import product_key_search, read_slots
from regard.registry import UnsupportedError


class LayerNormMemory(nn.Module):
    """lucidrains' PKM: a LayerNorm on each half of a query, one for all heads and halves, instead of a batch norm.

    Args:
        dim, heads, num_keys, topk: C, H, n and K.
        half: the width of half a query.
        first, last: LayerNorms on what comes in and on what goes out.
        gates: "softmax" or "relu" of the scores.
        drops: dropout on what comes in, on queries, on weights, and on what goes out.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        num_keys: int,
        topk: int,
        half: int,
        *,
        first: bool,
        last: bool,
        gates: str,
        drops: tuple[float, float, float, float],
    ) -> None:
        super().__init__()
        self.heads, self.topk, self.gates = heads, topk, gates
        self.pre_layernorm = nn.LayerNorm(dim) if first else nn.Identity()
        self.to_queries = nn.Linear(dim, 2 * heads * half, bias=False)
        self.norm = nn.LayerNorm(half)
        self.keys = nn.Parameter(torch.randn(heads, num_keys, 2, half) * half**-0.5)
        self.values = nn.Parameter(torch.randn(num_keys**2, dim) * dim**-0.5)
        self.output_norm = nn.LayerNorm(dim) if last else nn.Identity()
        self.drops = nn.ModuleList(nn.Dropout(rate) for rate in drops)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C)."""
        drop_input, drop_query, drop_weight, drop_output = self.drops
        halves = self.to_queries(drop_input(self.pre_layernorm(x))).unflatten(-1, (2, self.heads, -1))
        q = drop_query(self.norm(halves)).transpose(2, 3).flatten(0, 1)
        score, slot = product_key_search(q, self.keys.transpose(1, 2), self.topk)
        weight = drop_weight(score.softmax(-1) if self.gates == "softmax" else score.relu())
        return self.output_norm(drop_output(read_slots(self.values, slot, weight))).view(x.shape)


_CANNOT = {
    "differentiable_topk": "its coordinate descent is a CUDA kernel of another package",
    "concat_values_and_combine": "their code then never uses the weights",
}


def _arguments(config: Config) -> dict[str, Any]:
    for option, reason in _CANNOT.items():
        if config.get(option):
            raise UnsupportedError(f"{option}=True of their PKM is not computed here: {reason}")
    if not config.get("use_layernorm", True):
        raise UnsupportedError("use_layernorm=False normalises over the wrong axis in their code, and fails as a rule")
    names = ("input_dropout", "query_dropout", "attn_dropout", "value_dropout")
    return {
        "dim": config["dim"],
        "heads": config.get("heads", 4),
        "num_keys": config.get("num_keys", 128),
        "topk": config.get("topk", 32),
        "half": config.get("dim_head", 128),
        "first": config.get("pre_layernorm", False),
        "last": config.get("norm_output", False),
        "gates": "relu" if config.get("non_competitive_gates") else "softmax",
        "drops": tuple(config.get(name, 0.0) for name in names),
    }


def _weights(state: State) -> State:
    return renamed(state, {r"^values\.weight$": "values"})


def _call(module: LayerNormMemory, inputs: Inputs, call: Call) -> Outputs:
    """``input_mask`` means nothing to a LayerNorm."""
    given = bind(inputs, call, "x", "input_mask", "mem_trainable_mask")
    if "mem_trainable_mask" in given or call.get("kwargs", {}).get("gumbel_noise_scale"):
        raise UnsupportedError("mem_trainable_mask fails in their code, and gumbel_noise_scale draws inside of it")
    return {"out": module.train(call.get("mode") == "train")(given["x"])}


IMPORTERS = {**xlm_memory.IMPORTERS, "product-key-memory:*:PKM": Importer(LayerNormMemory, _arguments, _call, _weights)}
