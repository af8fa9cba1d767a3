"""Context-guided BERT by its authors: the self-attentions of QACGBERT.py and CGBERT.py, and the whole networks."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, bind, renamed
from regard.mechanisms.pairs.quasi_attention import Kind, QuasiAttention, quasi_weights
from regard.models.qacg_bert import ContextGuidedBert
from regard.registry import UnsupportedError

_ATTENTION = {
    r"\bquery\.": "q_proj.",
    r"\bkey\.": "k_proj.",
    r"\bvalue\.": "v_proj.",
    r"\bcontext_for_([qk])\.": r"context_\1.",
    r"\blambda_q_query_layer\.": "gate_q.",
    r"\blambda_q_context_layer\.": "gate_cq.",
    r"\blambda_k_key_layer\.": "gate_k.",
    r"\blambda_k_context_layer\.": "gate_ck.",
}

_NETWORK = {
    r"^bert\.": "",
    r"\.gamma$": ".weight",
    r"\.beta$": ".bias",
    r"^embeddings\.word_embeddings": "encoder.token_embedding",
    r"^embeddings\.position_embeddings": "encoder.position_embedding",
    r"^embeddings\.token_type_embeddings": "encoder.type_embedding",
    r"^embeddings\.LayerNorm": "encoder.norm",
    r"^context_embeddings": "context_embedding",
    r"^encoder\.context_layer": "context_maps",
    r"^pooler\.attention_gate.*": "",
    r"^pooler\.dense": "encoder.pool",
    r"^encoder\.layer\.(\d+)\.attention\.self": r"encoder.blocks.\1.attention",
    r"^encoder\.layer\.(\d+)\.attention\.output\.dense": r"encoder.blocks.\1.attention.out_proj",
    r"^encoder\.layer\.(\d+)\.attention\.output\.LayerNorm": r"encoder.blocks.\1.norm1",
    r"^encoder\.layer\.(\d+)\.intermediate\.dense": r"encoder.blocks.\1.mlp.0",
    r"^encoder\.layer\.(\d+)\.output\.dense": r"encoder.blocks.\1.mlp.2",
    r"^encoder\.layer\.(\d+)\.output\.LayerNorm": r"encoder.blocks.\1.norm2",
    **_ATTENTION,
}
"""The gate of their pooler is never used: what it holds is left out."""

CONTEXTS = 8
"""Rows of their table of contexts: two targets of SentiHood times four aspects."""


def _attention(**arguments: Any) -> QuasiAttention:
    """Theirs ends before the output projection."""
    layer = QuasiAttention(**arguments)
    layer.register_module("out_proj", nn.Identity())
    return layer


def _attention_arguments(kind: Kind, config: Config) -> dict[str, Any]:
    return {
        "dim": config.get("hidden_size", 768),
        "num_heads": config.get("num_attention_heads", 12),
        "attn_drop": config.get("attention_probs_dropout_prob", 0.1),
        "kind": kind,
    }


def _attention_call(layer: QuasiAttention, inputs: Inputs, call: Call) -> Outputs:
    """Padded tokens do ask; nobody asks them."""
    given = bind(inputs, call, "hidden_states", "keep_mask", "context", "attention_mask", "context_embedded")
    x, context = given["hidden_states"], given["context"] if "context" in given else given["context_embedded"]
    real = _real(given, x)
    everyone = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    out: Outputs = {"out": layer(x, context, key_mask=real, query_mask=everyone)}
    if layer.kind == "mixed":
        return out
    q, k, cq, ck = layer.project(x, context)
    lq, lk = layer.gates(q, k, cq, ck)
    gate = 1 - lq - lk
    usual, composed = quasi_weights(q, k, cq, ck, gate, allowed=None if real is None else real[:, None, None])
    maps = {"attention_softmax": usual, "attention_quasi": composed, "attention_new": usual + composed}
    return {**out, **maps, "lambda": gate}


def _real(given: Inputs, x: Tensor) -> Tensor | None:
    """Which keys are real: said so, or by the 0 that is added to their scores."""
    if "keep_mask" in given:
        return given["keep_mask"].bool()
    added = given.get("attention_mask")
    return None if added is None else (added.detach() == 0).reshape(x.shape[:2])


def _network(headless: bool, **arguments: Any) -> ContextGuidedBert:
    """Without a classifier it ends with the pooled vector."""
    model = ContextGuidedBert(**arguments)
    if headless:
        model.register_module("classifier", nn.Identity())
    return model


def _network_arguments(kind: Kind, headless: bool, config: Config) -> dict[str, Any]:
    """Their configuration object, and the number of labels beside it or in it."""
    sizes = {**config, **config.get("config", {})}
    if sizes.get("vocab_size") is None:
        raise UnsupportedError("the configuration has no vocab_size: without it the table of words has no size")
    return {
        "vocab_size": sizes["vocab_size"],
        "dim": sizes.get("hidden_size", 768),
        "depth": sizes.get("num_hidden_layers", 12),
        "num_heads": sizes.get("num_attention_heads", 12),
        "max_length": sizes.get("max_position_embeddings", 512),
        "num_contexts": CONTEXTS,
        "num_labels": 1 if headless else sizes["num_labels"],
        "kind": kind,
        "mlp_dim": sizes.get("intermediate_size", 3072),
        "num_types": sizes.get("type_vocab_size", 16),
        "attn_drop": sizes.get("attention_probs_dropout_prob", 0.1),
        "dropout": sizes.get("hidden_dropout_prob", 0.1),
        "headless": headless,
    }


def _network_call(model: ContextGuidedBert, inputs: Inputs, call: Call) -> Outputs:
    given = bind(inputs, call, "input_ids", "token_type_ids", "attention_mask", "context_ids")
    mask = given.get("attention_mask")
    real = None if mask is None else mask > 0
    contexts = given["context_ids"].reshape(len(given["input_ids"]))
    return {"out": model(given["input_ids"], contexts, key_mask=real, token_types=given.get("token_type_ids"))}


def _importers(kind: Kind, prefix: str) -> dict[str, Importer]:
    file = f"frankaging/Quasi-Attention-ABSA:code/model/{prefix}BERT.py"
    own, whole = partial(renamed, rules=_ATTENTION), partial(renamed, rules=_NETWORK)
    found = {
        f"{file}:ContextBERTSelfAttention": Importer(
            _attention, partial(_attention_arguments, kind), _attention_call, own
        )
    }
    for name, headless in (("ContextBertModel", True), (f"{prefix}BertForSequenceClassification", False)):
        arguments = partial(_network_arguments, kind, headless)
        found[f"{file}:{name}"] = Importer(_network, arguments, _network_call, whole)
    return found


IMPORTERS = _importers("quasi", "QACG") | _importers("mixed", "CG")
