"""Multi-head attention and the 2017 Transformer: the annotated Transformer, torch.nn, and the paper's equations."""

from typing import Any

import torch

from regard.attention import attend
from regard.authors import (
    Call,
    Config,
    Importer,
    Inputs,
    Outputs,
    State,
    bind,
    renamed,
    torch_attention,
    torch_transformer,
)
from regard.authors.torch_attention import attention_weights
from regard.layers import MultiHead
from regard.mechanisms.multi_head import ScaledDotProduct
from regard.models.transformer_2017 import Transformer

_NAMES = ("query", "key", "value")


# The annotated Transformer

_LINEARS = {rf"\blinears\.{place}\.": f"{ours}_proj." for place, ours in enumerate(("q", "k", "v", "out"))}


def _multi_head(dim: int, num_heads: int, attn_drop: float) -> MultiHead:
    return MultiHead(dim, num_heads, ScaledDotProduct(), attn_drop=attn_drop)


def _annotated_arguments(config: Config) -> dict[str, Any]:
    return {"dim": config["d_model"], "num_heads": config["h"], "attn_drop": config.get("dropout", 0.1)}


def _annotated_weights(state: State) -> State:
    return renamed(state, _LINEARS)


def _annotated_call(module: MultiHead, inputs: Inputs, call: Call) -> Outputs:
    """Under a mask for each pair; a query that may look at nothing averages all keys, as theirs does."""
    given = bind(inputs, call, *_NAMES, "mask")
    q, k, v = (
        linear(given.get(name, given["query"])).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        for linear, name in zip((module.q_proj, module.k_proj, module.v_proj), _NAMES, strict=True)
    )
    mask = given.get("mask")
    if mask is not None:
        mask = (mask != 0)[(None,) * (3 - mask.ndim)]
        mask = mask[:, None] if mask.ndim == 3 else mask
        empty = ~mask.any(-1, keepdim=True)
        q, mask = q.masked_fill(empty, 0.0), mask | empty
    out, lse = attend(q, k, v, attn_mask=mask, return_lse=True)
    y = module.out_proj(out.transpose(1, 2).flatten(2))
    return {"out": y, "weights": attention_weights(q, k, lse, mask)}


def _model_arguments(config: Config) -> dict[str, Any]:
    return {
        "vocab_size": config["src_vocab"],
        "target_vocab_size": config["tgt_vocab"],
        "dim": config.get("d_model", 512),
        "num_heads": config.get("h", 8),
        "depth": config.get("N", 6),
        "hidden": config.get("d_ff", 2048),
        "dropout": config.get("dropout", 0.1),
        "placement": "pre",
        "norm": "annotated",
    }


def _model_weights(state: State) -> State:
    rules = {
        r"\bself_attn\b": "self_attention",
        r"\bsrc_attn\b": "cross_attention",
        r"\bfeed_forward\.w_1\b": "first",
        r"\bfeed_forward\.w_2\b": "second",
        r"\bsublayer\.(\d)\.norm\b": r"norms.\1",
        r"\ba_2$": "weight",
        r"\bb_2$": "bias",
        r"^src_embed\.0\.lut\b": "embedding",
        r"^tgt_embed\.0\.lut\b": "target_embedding",
        r"^generator\.proj\b": "output",
        r"^.*\.pe$": "",
    }
    return renamed(state, {**_LINEARS, **rules})


def _model_call(module: Transformer, inputs: Inputs, call: Call) -> Outputs:
    given = bind(inputs, call, "src", "tgt", "src_mask", "tgt_mask")
    src_mask, tgt_mask = (None if (m := given.get(name)) is None else m != 0 for name in ("src_mask", "tgt_mask"))
    if tgt_mask is None:  # theirs is causal by its mask alone
        tgt_mask = torch.ones(1, 1, given["tgt"].shape[1], dtype=torch.bool)
    memory = module.encode(given["src"], src_mask)
    y = module.decode(given["tgt"], memory, src_mask, tgt_mask)
    log_probs = module.logits(y).log_softmax(-1)
    return {"out": log_probs, "decoder_out": y, "memory": memory}


# The paper's equations


def _equations_arguments(config: Config) -> dict[str, Any]:
    return {
        "vocab_size": config["vocab"],
        "dim": config["d_model"],
        "num_heads": config["heads"],
        "hidden": config["d_ff"],
        "depth": config["layers"],
        "norm_eps": config.get("norm_eps", 1e-6),
    }


def _equations_weights(state: State) -> State:
    rules = {
        r"^enc\.": "encoder.layers.",
        r"^dec\.": "decoder.layers.",
        r"\.(self|cross)\.([qkv])\.": r".\1_attention.\2_proj.",
        r"\.(self|cross)\.o\.": r".\1_attention.out_proj.",
        r"\bff1\b": "first",
        r"\bff2\b": "second",
        r"\bnorm(\d)\b": r"norms.\1",
        r"^emb$": "embedding.weight",
    }
    return renamed(state, rules)


def _equations_call(module: Transformer, inputs: Inputs, call: Call) -> Outputs:
    """The masks are passed as masks of pairs, so that padding keeps its place among the positions."""
    given = bind(inputs, call, "src", "tgt", "src_ok", "tgt_ok")
    src_mask = None if (ok := given.get("src_ok")) is None else ok[:, None]
    tgt_mask = None
    if (ok := given.get("tgt_ok")) is not None:
        tgt_mask = ok[:, None] & torch.ones(ok.shape[1], ok.shape[1], dtype=torch.bool).tril()
    memory = module.encode(given["src"], src_mask)
    logits = module.logits(module.decode(given["tgt"], memory, src_mask, tgt_mask))
    return {"out": logits, "memory": memory}


_ANNOTATED = "harvardnlp/annotated-transformer:the_annotated_transformer.py"
IMPORTERS = {
    f"{_ANNOTATED}:MultiHeadedAttention": Importer(
        _multi_head, _annotated_arguments, _annotated_call, _annotated_weights
    ),
    f"{_ANNOTATED}:make_model": Importer(Transformer, _model_arguments, _model_call, _model_weights),
    "equations": Importer(Transformer, _equations_arguments, _equations_call, _equations_weights),
    "torch:torch/nn/modules/activation.py:MultiheadAttention": torch_attention.IMPORTER,
    **{f"torch:torch/nn/modules/transformer.py:{cls}": made for cls, made in torch_transformer.IMPORTERS.items()},
}
