"""LSH self-attention of google/trax, and the port in transformers, which has no output projection."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind
from regard.mechanisms.chosen.reformer import Reformer
from regard.ops.hashing import lsh_buckets


class LshSelfAttention(Reformer):
    """A Reformer that is as wide as the weights it is given, hashes as its authors do, and may end before ``out_proj``.

    Args:
        project_out: end with an output projection.
        longest: the tokens for which the port chose its number of buckets; None: trax's rule.
        options: those of :class:`Reformer`.
    """

    def __init__(self, *, project_out: bool = True, longest: int | None = None, **options: Any) -> None:
        super().__init__(dim=1, **options)
        self.longest = longest
        if not project_out:
            self.out_proj: nn.Module = nn.Identity()
        self.register_load_state_dict_pre_hook(_as_wide_as_the_weights)

    def hashed(self, qk: Tensor, inputs: Inputs) -> Tensor:
        """The buckets as recorded, or by the recorded rotations, or by the saved ones: (B, H, R, N)."""
        shape = (len(qk), self.num_heads, -1, qk.shape[2])
        if "buckets" in inputs:
            return inputs["buckets"].long().reshape(shape)
        if "rotations" not in inputs:
            return self._buckets(qk, self.rotations[None], None)
        table = inputs["rotations"].detach()
        factors = self.factors or self._usual_factors(qk.shape[2])
        return lsh_buckets(qk, (table if table.ndim == 5 else table[None]).split([f // 2 for f in factors], -1))

    def _usual_factors(self, length: int) -> tuple[int, ...]:
        chunks = length // self.chunk_length
        if self.longest is None:  # trax: a power of two near the root, and an even rest
            buckets = 2 * max(1, chunks)
            power = 2 ** math.ceil(math.log2(buckets) / 2)
            return (buckets,) if buckets <= 128 else (power, 2 * (buckets // (2 * power)))
        exponent = (2 * chunks).bit_length() - 1  # the port: powers of two only
        limit = 2 * max(math.isqrt(self.longest // self.chunk_length), self.chunk_length)
        small = 2**exponent <= limit
        return (2**exponent,) if small else (2 ** (exponent // 2), 2 ** (exponent - exponent // 2))


def _as_wide_as_the_weights(module: LshSelfAttention, state_dict: dict[str, Tensor], *_: Any) -> None:
    """Neither source names the width in its configuration, nor keeps its rotations."""
    weight = state_dict["qk_proj.weight"]
    module.dim = weight.shape[1]
    module.qk_proj = nn.Linear(module.dim, len(weight), bias=False, device=weight.device, dtype=weight.dtype)
    value = state_dict["v_proj.weight"]
    module.v_proj = nn.Linear(module.dim, len(value), bias=False, device=weight.device, dtype=weight.dtype)
    if isinstance(module.out_proj, nn.Linear):
        module.out_proj = nn.Linear(len(value), module.dim, bias=False, device=weight.device, dtype=weight.dtype)
    state_dict.setdefault("rotations", module.rotations)


def _trax_arguments(config: Config) -> dict[str, Any]:
    training = config.get("mode", "train") == "train"
    return {
        "num_heads": config.get("n_heads", 2),
        "head_dim": config.get("d_qk", 64),
        "value_dim": config.get("d_v", 64),
        "chunk_length": config.get("chunk_len") or 128,
        "num_hashes": config.get("n_hashes", 1),
        "num_buckets": config.get("n_buckets"),
        "chunks_before": config.get("n_chunks_before", 1),
        "chunks_after": config.get("n_chunks_after", 0),
        "causal": config.get("causal", False),
        "attn_drop": config.get("attention_dropout", 0.0) * training,
        "proj_drop": config.get("output_dropout", 0.0) * training,
    }


def _trax_weights(state: State) -> State:
    """Theirs are by head: w_q (H, C, d), w_v (H, C, d_v), w_o (H, d_v, C)."""
    return {
        "qk_proj.weight": state["w_q"].mT.flatten(0, 1),
        "v_proj.weight": state["w_v"].mT.flatten(0, 1),
        "out_proj.weight": state["w_o"].flatten(0, 1).mT,
    }


def _port_arguments(config: Config) -> dict[str, Any]:
    chunk = config.get("lsh_attn_chunk_length", config.get("chunk_length", 64))
    return {
        "project_out": False,
        "longest": config.get("max_position_embeddings", 4096),
        "num_heads": config.get("num_attention_heads", 12),
        "head_dim": config.get("attention_head_size", 64),
        "chunk_length": chunk,
        "num_hashes": config.get("num_hashes", 1),
        "num_buckets": config.get("num_buckets"),
        "chunks_before": config.get("lsh_num_chunks_before", 1),
        "chunks_after": config.get("lsh_num_chunks_after", 0),
        "causal": config.get("is_decoder", False),
        "attn_drop": config.get("lsh_attention_probs_dropout_prob", 0.05),
    }


def _port_weights(state: State) -> State:
    return {"qk_proj.weight": state["query_key.weight"], "v_proj.weight": state["value.weight"]}


def _call(module: LshSelfAttention, inputs: Inputs, call: Call) -> Outputs:
    """Their padding asks, as the last bucket of each round, but is not asked."""
    given = bind(inputs, call, *(("hidden_states", "attention_mask") if "hidden_states" in inputs else ("x", "mask")))
    x, *masks = given.values()
    qk, v = module._heads(module.qk_proj(x)), module._heads(module.v_proj(x))
    real = masks[0].detach().reshape(x.shape[:2]).bool() if masks else None
    everyone = None if real is None else torch.ones_like(real)
    out = module._meet(qk, v, module.hashed(qk, inputs), real, everyone)
    return {"out": module.out_proj(out.transpose(1, 2).flatten(2))}


_PORT = Importer(LshSelfAttention, _port_arguments, _call, _port_weights)
IMPORTERS = {
    "google/trax:trax/layers/research/efficient_attention.py:LSHSelfAttention": Importer(
        LshSelfAttention, _trax_arguments, _call, _trax_weights
    ),
    "transformers:*models/reformer/modeling_reformer.py:LSHSelfAttention": _PORT,
    "huggingface/transformers:*LSHSelfAttention": _PORT,
}
