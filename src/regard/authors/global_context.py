"""xvjiarui/GCNet, and mmcv's copy: the context block."""

from typing import Any

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind
from regard.mechanisms.gates.global_context import GlobalContext

_PARTS = {"0": "inner", "1": "norm", "3": "outer"}


def _arguments(config: Config) -> dict[str, Any]:
    return {
        "dim": config.get("inplanes", config.get("in_channels")),
        "ratio": config["ratio"],
        "pooling": config.get("pooling_type", "att"),
        "fusions": [fusion.removeprefix("channel_") for fusion in config.get("fusion_types", ("channel_add",))],
    }


def _weights(state: State) -> State:
    """Convolutions of width 1 are matrices, and their norms have two sides of 1."""
    found: State = {}
    for name, tensor in state.items():
        path, part = name.rsplit(".", 1)
        if path.startswith("channel_"):
            fusion, number = path.removeprefix("channel_").split("_conv.")
            path = f"{fusion}.{_PARTS[number]}"
        else:
            path = "scores"
        rows = 1 if part == "bias" or path.endswith("norm") else 2
        found[f"{path}.{part}"] = tensor.flatten(rows - 1) if tensor.ndim > rows else tensor
    return found


def _call(module: GlobalContext, inputs: Inputs, call: Call) -> Outputs:
    return {"out": module(bind(inputs, call, "x")["x"])}


_IMPORTER = Importer(GlobalContext, _arguments, _call, _weights)
IMPORTERS = {
    "xvjiarui/GCNet:mmdet/ops/gcb/context_block.py:ContextBlock": _IMPORTER,
    "open-mmlab/mmcv:*:ContextBlock": _IMPORTER,
}
