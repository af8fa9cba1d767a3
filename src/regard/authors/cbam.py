"""The authors' CBAM and BAM (Jongchan/attention-module), and squeeze-and-excitation by its paper."""

from typing import Any

from torch import Tensor

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.map_layers import MapLayer
from regard.mechanisms.gates.bam import BAM
from regard.mechanisms.gates.cbam import CBAM, SqueezeExcitation
from regard.registry import UnsupportedError


def _check_width(dim: int, reduction: int) -> None:
    if dim < reduction:
        raise UnsupportedError(
            f"{dim} channels reduced {reduction} times leave their MLP none; ours keeps one at least"
        )


def _cbam_arguments(config: Config) -> dict[str, Any]:
    dim, reduction = config["gate_channels"], config.get("reduction_ratio", 16)
    _check_width(dim, reduction)
    return {
        "dim": dim,
        "reduction": reduction,
        "pools": tuple(config.get("pool_types", ("avg", "max"))),
        "gates": ("channel",) if config.get("no_spatial") else ("channel", "spatial"),
    }


_CBAM_RULES = {
    r"^ChannelGate\.mlp\.1\.": "channel.first.",
    r"^ChannelGate\.mlp\.3\.": "channel.second.",
    r"^SpatialGate\.spatial\.conv\.": "spatial.conv.",
    r"^SpatialGate\.spatial\.bn\.": "spatial.norm.",
}


def _cbam_call(module: CBAM, inputs: Inputs, call: Call) -> Outputs:
    x = bind(inputs, call, "x")["x"]
    y, told = module(x, return_aux=True)
    return {"out": y, "after_channel": x * told["map/channel"][:, :, None, None]}


def _bam_arguments(config: Config) -> dict[str, Any]:
    _check_width(config["gate_channel"], 16)
    return {"dim": config["gate_channel"], "combine": "product", "last_norm": False}


_BAM_RULES = {
    r"^channel_att\.gate_c\.gate_c_fc_0\.": "channel.first.",
    r"^channel_att\.gate_c\.gate_c_bn_1\.": "channel.norm.",
    r"^channel_att\.gate_c\.gate_c_fc_final\.": "channel.second.",
    r"^spatial_att\.gate_s\.gate_s_conv_reduce0\.": "spatial.reduce.",
    r"^spatial_att\.gate_s\.gate_s_bn_reduce0\.": "spatial.norm.",
    r"^spatial_att\.gate_s\.gate_s_conv_di_(\d+)\.": r"spatial.convs.\1.",
    r"^spatial_att\.gate_s\.gate_s_bn_di_(\d+)\.": r"spatial.norms.\1.",
    r"^spatial_att\.gate_s\.gate_s_conv_final\.": "spatial.last.",
}


def _bam_weights(state: State) -> State:
    found: dict[str, Tensor] = dict(renamed(state, _BAM_RULES))
    found["spatial.reduce.weight"] = found["spatial.reduce.weight"].flatten(1)
    return found


def _se_arguments(config: Config) -> dict[str, Any]:
    dim, reduction = config["channels"], config.get("reduction", 16)
    _check_width(dim, reduction)
    return {"dim": dim, "reduction": reduction}


def _se_weights(state: State) -> State:
    """Fully connected layers, or convolutions of one pixel as in Caffe."""
    named = renamed(state, {r"^fc1\.": "channel.first.", r"^fc2\.": "channel.second."})
    return {name: tensor.flatten(1) if tensor.ndim == 4 else tensor for name, tensor in named.items()}


def _call(module: MapLayer, inputs: Inputs, call: Call) -> Outputs:
    return {"out": module(bind(inputs, call, "x")["x"])}


_FILES = "Jongchan/attention-module:*"
IMPORTERS = {
    f"{_FILES}:CBAM": Importer(CBAM, _cbam_arguments, _cbam_call, lambda state: renamed(state, _CBAM_RULES)),
    f"{_FILES}:BAM": Importer(BAM, _bam_arguments, _call, _bam_weights),
    "equations": Importer(SqueezeExcitation, _se_arguments, _call, _se_weights),
}
