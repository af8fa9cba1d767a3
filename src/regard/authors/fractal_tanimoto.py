"""Fractal Tanimoto attention and its residual unit from feevos/ceecnet, written in MXNet.

Gluon's names are counted within a block: ``conv2dnormed0`` to 2 are query, key and value, each a ``conv0`` and a norm;
blocks around it only add prefixes. It learns the number of input channels from what it sees first, we from the weights.
"""

import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind
from regard.mechanisms.gates.fractal_tanimoto import FractalTanimoto, FractalUnit
from regard.ops.batch_norm import MapBatchNorm
from regard.registry import UnsupportedError

_NORMS = {"BatchNorm": "batch", "GroupNorm": "group", "InstanceNorm": "instance", "LayerNorm": "layer"}
_NORM = r"(?:batch|group|instance|layer)norm"
_TAILS = {"gamma": "weight", "beta": "bias", "running_mean": "running_mean", "running_var": "running_var"}
_ATTENTION = {
    r"conv2dnormed0_": "query.",
    r"conv2dnormed1_": "key.",
    r"conv2dnormed2_": "value.",
    r"conv0_weight$": "conv.weight",
    rf"{_NORM}0_": "norm.",
}
_BLOCK = {
    r"conv0_weight$": "conv1.weight",
    r"conv1_(weight|bias)$": r"conv2.\1",
    rf"{_NORM}0_": "norm1.",
    rf"{_NORM}1_": "norm2.",
}


class ThreeMaps(FractalTanimoto):
    """Our layer for maps whose width is not known before the weights are.

    Args:
        options: those of :class:`FractalTanimoto` but ``dim``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(dim=options["num_heads"], **options)
        self.options = options

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Take on the width of the weights, then the weights."""
        widths = {
            name: state_dict[f"{name}.conv.weight"].shape[1] * self.num_heads for name in ("query", "key", "value")
        }
        if len(set(widths.values())) > 1:
            raise UnsupportedError(f"maps of different widths, {widths}: ours all have the same")
        weight = state_dict["query.conv.weight"]
        FractalTanimoto.__init__(self, widths["query"], **self.options, device=weight.device, dtype=weight.dtype)
        return super().load_state_dict(state_dict, *args, **kwargs)


class _RunningNorm(torch.autograd.Function):
    """A batch norm by its running statistics, whose gradient takes them for those of the batch."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float
    ) -> Tensor:
        shape = (-1, 1, 1)
        scale = torch.rsqrt(variance + eps).view(shape)
        standard = (x - mean.view(shape)) * scale
        ctx.save_for_backward(standard, weight, scale)
        return torch.addcmul(bias.view(shape), standard, weight.view(shape))

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        standard, weight, scale = ctx.saved_tensors
        (slope,) = slopes
        axes = (0, 2, 3)
        of_weight, of_bias = (slope * standard).sum(axes), slope.sum(axes)
        count = slope[:, 0].numel()
        centred = slope - (of_bias.view(-1, 1, 1) + standard * of_weight.view(-1, 1, 1)) / count
        return centred * weight.view(-1, 1, 1) * scale, of_weight, of_bias, None, None, None


@contextmanager
def _gradients_of_mxnet(module: nn.Module) -> Generator[None, None, None]:
    """As MXNet goes backwards after a prediction: as in training unless told not to, which its batch norms tell apart.

    Numbers were recorded that way; the module itself, and what a user makes of it, stay as they are.
    """

    def again(norm: MapBatchNorm, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if norm.training or norm.running_mean is None or norm.running_var is None:
            return output
        return _RunningNorm.apply(inputs[0], norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)

    norms = [part for part in module.modules() if isinstance(part, MapBatchNorm)]
    hooks = [norm.register_forward_hook(again) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _norm(config: Config, word: str) -> dict[str, Any]:
    """Their norm in our words; the default was batch normalisation when the paper's weights were made."""
    name = config.get(word, "BatchNorm")
    if name not in _NORMS:
        raise UnsupportedError(f"{word}={name!r}: ours are {', '.join(_NORMS)}")
    return {"norm": _NORMS[name], "norm_groups": config.get("norm_groups") if name == "GroupNorm" else None}


def _square(size: Any, what: str) -> int:
    """One number for both axes."""
    sides = set(size) if isinstance(size, (list, tuple)) else {size}
    if len(sides) > 1:
        raise UnsupportedError(f"{what}={size}: ours has one number for both axes")
    return sides.pop()


