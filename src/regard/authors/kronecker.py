"""Kronecker attention without weights, from the paper's equations, and lucidrains/kronecker-attention-pytorch."""

from typing import Any

from torch import nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind
from regard.mechanisms.lowrank.kronecker import Kronecker
from regard.registry import UnsupportedError


class Operators(nn.Module):
    """Both operators of the paper.

    Args:
        dim: C; they have no weights, so any width will do.
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.pixels, self.lines = (Kronecker(dim, queries=kind, project=False) for kind in ("pixels", "lines"))


def _operators_arguments(config: Config) -> dict[str, Any]:
    if config.get("projections") is not None:
        raise UnsupportedError(f"projections={config['projections']!r}: the paper's operators have none")
    return {}


def _operators_call(module: Operators, inputs: Inputs, call: Call) -> Outputs:
    x = bind(inputs, call, "x")["x"]
    for layer in (module.pixels, module.lines):
        layer.dim, layer.num_axes = x.shape[1], x.ndim - 2
    return {"out": module.pixels(x), "out_qkv": module.lines(x)}


def _port_arguments(config: Config) -> dict[str, Any]:
    return {
        "dim": config["dim"],
        "num_heads": config["heads"],
        "head_dim": config.get("dim_heads", 32),
        "queries": "lines",
    }


def _port_weights(state: State) -> State:
    """Convolutions of width 1 are matrices; theirs for queries, keys and values is one."""
    q, k, v = state["to_qkv.weight"].squeeze(-1).chunk(3)
    return {
        "q_proj.weight": q,
        "k_proj.weight": k,
        "v_proj.weight": v,
        "out_proj.weight": state["to_out.weight"].squeeze(-1),
        "out_proj.bias": state["to_out.bias"],
    }


def _port_call(module: Kronecker, inputs: Inputs, call: Call) -> Outputs:
    return {"out": module(bind(inputs, call, "x")["x"])}


IMPORTERS = {
    "equations": Importer(Operators, _operators_arguments, _operators_call),
    "lucidrains/kronecker-attention-pytorch:*:KroneckerSelfAttention": Importer(
        Kronecker, _port_arguments, _port_call, _port_weights
    ),
}
