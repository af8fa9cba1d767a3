"""The non-local block of AlexHex7/Non-local_pytorch, and of the authors' Caffe2 code as equations."""

import re
from typing import Any

import torch
from torch import Tensor

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.mechanisms.non_local import NonLocal
from regard.registry import UnsupportedError

_FORMS = ("embedded_gaussian", "gaussian", "dot_product", "concatenation")


class Block(NonLocal):
    """Our block, which remembers how many axes the weights of theirs have.

    Args:
        options: those of :class:`NonLocal`.
        num_axes: of the maps.
        eps: of the batch norm.
    """

    def __init__(self, *, num_axes: int | None = None, eps: float = 1e-5, **options: Any) -> None:
        super().__init__(**options)
        self.num_axes = num_axes
        if self.norm is not None:
            self.norm.eps = eps


def _port_arguments(config: Config) -> dict[str, Any]:
    return {
        "dim": config["in_channels"],
        "form": config.get("instantiation", "embedded_gaussian"),
        "inner": config.get("inter_channels"),
        "sub_sample": "after" if config.get("sub_sample", True) else None,
        "norm": config.get("bn_layer", True),
        "num_axes": config.get("dimension"),
    }


def _form_of_file(form: str) -> Any:
    """Each of their files holds one form, which a configuration need not name."""

    def arguments(config: Config) -> dict[str, Any]:
        return _port_arguments({"instantiation": form, **config})

    return arguments


_PORT_RULES = {
    r"^(g|phi)\.0\.": r"\1.",
    r"^W\.1\.": "norm.",
    r"^W\.(0\.)?": "out_proj.",
    r"^theta\.": "q_proj.",
    r"^phi\.": "k_proj.",
    r"^g\.": "v_proj.",
    r"^concat_project\.0\.weight$": "pair",
}


def _port_weights(state: State) -> State:
    return _matrices(renamed(state, _PORT_RULES))


def _matrices(state: State) -> State:
    """Convolutions of width 1 are matrices; w of the concatenation has a row for theta and one for phi."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "pair":
            tensor = tensor.flatten().unflatten(0, (2, -1))
        elif re.fullmatch(r"(\w_proj|out_proj)\.weight", name):
            tensor = tensor.flatten(1)
        found[name] = tensor
    return found


def _call(module: NonLocal, inputs: Inputs, call: Call) -> Outputs:
    """With the map of weights where keys are pixels."""
    x = bind(inputs, call, "x")["x"]
    outputs = {"out": module(x)}
    if module.weighs_values:
        pixels = torch.eye(x.shape[2:].numel(), device=x.device, dtype=x.dtype)
        outputs["map"] = module.weigh(x, pixels[None, None])[:, 0]
    return outputs


def _caffe2_arguments(config: Config) -> dict[str, Any]:
    """Of add_nonlocal and add_nonlocal_group."""
    for name, ours in (("max_pool_stride", 2), ("use_affine", False), ("no_bias", False)):
        if config.get(name, ours) != ours:
            raise UnsupportedError(f"{name}={config[name]!r}: only {ours!r} is known")
    if config.get("dim_out", config["dim_in"]) != config["dim_in"]:
        raise UnsupportedError(f"dim_out={config['dim_out']} is not dim_in={config['dim_in']}, so x cannot be added")
    softmax = config.get("use_softmax", True)
    return {
        "dim": config["dim_in"],
        "inner": config["dim_inner"],
        "form": "embedded_gaussian" if softmax else "dot_product",
        "sub_sample": "before" if config.get("use_maxpool", True) else None,
        "scale": softmax and config.get("use_scale", True),
        "norm": config.get("use_bn", True),
        "group_size": config.get("group_size"),
        "eps": config.get("bn_eps", 1e-5),
    }


_CAFFE2_RULES = {
    r"^theta\.": "q_proj.",
    r"^phi\.": "k_proj.",
    r"^g\.": "v_proj.",
    r"^out\.": "out_proj.",
    r"^bn\.": "norm.",
}


def _caffe2_weights(state: State) -> State:
    return _matrices(renamed(state, _CAFFE2_RULES))


IMPORTERS = {
    f"AlexHex7/Non-local_pytorch:*non_local_{form}.py:*LocalBlock?D": Importer(
        Block, _form_of_file(form), _call, _port_weights
    )
    for form in _FORMS
} | {"equations": Importer(Block, _caffe2_arguments, _call, _caffe2_weights)}
