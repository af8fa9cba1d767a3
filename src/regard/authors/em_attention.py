"""XiaLiPKU/EMANet: the unit, and the moving average of its bases, which stands in their training loop."""

from typing import Any

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind
from regard.mechanisms.lowrank.em_attention import EMAttention

_NAMES = {"mu": "bases", "conv1.": "in_proj.", "conv2.0.": "out_proj.", "conv2.1.": "norm."}


def _arguments(config: Config) -> dict[str, Any]:
    return {"dim": config["c"], "num_bases": config["k"], "stages": config.get("stage_num", 3), "grad": "none"}


def _weights(state: State) -> State:
    """Convolutions of width 1 are matrices, and the bases of one map those of all."""
    found: State = {}
    for name, tensor in state.items():
        prefix = next(prefix for prefix in _NAMES if name.startswith(prefix))
        ours = _NAMES[prefix] + name.removeprefix(prefix)
        found[ours] = tensor.flatten(1) if tensor.ndim == 4 else tensor.squeeze(0) if ours == "bases" else tensor
    return found


def _call(module: EMAttention, inputs: Inputs, call: Call) -> Outputs:
    x = bind(inputs, call, "x")["x"]
    _, bases = module.rebuild(x.flatten(2))
    average = module.bases.lerp(bases.mean(0), 1 - module.decay)
    return {"out": module(x), "mu": bases, "mu_after_moving_average": average[None]}


IMPORTERS = {"XiaLiPKU/EMANet:network.py:EMAU": Importer(EMAttention, _arguments, _call, _weights)}
