"""Double attention as nguyenvo09/Double-Attention-Network has it; the authors published no layer."""

from typing import Any

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.mechanisms.linear.double_attention import DoubleAttention


def _arguments(config: Config) -> dict[str, Any]:
    return {
        "dim": config["in_channels"],
        "features": config["c_m"],
        "descriptors": config["c_n"],
        "reconstruct": config.get("reconstruct", False),
        "residual": False,
    }


def _weights(state: State) -> State:
    """Convolutions of width 1 are matrices."""
    rules = {"^convA": "features", "^convB": "places", "^convV": "mixture", "^conv_reconstruct": "out_proj"}
    return {name: t.flatten(1) if t.ndim == 4 else t for name, t in renamed(state, rules).items()}


def _call(module: DoubleAttention, inputs: Inputs, call: Call) -> Outputs:
    return {"out": module(bind(inputs, call, "x")["x"])}


IMPORTERS = {
    "nguyenvo09/Double-Attention-Network:double_attention_layer.py:DoubleAttentionLayer": Importer(
        DoubleAttention, _arguments, _call, _weights
    )
}
