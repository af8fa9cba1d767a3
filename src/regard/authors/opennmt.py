"""OpenNMT-py: its attention of a recurrent decoder, Luong's layer or Bahdanau's by an option."""

from typing import Any

import torch
from torch import nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State
from regard.mechanisms.pairs.bahdanau import Bahdanau
from regard.mechanisms.pairs.luong import Luong
from regard.registry import UnsupportedError


def _build(kind: str, dim: int, sparse: bool) -> nn.Module:
    """Their "mlp" has biases on the query and on the output, and no tanh behind it."""
    if kind == "mlp":
        return Bahdanau(dim, query_bias=True, joined=True, sparse=sparse)
    return Luong(dim, score="dot" if kind == "dot" else "general", sparse=sparse)


def _arguments(config: Config) -> dict[str, Any]:
    kind, shares = config.get("attn_type", "dot"), config.get("attn_func", "softmax")
    if kind not in ("dot", "general", "mlp"):
        raise UnsupportedError(f"attn_type={kind!r} is none of theirs: dot, general, mlp")
    if shares not in ("softmax", "sparsemax"):
        raise UnsupportedError(f"attn_func={shares!r} is none of theirs: softmax, sparsemax")
    if config.get("coverage", False):
        raise UnsupportedError("coverage=True changes the source by what has been seen of it: that is not computed")
    return {"kind": kind, "dim": config["dim"], "sparse": shares == "sparsemax"}


_NAMES = {
    "linear_in": "query_proj",
    "linear_query": "query_proj",
    "linear_context": "key_proj",
    "v": "vector",
    "linear_out": "out_proj",
}


def _weights(state: State) -> State:
    found: State = {}
    for name, tensor in state.items():
        module, part = name.rsplit(".", 1)
        found[f"{_NAMES[module]}.{part}"] = tensor
    return found


def _call(module: nn.Module, inputs: Inputs, call: Call) -> Outputs:
    """Many queries or one, (B, N, C) or (B, C); lengths count real words."""
    names = (*call.get("args", ()), *("query", "memory")[len(call.get("args", ())) :])
    query, memory = inputs[names[0]], inputs[names[1]]
    lengths = next((inputs[name] for name in ("src_len", "memory_lengths") if name in inputs), None)
    mask = None if lengths is None else torch.arange(memory.shape[1], device=memory.device) < lengths[:, None]
    x = query[:, None] if query.ndim == 2 else query
    y = module(x, memory, key_mask=mask)
    if isinstance(module, Bahdanau):
        weights = module.weights(x, module.key_proj(memory), key_mask=mask)
    else:
        assert isinstance(module, Luong)
        weights = module.weights(x, memory, key_mask=mask)
    return {"out": y[:, 0], "weights": weights[:, 0]} if query.ndim == 2 else {"out": y, "weights": weights}


OPENNMT = {
    "OpenNMT/OpenNMT-py:onmt/modules/global_attention.py:GlobalAttention": Importer(_build, _arguments, _call, _weights)
}
