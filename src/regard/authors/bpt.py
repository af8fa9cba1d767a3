"""BP-Transformer in yzh119/BPT: one block over packed trees, and the network for language models and classification.

Their sequences lie one after the other, each with the nodes of its own tree; here each has a row, in the tree over the
longest. Their graph is the authors' own, stray edges included.
"""

from typing import Any

import torch
from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, renamed
from regard.models.bpt import BPT, BPTLayer
from regard.ops.binary_tree import level_sizes, span_counts
from regard.ops.tree_attention import Tree
from regard.registry import UnsupportedError

MAX_ETYPE = 1000
"""Rows of their tables of labels."""


class Block(nn.Module):
    """One layer, and how its trees are read."""

    def __init__(self, step: int, clip: int, causal: bool, **options: Any) -> None:
        super().__init__()
        self.step, self.clip, self.causal = step, clip, causal
        self.layer = BPTLayer(**options)


def places(lengths: list[int]) -> Tensor:
    """Where each of their nodes lies among those of B trees over the longest text, one after the other.

    Example:
        >>> places([1, 3]).tolist()
        [0, 6, 7, 8, 9, 10, 11]
    """
    sizes = level_sizes(max(lengths))
    starts = [sum(sizes[:level]) for level in range(len(sizes))]
    found: list[int] = []
    for row, length in enumerate(lengths):
        for start, size in zip(starts, level_sizes(length), strict=False):
            found += range(row * sum(sizes) + start, row * sum(sizes) + start + size)
    return torch.tensor(found)


def _graph(config: Config) -> dict[str, Any]:
    """How the trees are read; the names of their graph builder and of the recordings."""
    return {
        "step": config.get("step", 1),
        "clip": config.get("clip_dist", 10),
        "causal": bool(config.get("causal", config.get("triu", False))),
    }


def _num_labels(config: Config) -> int | None:
    """Rows of their table, of which few are used; None without one."""
    if not config.get("rel_pos", False):
        return None
    graph = _graph(config)
    used = (2 * graph["step"] + 1) * (graph["clip"] + 1)
    if used > MAX_ETYPE:
        raise UnsupportedError(f"{graph} needs {used} labels, and theirs are {MAX_ETYPE}")
    return MAX_ETYPE


def _block_arguments(config: Config) -> dict[str, Any]:
    return {
        **_graph(config),
        "dim": config["dim_model"],
        "num_heads": config["h"],
        "hidden": config["dim_ff"],
        "num_labels": _num_labels(config),
        "dropout": config.get("drop_h", 0.1),
        "attn_drop": config.get("drop_a", 0.1),
    }


_LAYER = {
    r"\bproj_([qkv])\b": r"\1_proj",
    r"\bproj_o\b": "out_proj",
    r"\bembed_ak\.weight$": "table",
    r"\bnorm_in\b": "norm1",
    r"\bnorm_inter\b": "norm2",
    r"\bffn\.0\.w_1\b": "first",
    r"\bffn\.0\.w_2\b": "second",
}


def _block_weights(state: State) -> State:
    return renamed(state, {**_LAYER, "^": "layer."})


def _block_call(module: Block, inputs: Inputs, call: Call) -> Outputs:
    """From packed states to packed states, and what was read before and after the last projection."""
    h, lengths = inputs["h"], inputs["lengths"]
    n, where = int(lengths.max()), places(lengths.tolist()).to(h.device)
    total = sum(level_sizes(n))
    rows = h.new_zeros(len(lengths) * total, h.shape[-1]).index_copy(0, where, h).unflatten(0, (-1, total))
    real = span_counts(torch.arange(n, device=h.device) < lengths[:, None]) > 0
    tree = Tree(module.step, module.clip, module.causal, None if module.causal else lengths)
    heads = module.layer.look(rows, n, tree, real).flatten(0, 1)[where]
    out = module.layer(rows, n, tree, real).flatten(0, 1)[where]
    return {"out": out, "attn": module.layer.out_proj(heads), "attn_heads": heads}


def _model(num_labels: int | None, **options: Any) -> BPT:
    """A network whose tables are as long as theirs."""
    model = BPT(**options)
    for layer in model.layers:
        if isinstance(layer, BPTLayer) and layer.table is not None and num_labels is not None:
            layer.table = nn.Parameter(layer.table.new_empty(num_labels, layer.table.shape[1]))
            layer.reset_parameters()
    return model


def _model_arguments(config: Config) -> dict[str, Any]:
    if config.get("dim_pos", 1) != 1:
        raise UnsupportedError(f"dim_pos={config['dim_pos']}: positions in several dimensions are not those of a text")
    graph = _graph(config)
    return {
        **graph,
        "authors_graph": not graph["causal"],
        "vocab_size": config["vocab_size"],
        "embed_dim": config["dim_embed"],
        "dim": config["dim_model"],
        "hidden": config["dim_ff"],
        "num_heads": config["h"],
        "num_classes": config["n_classes"],
        "depth": config["n_layers"],
        "relative": config.get("rel_pos", False),
        "num_labels": _num_labels(config),
        "embed_drop": config.get("dropouti", 0.1),
        "dropout": config.get("dropouth", 0.1),
        "attn_drop": config.get("dropouta", 0.1),
        "class_drop": config.get("dropoutc", 0.0),
    }


def _model_weights(state: State) -> State:
    rules = {
        r"^embed\.lut\b": "embedding",
        r"^embed_to_hidden\b": "widen",
        r"^pos_enc\.pe\b": "position_embedding",
        r"^generator\.proj\b": "output",
    }
    return renamed(state, {**_LAYER, **rules})


def _model_call(module: BPT, inputs: Inputs, call: Call) -> Outputs:
    """Log-probabilities of the packed nodes that are read out: of the leaves, where nothing else is said."""
    tokens = inputs["x"]
    lengths = inputs.get("lengths", torch.tensor([tokens.numel()], device=tokens.device))
    where, n = places(lengths.tolist()).to(tokens.device), int(lengths.max())
    real = torch.arange(n, device=tokens.device) < lengths[:, None]
    rows = torch.zeros_like(real, dtype=torch.long).masked_scatter(real, tokens.flatten().long())
    h = module.nodes(module.embedding(rows), lengths)
    nodes = h.flatten(0, 1)[where]
    read = next((inputs[name] for name in ("readout_ids", "root_ids", "leaf_ids") if name in inputs), None)
    picked = h[:, :n][real] if read is None else nodes[read]
    return {"out": module.logits(picked).log_softmax(-1), "h": nodes}


IMPORTERS = {
    "yzh119/BPT:*:BPTBlock": Importer(Block, _block_arguments, _block_call, _block_weights),
    "yzh119/BPT:*:BinaryPartitionTransformer": Importer(_model, _model_arguments, _model_call, _model_weights),
}
