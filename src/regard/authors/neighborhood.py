"""Neighborhood attention: NATTEN's modules, those of releases up to 0.17 with a relative bias, and its functions."""

from typing import Any

from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind
from regard.mechanisms.patterned.neighborhood import Neighborhood, neighborhood_attention
from regard.registry import UnsupportedError

_TUNING = ("backend", "_tile_s", "backward_", "run_persistent_kernel", "kernel_schedule", "torch_compile")
"""How NATTEN's options are called that change its speed only."""


def _window(config: Config) -> dict[str, Any]:
    """Their None is the default; axes may be given one by one."""
    options = {"stride": config.get("stride") or 1, "dilation": config.get("dilation") or 1}
    options |= {"kernel": config["kernel_size"], "causal": config.get("is_causal") or False}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


def _module_arguments(config: Config, axes: int) -> dict[str, Any]:
    """Up to 0.17 the width was called dim; the relative bias was an option, before 0.15 called bias and on."""
    legacy = "dim" in config
    return {
        **_window(config),
        "num_axes": config.get("na_dim", axes),
        "dim": config["dim"] if legacy else config["embed_dim"],
        "num_heads": config["num_heads"],
        "relative_bias": legacy and bool(config.get("rel_pos_bias", config.get("bias", False))),
        "qkv_bias": config.get("qkv_bias", True),
        "scale": config.get("qk_scale") or None,
        "attn_drop": config.get("attn_drop", 0.0),
        "proj_drop": config.get("proj_drop", 0.0),
    }


def _module_weights(state: State) -> State:
    """Theirs for queries, keys and values is one matrix, in this order."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        kind = name.rpartition(".")[2]
        if name.startswith("qkv."):
            found |= {f"{part}_proj.{kind}": t for part, t in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            found["bias" if name == "rpb" else f"out_proj.{kind}"] = tensor
    return found


def _module_call(module: Neighborhood, inputs: Inputs, call: Call) -> Outputs:
    """With the features last."""
    x = bind(inputs, call, "x")["x"]
    _check_sides(module.kernel, module.dilation, tuple(x.shape[1:-1]))
    return {"out": module(x.movedim(-1, 1)).movedim(1, -1)}


class Function(nn.Module):
    """NATTEN's functions of queries, keys and values, heads last.

    Args:
        options: those of :func:`neighborhood_attention`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, extra: tuple[Tensor, Tensor] | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(B, *grid, H, Dv), and the log of each pixel's sum of exponentials, (B, *grid, H)."""
        axes = q.ndim - 3
        each = {
            name: (value,) * axes if isinstance(value, int) else value
            for name, value in self.options.items()
            if name in ("kernel", "dilation")
        }
        _check_sides(each["kernel"], each["dilation"], tuple(q.shape[1:-2]))
        q, k, v = (t.movedim(-2, 1) for t in (q, k, v))
        if extra is not None:
            extra = (extra[0].movedim(-2, 1), extra[1].movedim(-2, 1))
        out, lse = neighborhood_attention(q, k, v, **self.options, extra=extra, bias=bias)
        return out.movedim(1, -2), lse.movedim(1, -1)


def _function_arguments(config: Config) -> dict[str, Any]:
    known = ("kernel_size", "stride", "dilation", "is_causal", "scale", "heads", "heads_kv", "num_additional")
    for name, value in config.items():
        tuning = any(part in name for part in _TUNING) or name in ("attention_kwargs", "return_lse", "na_dim")
        if name not in known and not tuning:
            raise UnsupportedError(f"na1d to na3d have no option {name}={value!r} that we know")
    return {**_window(config), "scale": config.get("scale") or None}


def _function_call(module: Function, inputs: Inputs, call: Call) -> Outputs:
    """Releases up to 0.17 took a relative bias, without strides and additional keys."""
    names = ("query", "key", "value", "additional_keys", "additional_values", "rpb")
    given = {name: inputs[name] for name in names if name in inputs}
    extra = None
    if "additional_keys" in given:
        extra = (given["additional_keys"], given["additional_values"])
    out, lse = module(given["query"], given["key"], given["value"], extra, given.get("rpb"))
    return {"out": out, "lse": lse}


def _check_sides(kernel: tuple[int, ...], dilation: tuple[int, ...], sides: tuple[int, ...]) -> None:
    """Refuse maps smaller than the window, which NATTEN refuses, or up to 0.14 pads with zeros: we cut the window."""
    if any(k * d > side for k, d, side in zip(kernel, dilation, sides, strict=True)):
        raise UnsupportedError(f"a map of {sides} is smaller than kernel {kernel} x dilation {dilation}")


def _module(axes: int) -> Importer:
    def arguments(config: Config) -> dict[str, Any]:
        return _module_arguments(config, axes)

    return Importer(Neighborhood, arguments, _module_call, _module_weights)


_NATTEN = "SHI-Labs/NATTEN:*:"
IMPORTERS = {f"{_NATTEN}NeighborhoodAttention{axes}D": _module(axes) for axes in (1, 2, 3)}
IMPORTERS[f"{_NATTEN}NeighborhoodAttentionGeneric"] = _module(2)
for _name in ("na1d", "na2d", "na3d", "neighborhood_attention_generic"):
    IMPORTERS[f"{_NATTEN}{_name}"] = Importer(Function, _function_arguments, _function_call)
