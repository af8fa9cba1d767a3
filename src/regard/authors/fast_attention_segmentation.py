"""feinanshan/FANet: one stage of the network, whose attention does not divide by the number of pixels."""

from typing import Any

from torch import Tensor

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, renamed
from regard.mechanisms.linear.fast_attention_segmentation import FastAttentionFusion
from regard.registry import UnsupportedError

_RULES = {
    r"^w_([qkv])s\.conv\.": r"attention.\1_proj.",
    r"^w_([qkv])s\.bn\.": r"attention.\1_norm.",
    r"^latlayer3\.conv\.": "attention.out_proj.",
    r"^latlayer3\.bn\.": "attention.out_norm.",
    r"^(up|smooth)\.conv\.": r"\1_conv.",
    r"^(up|smooth)\.bn\.": r"\1_norm.",
}


def _arguments(config: Config) -> dict[str, Any]:
    if config.get("norm_layer", "given") is None:
        raise UnsupportedError("norm_layer=None leaves out norms and activations: their networks always have them")
    return {
        "dim": config["in_chan"],
        "dim_out": config.get("out_chan", 128),
        "up_padding": 1,
        "normalise": False,
    }


def _weights(state: State) -> State:
    """Convolutions of width 1 in the attention are matrices."""
    return {
        name: tensor.flatten(1) if name.startswith("attention.") and tensor.ndim == 4 else tensor
        for name, tensor in renamed(state, _RULES).items()
    }


def _call(module: FastAttentionFusion, inputs: Inputs, call: Call) -> Outputs:
    """Both maps or the one that the flags ask for."""
    given = dict(zip(("feat", "up_fea_in", "up_flag", "smf_flag"), call.get("args", ()), strict=False))
    given |= {**call, **call.get("kwargs", {})}
    flags = {name: given.get(name, True) for name in ("up_flag", "smf_flag")}
    if not any(flags.values()):
        raise UnsupportedError("up_flag and smf_flag are both false: their module then returns nothing")
    smooth, up = module(_input(inputs, given, "feat"), _input(inputs, given, "up_fea_in"))
    if not flags["smf_flag"]:
        return {"out": up}
    return {"out": smooth, "up_feat": up} if flags["up_flag"] else {"out": smooth}


def _input(inputs: Inputs, given: Call, name: str) -> Tensor | None:
    """The input of this name, or of the one that the call gives for it."""
    place = given.get(name, name)
    return inputs.get(place if place in inputs else name)


_IMPORTER = Importer(FastAttentionFusion, _arguments, _call, _weights)
IMPORTERS = {
    "feinanshan/FANet:*:FastAttModule": _IMPORTER,
    "feinanshan/FANet:*:LAFeatureFusionModule": _IMPORTER,
}
