"""Modules of haiku: their configurations name no widths, their parameters are "path//name" and matrices are (in, out).

What the importers of their sources share.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from regard.authors import State

__all__ = ["linear", "made_for_weights", "named", "norm", "of_module", "projection_in", "projection_out", "within"]


def made_for_weights(make: Callable[[State], nn.Module]) -> nn.Module:
    """A module that does not exist before its weights do: loading a state dict makes it.

    Args:
        make: the module, from a state dict under our names.

    Example:
        >>> module = made_for_weights(lambda state: nn.Linear(*state["weight"].T.shape))
        >>> _ = module.load_state_dict(nn.Linear(3, 2).state_dict())
        >>> module
        Linear(in_features=3, out_features=2, bias=True)
    """
    module = nn.Module()

    def become(module: nn.Module, state: State, *_: Any) -> None:
        made = make(state).to(next(iter(state.values())))
        module.__class__ = type(made)
        vars(module).clear()
        vars(module).update(vars(made))

    module.register_load_state_dict_pre_hook(become)
    return module


def of_module(state: State) -> State:
    """Parameters by their path within the outermost module, whatever that is called and wherever it stands.

    Example:
        >>> import torch
        >>> list(of_module({"evoformer/left//w": torch.zeros(1), "evoformer//b": torch.zeros(1)}))
        ['left//w', '//b']
    """
    paths = {name: name.split("//")[0].split("/") for name in state}
    first, shared = next(iter(paths.values())), 0
    while all(path[shared : shared + 1] == first[shared : shared + 1] != [] for path in paths.values()):
        shared += 1
    return {"/".join(path[shared:]) + "//" + name.split("//")[1]: state[name] for name, path in paths.items()}


def within(state: State, path: str) -> State:
    """The parameters of a part, by their path within it.

    Example:
        >>> import torch
        >>> list(within({"left/norm//w": torch.zeros(1), "left//b": torch.zeros(1), "//c": torch.zeros(1)}, "left"))
        ['norm//w', '//b']
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        module, parameter = name.split("//")
        if module == path or module.startswith(f"{path}/"):
            found[f"{module.removeprefix(path).removeprefix('/')}//{parameter}"] = tensor
    return found


def linear(state: State, path: str) -> dict[str, Tensor]:
    """A linear map as "weight" and, if it has one, "bias"."""
    found = {"weight": state[f"{path}//weights"].mT}
    return found | ({"bias": state[f"{path}//bias"]} if f"{path}//bias" in state else {})


def norm(state: State, path: str) -> dict[str, Tensor]:
    """A layer norm as "weight" and "bias"."""
    return {"weight": state[f"{path}//scale"], "bias": state[f"{path}//offset"]}


def projection_in(tensor: Tensor) -> Tensor:
    """(in, head, width) as (head width, in)."""
    return tensor.flatten(1).mT


def projection_out(tensor: Tensor) -> Tensor:
    """(head, width, out) as (out, head width)."""
    return tensor.flatten(0, 1).mT


def named(parts: Mapping[str, State]) -> State:
    """Parameters of parts as "part.name".

    Example:
        >>> import torch
        >>> list(named({"norm": {"weight": torch.zeros(1)}, "": {"bias": torch.zeros(1)}}))
        ['norm.weight', 'bias']
    """
    return {f"{part}.{name}" if part else name: t for part, state in parts.items() for name, t in state.items()}
