"""CCNet's criss-cross block, applied as often as the case says, and its category-consistent loss from the equations."""

import re
from typing import Any

from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind
from regard.mechanisms.patterned.criss_cross import CategoryConsistency, CrissCross, category_consistent_loss
from regard.registry import UnsupportedError


def _block_arguments(config: Config) -> dict[str, Any]:
    if config["in_dim"] < 8:
        raise UnsupportedError(f"in_dim={config['in_dim']} leaves their queries no features: it takes 8 at least")
    return {"dim": config["in_dim"], "recurrence": config.get("recurrence", 1)}


def _block_weights(state: State) -> State:
    """Convolutions of width 1 are matrices; a network may have the block under a name of its own."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        name = name[name.rfind(".", 0, name.find("_conv")) + 1 :] if "_conv" in name else name.rpartition(".")[2]
        name = re.sub(r"^(q|k|v)\w+_conv", r"\1_proj", name)
        found[name] = tensor.flatten(1) if tensor.ndim > 1 else tensor
    return found


def _block_call(module: CrissCross, inputs: Inputs, call: Call) -> Outputs:
    return {"out": module(bind(inputs, call, "x")["x"])}


class Loss(nn.Module):
    """The loss as a module.

    Args:
        options: those of :func:`category_consistent_loss`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, features: Tensor, labels: Tensor) -> CategoryConsistency:
        """The loss and its parts."""
        return category_consistent_loss(features, labels, **self.options)


def _loss_arguments(config: Config) -> dict[str, Any]:
    if "delta_v" not in config:
        raise UnsupportedError("of the equations the category-consistent loss is known, which has a delta_v")
    weights = tuple(config.get(name, value) for name, value in (("alpha", 1.0), ("beta", 1.0), ("gamma", 0.001)))
    return {
        "near": config["delta_v"],
        "far": config["delta_d"],
        "weights": weights,
        "ignore_index": config.get("ignore_index", 255),
    }


def _loss_call(module: Loss, inputs: Inputs, call: Call) -> Outputs:
    """The loss once and twice, as it was recorded."""
    bound = bind(inputs, call, "h", "labels")
    total, variance, distance, regularity = module(bound["h"], bound["labels"])
    parts = {"l_var": variance, "l_dis": distance, "l_reg": regularity}
    return {"out": total * total.new_tensor([1.0, 2.0])} | {name: part[None] for name, part in parts.items()}


_CCNET = "speedinghzl/CCNet:cc_attention/functions.py:"
IMPORTERS = {
    f"{_CCNET}CrissCrossAttention": Importer(CrissCross, _block_arguments, _block_call, _block_weights),
    f"{_CCNET}PixelwiseAttention": Importer(CrissCross, _block_arguments, _block_call, _block_weights),
    "equations": Importer(Loss, _loss_arguments, _loss_call),
}
