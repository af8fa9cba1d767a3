"""lucidrains/lambda-networks: the layer in its local and its global form."""

from typing import Any

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind
from regard.mechanisms.lowrank.lambda_networks import LambdaNetworks

_NAMES = {
    "norm_q.": "q_norm.",
    "norm_v.": "v_norm.",
    "to_q.": "q_proj.",
    "to_k.": "k_proj.",
    "to_v.": "v_proj.",
}


def _arguments(config: Config) -> dict[str, Any]:
    local, side = config.get("r"), config.get("n")
    return {
        "dim": config["dim"],
        "num_heads": config.get("heads", 4),
        "head_dim": config["dim_k"],
        "kernel": local,
        "grid": (side, side) if local is None else None,
        "intra_depth": config.get("dim_u", 1),
        "dim_out": config.get("dim_out"),
        "bias": local is not None,
    }


def _weights(state: State) -> State:
    """Their convolutions of width 1 are matrices; their tables have the values as a further axis, or offsets first."""
    found: State = {}
    for name, tensor in state.items():
        if name == "pos_conv.weight":
            found["table"] = tensor.squeeze(2)
        elif name == "pos_conv.bias":
            found["bias"] = tensor
        elif name == "rel_pos_emb":
            found["table"] = tensor.permute(2, 3, 0, 1)
        else:
            prefix = name[: name.index(".") + 1]
            ours = _NAMES[prefix] + name.removeprefix(prefix)
            found[ours] = tensor.flatten(1) if prefix.startswith("to_") else tensor
    return found


def _call(module: LambdaNetworks, inputs: Inputs, call: Call) -> Outputs:
    return {"out": module(bind(inputs, call, "x")["x"])}


IMPORTERS = {
    "lucidrains/lambda-networks:*:LambdaLayer": Importer(LambdaNetworks, _arguments, _call, _weights),
}
