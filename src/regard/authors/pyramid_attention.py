"""The two versions of pyramid attention in use: JaveyWang's, and the decoder of segmentation_models.pytorch."""

from typing import Any

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.mechanisms.gates.pyramid_attention import GlobalAttentionUpsample, PyramidAttention
from regard.registry import UnsupportedError

# JaveyWang


def _fpa_arguments(config: Config) -> dict[str, Any]:
    dim = config.get("channels", 2048)
    if dim < 4:
        raise UnsupportedError(f"channels={dim} leave the pyramid a quarter of less than one channel")
    return {"dim": dim, "style": "strided"}


_FPA_RULES = {
    r"^conv_master\.": "main.conv.",
    r"^bn_master\.": "main.norm.",
    r"^conv_gpb\.": "whole.conv.",
    r"^bn_gpb\.": "whole.norm.",
    r"^conv_upsample_(\d)\.": r"ups.\1.conv.",
    r"^bn_upsample_(\d)\.": r"ups.\1.norm.",
    r"^conv7x7_": "conv1_",
    r"^conv5x5_": "conv2_",
    r"^conv3x3_": "conv3_",
    r"^conv(\d)_1\.": r"downs.\1.conv.",
    r"^conv(\d)_2\.": r"levels.\1.conv.",
    r"^bn(\d)_1\.": r"downs.\1.norm.",
    r"^bn(\d)_2\.": r"levels.\1.norm.",
    r"^(ups|downs|levels)\.1\.": r"\1.0.",
    r"^(ups|downs|levels)\.2\.": r"\1.1.",
    r"^(ups|downs|levels)\.3\.": r"\1.2.",
}


def _gau_arguments(config: Config) -> dict[str, Any]:
    dims = {"low_dim": config["channels_low"], "high_dim": config["channels_high"]}
    return {**dims, "style": "strided", "same_size": not config.get("upsample", True)}


_GAU_RULES = {
    r"^conv3x3\.": "low.conv.",
    r"^bn_low\.": "low.norm.",
    r"^conv1x1\.": "gate.conv.",
    r"^bn_high\.": "gate.norm.",
    r"^conv_(upsample|reduction)\.": "up.conv.",
    r"^bn_(upsample|reduction)\.": "up.norm.",
}


def _gau_call(module: GlobalAttentionUpsample, inputs: Inputs, call: Call) -> Outputs:
    """Theirs takes the high-level features first; the fixtures call them high and low."""
    bound = bind(inputs, call, "fms_high", "fms_low")
    return {"out": module(bound.get("fms_low", inputs.get("low")), bound.get("fms_high", inputs.get("high")))}


# segmentation_models.pytorch

_CONV = {r"\.bn\.": ".norm."}
_BLOCK_RULES = {
    r"^branch1\.1\.": "whole.",
    r"^mid\.0\.": "main.",
    r"^down1\.1\.": "downs.0.",
    r"^down2\.1\.": "downs.1.",
    r"^down3\.1\.": "downs.2.",
    r"^down3\.2\.": "levels.2.",
    r"^conv2\.": "levels.1.",
    r"^conv1\.": "levels.0.",
    **_CONV,
}


def _stretch(mode: str) -> str:
    if mode not in ("bilinear", "bicubic", "nearest"):
        raise UnsupportedError(f"upsampling by {mode!r}: ours is bilinear, bicubic or nearest")
    return mode


def _block_arguments(config: Config) -> dict[str, Any]:
    return {
        "dim": config["in_channels"],
        "dim_out": config["out_channels"],
        "style": "maxpool",
        "stretch": _stretch(config.get("upscale_mode", "bilinear")),
    }


def _upsample_arguments(config: Config) -> dict[str, Any]:
    return {
        "low_dim": config["in_channels"],
        "high_dim": config["out_channels"],
        "style": "maxpool",
        "stretch": _stretch(config.get("interpolation_mode", "bilinear")),
    }


_UPSAMPLE_RULES = {r"^conv1\.1\.": "gate.", r"^conv2\.": "low.", **_CONV}


def _upsample_call(module: GlobalAttentionUpsample, inputs: Inputs, call: Call) -> Outputs:
    """Theirs takes the low-level features first."""
    bound = bind(inputs, call, "x", "y")
    return {"out": module(bound.get("x", inputs.get("low")), bound.get("y", inputs.get("high")))}


def _call(module: PyramidAttention, inputs: Inputs, call: Call) -> Outputs:
    return {"out": module(bind(inputs, call, "x")["x"])}


def _importer(module: Any, arguments: Any, call: Any, rules: dict[str, str]) -> Importer:
    def weights(state: State) -> State:
        return renamed(state, rules)

    return Importer(module, arguments, call, weights)


_NETWORKS, _DECODER = "JaveyWang/Pyramid-Attention-Networks-pytorch:*", "qubvel*/segmentation_models.pytorch:*"
IMPORTERS = {
    f"{_NETWORKS}:FPA": _importer(PyramidAttention, _fpa_arguments, _call, _FPA_RULES),
    f"{_NETWORKS}:GAU": _importer(GlobalAttentionUpsample, _gau_arguments, _gau_call, _GAU_RULES),
    f"{_DECODER}:FPABlock": _importer(PyramidAttention, _block_arguments, _call, _BLOCK_RULES),
    f"{_DECODER}:GAUBlock": _importer(GlobalAttentionUpsample, _upsample_arguments, _upsample_call, _UPSAMPLE_RULES),
}
