"""The attention modules of DANet, and the compact ones of DRANet, from junfu1115/DANet."""

from typing import Any

import torch
from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.mechanisms.gates.dual_attention import ChannelAttention, PositionAttention, channel_attention
from regard.ops.centres import Centres

_LAYERS = {
    r"^(query_conv|conv_query)\.": "q_proj.",
    r"^(key_conv|conv_key)\.": "k_proj.",
    r"^(value_conv|conv_value)\.": "v_proj.",
    r"^scale$": "gamma",
}


def _arguments(config: Config) -> dict[str, Any]:
    return {"dim": config["in_dim"]}


def _compact_arguments(config: Config) -> dict[str, Any]:
    """Theirs is handed its centres, so ours is the ordinary layer with that map as a context."""
    return {"dim": config["in_channels"], "inner": config["in_channels"] // 4}


def _weights(state: State) -> State:
    """Convolutions of width 1 are matrices."""
    return {name: t.flatten(1) if t.ndim == 4 else t for name, t in renamed(state, _LAYERS).items()}


def _call(module: nn.Module, inputs: Inputs, call: Call) -> Outputs:
    return {"out": module(bind(inputs, call, "x")["x"])}


def _compact_call(module: PositionAttention, inputs: Inputs, call: Call) -> Outputs:
    """Their centres are (B, K, C)."""
    named = bind(inputs, call, "x", "y")
    return {"out": module(named["x"], named["y"].mT[..., None])}


class Mixing(nn.Module):
    """x + gamma times what its channels see of those of another map."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x (B, C, H, W), y (B, K, H, W)."""
        return torch.addcmul(x, self.gamma, channel_attention(x, y))


def _nothing(config: Config) -> dict[str, Any]:
    return {}


def _mixing_call(module: Mixing, inputs: Inputs, call: Call) -> Outputs:
    named = bind(inputs, call, "x", "y")
    return {"out": module(named["x"], named["y"])}


def _centres_arguments(config: Config) -> dict[str, Any]:
    return {"dim": config["in_channels"]}


def _centres_weights(state: State) -> State:
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        grid, part, rest = name.split(".")
        path = f"grids.{int(grid.removeprefix('conv')) - 1}"
        found[f"{path}.{('linear', 'norm')[int(part)]}.{rest}"] = tensor.flatten(1) if tensor.ndim == 4 else tensor
    return found


def _centres_call(module: Centres, inputs: Inputs, call: Call) -> Outputs:
    """Theirs are (B, C, K)."""
    return {"out": module(bind(inputs, call, "x")["x"]).mT}


_NN = "junfu1115/DANet:encoding/nn"
IMPORTERS = {
    f"{_NN}/da_att.py:PAM_Module": Importer(PositionAttention, _arguments, _call, _weights),
    f"{_NN}/da_att.py:CAM_Module": Importer(ChannelAttention, _arguments, _call, _weights),
    f"{_NN}/dran_att.py:CPAMEnc": Importer(Centres, _centres_arguments, _centres_call, _centres_weights),
    f"{_NN}/dran_att.py:CPAMDec": Importer(PositionAttention, _compact_arguments, _compact_call, _weights),
    f"{_NN}/dran_att.py:CCAMDec": Importer(Mixing, _nothing, _mixing_call, _weights),
}
