"""torch.nn.MultiheadAttention and what its relatives share: its state in our names, its weights from a lse."""

from typing import Any

import torch
from torch import Tensor

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind
from regard.torch_shell import MultiheadAttention

__all__ = ["IMPORTER", "attention_state", "attention_weights"]


def attention_weights(q: Tensor, k: Tensor, lse: Tensor, mask: Tensor | None = None) -> Tensor:
    """The weights (B, H, N, M) that :func:`regard.attend` does not keep; 0 for a query that may look at nothing."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    lse = lse.to(scores.dtype)[..., None]
    return (scores - lse.masked_fill(lse == -torch.inf, 0.0)).exp()


_OPTIONS = ["embed_dim", "num_heads", "dropout", "bias", "add_bias_kv", "add_zero_attn", "kdim", "vdim", "batch_first"]


def _arguments(config: Config) -> dict[str, Any]:
    """Theirs are ours; where the weights live and in which dtype, the weights say."""
    return {name: config[name] for name in _OPTIONS if name in config}


def attention_state(state: State) -> State:
    """The joint matrix as three projections; the learned key and value as vectors."""
    weights: dict[str, Tensor] = {}
    for name, tensor in state.items():
        prefix, _, last = name.rpartition("in_proj_")
        if name.endswith(("in_proj_weight", "in_proj_bias")):
            weights |= {f"{prefix}{p}_proj.{last}": t for p, t in zip("qkv", tensor.chunk(3), strict=True)}
        elif name.endswith("_proj_weight"):
            weights[name.replace("_proj_weight", "_proj.weight")] = tensor
        else:
            weights[name] = tensor.flatten() if name in ("bias_k", "bias_v") else tensor
    return weights


def _call(module: MultiheadAttention, inputs: Inputs, call: Call) -> Outputs:
    options = {
        name: bool(value)
        for name, value in {**call, **call.get("kwargs", {})}.items()
        if name in ("need_weights", "average_attn_weights", "is_causal") and isinstance(value, int)
    }
    given = bind(inputs, call, "query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")
    key = given.get("key", given["query"])
    out, weights = module(**{"key": key, "value": key} | given, **options)
    return {"out": out} | ({} if weights is None else {"weights": weights})


IMPORTER = Importer(MultiheadAttention, _arguments, _call)
