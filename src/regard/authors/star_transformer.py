"""Star-Transformer's encoder in fastNLP, by its authors."""

from typing import Any

import torch

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.mechanisms.memory.star_transformer import StarTransformer
from regard.ops.ring import Neighbours


def _arguments(config: Config) -> dict[str, Any]:
    return {
        "dim": config["hidden_size"],
        "num_rounds": config["num_layers"],
        "num_heads": config["num_head"],
        "head_dim": config["head_dim"],
        "num_positions": config.get("max_len"),
        "embed_drop": config.get("dropout", 0.1),
        "norm": "pre",
        "ring": "zero",
    }


def _weights(state: State) -> State:
    """Their projections are convolutions of one place: the same matrices with two axes more."""
    rules = {
        r"^ring_att\.(\d+)": r"rounds.\1.ring",
        r"^star_att\.(\d+)": r"rounds.\1.star",
        r"\.WQ\.": ".q_proj.",
        r"\.WK\.": ".k_proj.",
        r"\.WV\.": ".v_proj.",
        r"\.WO\.": ".out_proj.",
        r"^norm\.(\d+)": r"rounds.\1.node_norm",
        r"^pos_emb\.": "positions.",
    }
    return {name: tensor.flatten(1) if tensor.ndim == 4 else tensor for name, tensor in renamed(state, rules).items()}


def _call(module: StarTransformer, inputs: Inputs, call: Call) -> Outputs:
    """With their padding: it is in the first relay, a neighbour, and counted among the positions."""
    given = bind(inputs, call, "data", "mask")
    x, real = given["data"], given["mask"] != 0
    e = module._embed(x, None)
    neighbours = Neighbours.of(torch.ones_like(real), closed=False)
    nodes, relay = module.run(e, e.mean(1, keepdim=True), neighbours, real)
    return {"out": torch.cat((nodes.flatten(), relay.flatten())), "nodes": nodes, "relay": relay}


_IMPORTER = Importer(StarTransformer, _arguments, _call, _weights)
IMPORTERS = {"fastnlp/fastNLP:*StarTransformer": _IMPORTER}