def _attention_arguments(config: Config) -> dict[str, Any]:
    kernel, padding = _square(config.get("kernel_size", 3), "kernel_size"), _square(config.get("padding", 1), "padding")
    if kernel != 2 * padding + 1:
        raise UnsupportedError(
            f"kernel_size={kernel} with padding={padding} changes the size of the map: ours keeps it"
        )
    return {
        "dim_out": config["nkeys"],
        "num_heads": config.get("nheads", 1),
        "kernel_size": kernel,
        "depth": config.get("ftdepth", 5),
        "relative": True,
        **_norm(config, "norm"),
    }


def _named(state: State, rules: dict[str, str], prefix: str = "") -> State:
    """What the rules know, without what stands before it."""
    found: dict[str, Tensor] = {}
    width = next(tensor.shape[0] for tensor in state.values() if tensor.ndim == 4)
    for name, tensor in state.items():
        start = re.search(rf"(conv2dnormed\d_)?(conv\d|{_NORM}\d)_\w+$", name)
        ours = name[start.start() :] if start else name
        for pattern, replacement in rules.items():
            ours = re.sub(pattern, replacement, ours)
        for theirs, tail in _TAILS.items():
            ours = re.sub(rf"\.{theirs}$", f".{tail}", ours)
        if tensor.ndim == 1 and tensor.numel() < width:  # a group norm of gluon may have one number for each group
            tensor = tensor.repeat_interleave(width // tensor.numel())
        found[prefix + ours] = tensor
    return found


def _attention_weights(state: State) -> State:
    return _named(state, _ATTENTION)


def _attention_call(module: ThreeMaps, inputs: Inputs, call: Call) -> Outputs:
    """Of three maps, or of one that is all three."""
    named = {**call, "args": call.get("args", call.get("inputs", ()))}
    maps = bind(inputs, named, "input1", "input2", "input3")
    if not maps:
        maps = bind(inputs, named, "input")
    first = next(iter(maps.values()))
    with _gradients_of_mxnet(module):
        y, _ = module.compare(first, maps.get("input2", first), maps.get("input3", first))
    return {"out": y}


def _unit_arguments(config: Config) -> dict[str, Any]:
    kernel = _square(config.get("kernel_size", 3), "kernel_size")
    if kernel != 3:
        raise UnsupportedError(f"kernel_size={kernel}: their attention pads by 1, so only 3 keeps the size of the map")
    return {
        "dim": config["nfilters"],
        "num_heads": config.get("nheads", 1),
        "groups": config.get("ngroups", 1),
        "dilation": _square(config.get("dilation_rate", 1), "dilation_rate"),
        "depth": config.get("ftdepth", 5),
        **_norm(config, "norm_type"),
    }


def _unit_weights(state: State) -> State:
    if any(name.endswith("gamma1") for name in state):
        raise UnsupportedError("a unit with two attentions (gamma1 and gamma2) is not the paper's, which has one")
    parts: dict[str, dict[str, Tensor]] = {"attention": {}, "block": {}, "gamma": {}}
    for name, tensor in state.items():
        kind = "attention" if "ftattention2d" in name else "block" if re.search(r"conv|norm", name) else "gamma"
        parts[kind][name] = tensor
    (gamma,) = parts["gamma"].values()
    return {
        **_named(parts["attention"], _ATTENTION, "attention."),
        **_named(parts["block"], _BLOCK),
        "gamma": gamma,
    }


def _unit_call(module: FractalUnit, inputs: Inputs, call: Call) -> Outputs:
    named = {**call, "args": call.get("args", call.get("inputs", ()))}
    with _gradients_of_mxnet(module):
        return {"out": module(bind(inputs, named, "input").get("input", next(iter(inputs.values()))))}


_LAYERS = "feevos/ceecnet:*"
IMPORTERS = {
    f"{_LAYERS}:RelFTAttention2D": Importer(ThreeMaps, _attention_arguments, _attention_call, _attention_weights),
    f"{_LAYERS}:FTAttention2D": Importer(ThreeMaps, _attention_arguments, _attention_call, _attention_weights),
    f"{_LAYERS}:FracTALResNet_unit": Importer(FractalUnit, _unit_arguments, _unit_call, _unit_weights),
}
