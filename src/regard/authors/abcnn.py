"""ABCNN by galsang, the best known code: equal to the paper's equations, with padding as words of zeros."""

import re
from typing import Any

from torch import Tensor

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind
from regard.mechanisms.pairs.abcnn import ABCNNLayer, to_front
from regard.models.abcnn import ABCNN
from regard.registry import UnsupportedError

_KINDS = {"BCNN": "none", "ABCNN1": "input", "ABCNN2": "pooling", "ABCNN3": "both"}


def _arguments(config: Config) -> dict[str, Any]:
    """Their network has one layer or two, whatever larger number is asked for."""
    kind = config["model_type"]
    if kind not in _KINDS:
        raise UnsupportedError(f"model_type={kind!r} is none of {', '.join(_KINDS)}")
    return {
        "dim": config.get("d0", 300),
        "num_classes": config.get("num_classes", 2),
        "filters": config.get("di", 50),
        "width": config["w"],
        "depth": 2 if config.get("num_layers", 2) > 1 else 1,
        "max_length": config["s"],
        "attention": _KINDS[kind],
        "num_features": config["num_features"],
    }


def _weights(state: State) -> State:
    """Their filters are (height, width, channels, filters), their tables (s, d), their matrices on the right."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if match := re.fullmatch(r"CNN-(\d+)/(aW|conv/weights|conv/biases)", name):
            layer, part = f"layers.{int(match[1]) - 1}", match[2]
            if part == "aW":
                found[f"{layer}.tables"] = tensor.mT[None]
            elif part == "conv/weights":
                found[f"{layer}.weight"] = tensor.permute(3, 2, 0, 1).flatten(1, 2)
            else:
                found[f"{layer}.bias"] = tensor
        elif name.endswith("FC/weights"):
            found["output.weight"] = tensor.mT
        elif name.endswith("FC/biases"):
            found["output.bias"] = tensor
        else:
            raise UnsupportedError(f"{name} is no part of ABCNN.py")
    return found


def _call(model: ABCNN, inputs: Inputs, call: Call) -> Outputs:
    """Words are columns there; what stands behind the pooling comes along, in their layout."""
    bound = bind(inputs, call, "x1", "x2", "features")
    x, context = bound["x1"].mT, bound["x2"].mT
    features = bound.get("features") if model.num_features else None
    found = {"out": model(x, context, features), "similarities": model.similarities(x, context)}
    first, second = to_front(x, None), to_front(context, None)
    for number, layer in enumerate(model.layers, 1):
        assert isinstance(layer, ABCNNLayer)
        first, second, *_ = layer.convolve(first, second)
        found |= {f"layer{number}_w_left": first.x.mT, f"layer{number}_w_right": second.x.mT}
    return found


IMPORTERS = {"galsang/ABCNN:ABCNN.py:ABCNN": Importer(ABCNN, _arguments, _call, _weights)}
