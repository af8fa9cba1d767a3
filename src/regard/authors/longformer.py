"""Longformer's self-attention: allenai/longformer, its kernels alone, and the port in transformers."""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from regard.attention import attend, merge
from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bert, bind
from regard.mechanisms.patterned.longformer import Longformer, longformer_pattern
from regard.patterns import Blocks, Global, Pattern
from regard.registry import UnsupportedError


class NoOverlap(Longformer):
    """The authors' ``sliding_chunks_no_overlap``: blocks of w tokens see the block before and after them as well.

    Their code masks the missing block beyond either end by the wrong triangle: row i of the first block keeps i slots
    with score 0 and value 0, row i of the last block w - 1 - i. They thin these rows out, here as there.
    """

    def __init__(self, dim: int, num_heads: int, window: int, **options: Any) -> None:
        super().__init__(dim, num_heads, window, **options)
        self.pattern = Blocks(window, 1, 1)

    def _look_around(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, **options: Any) -> Tensor:
        w, n = self.window, q.shape[-2]
        if n % w:
            raise ValueError(f"{n} tokens are not a multiple of the {w} in a block: pad them as the authors do")
        out, lse = attend(q, k, v, pattern, **options, return_lse=True)
        row = torch.arange(n, device=q.device)
        slots = torch.where(row < w, row, 0) + torch.where(row >= n - w, n - 1 - row, 0)
        empty = slots.to(lse.dtype).log().expand_as(lse)
        return merge([out, torch.zeros_like(out)], [lse, empty])[0]


class WindowKernel(nn.Module):
    """The authors' kernel alone, between the projections: softmax over a dilated, perhaps causal window.

    Args:
        window: keys to each side.
        dilation: one number or one for each head.
        causal: their ``autoregressive``.
        scale: of the scores; 1/sqrt(D) by default.
        num_heads: H, where it is known.
    """

    def __init__(
        self,
        window: int,
        dilation: Sequence[int],
        causal: bool,
        scale: float | None = None,
        num_heads: int | None = None,
    ) -> None:
        super().__init__()
        self.pattern, self.scale = longformer_pattern(window, dilation, causal), scale
        self.num_heads = num_heads or (len(dilation) if len(dilation) > 1 else None)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """(B, H, N, D) each."""
        return attend(q, k, v, self.pattern, key_mask=key_mask, scale=self.scale)


def _option(config: Config, *names: str, default: Any = None) -> Any:
    """The first of several spellings; a list by layer gives the entry of its layer."""
    for name in names:
        if config.get(name) is not None:
            value = config[name]
            by_layer = name.startswith("attention_") and isinstance(value, list)
            return value[config.get("layer_id", 0)] if by_layer else value
    return default


def _dilation(config: Config) -> tuple[int, ...]:
    dilation = _option(config, "dilation", "attention_dilation", "d", default=1)
    return (dilation,) if isinstance(dilation, int) else tuple(dilation)


def _layer(no_overlap_blocks: bool, **options: Any) -> Longformer:
    layer = (NoOverlap if no_overlap_blocks else Longformer)(**options)
    if layer.causal:
        layer.register_load_state_dict_pre_hook(_without_global)
    return layer


def _without_global(module: nn.Module, state_dict: dict[str, Tensor], *_: Any) -> None:
    """Their causal layers own projections for global tokens that they cannot have."""
    for name in [name for name in state_dict if "_global." in name]:
        del state_dict[name]


_MODES = ("sliding_chunks", "sliding_chunks2", "tvm", "sliding_chunks_no_overlap")


def _arguments(config: Config, sides: int) -> dict[str, Any]:
    """Their constructor arguments; ``attention_window`` counts ``sides`` sides."""
    mode = _option(config, "mode", "attention_mode", default="sliding_chunks")
    if mode not in _MODES:
        raise UnsupportedError(f"attention_mode={mode!r} is none of {', '.join(_MODES)}")
    no_overlap, dilation = mode == "sliding_chunks_no_overlap", _dilation(config)
    causal = bool(_option(config, "autoregressive", "causal", default=False))
    if no_overlap and (causal or set(dilation) != {1}):
        raise UnsupportedError(f"{mode} is neither causal nor dilated, got causal={causal} and dilation={dilation}")
    return {
        "no_overlap_blocks": no_overlap,
        "dim": _option(config, "hidden", "hidden_size"),
        "num_heads": _option(config, "heads", "num_attention_heads"),
        "window": _option(config, "window", "attention_window") // sides,
        **({} if no_overlap else {"dilation": dilation, "causal": causal}),
        "num_global": 0,
        "project_out": False,
        "attn_drop": config.get("attention_probs_dropout_prob", 0.0),
    }


def _weights(state: State) -> State:
    return {
        re.sub(r"^(.)\w+?(_global)?\.", lambda m: f"{m[1]}{m[2] or '_proj'}.", name): tensor
        for name, tensor in state.items()
    }


def _states(inputs: Inputs, x: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens are real and which are global; their mask is below 0 for padding and above 0 for global tokens."""
    mask = inputs.get("attention_mask")
    mask = x.new_zeros(x.shape[:2]) if mask is None else mask.detach().reshape(x.shape[:2])
    real, special = mask >= 0, mask > 0
    if "global_attention_mask" in inputs:  # beside it the other one is 1 for real tokens, 0 for padding
        real, special = mask > 0, inputs["global_attention_mask"].reshape(x.shape[:2]) > 0
    if "is_index_masked" in inputs:
        real = ~inputs["is_index_masked"].bool()
    if "is_index_global_attn" in inputs:
        special = inputs["is_index_global_attn"].bool()
    return real, special


def _call(module: Longformer, inputs: Inputs, call: Call) -> Outputs:
    x = bind(inputs, call, "hidden_states")["hidden_states"]
    real, special = _states(inputs, x)
    out = module(x, key_mask=real, global_mask=special if bool(special.any()) else None)
    return {"out": out}


def _port_call(module: Longformer, inputs: Inputs, call: Call) -> Outputs:
    """The output, and the weights that the port gives beside it."""
    x = bind(inputs, call, "hidden_states")["hidden_states"]
    return _call(module, inputs, call) | _weights_of_the_port(module, x, *_states(inputs, x))


def _weights_of_the_port(module: Longformer, x: Tensor, real: Tensor, special: Tensor) -> dict[str, Tensor]:
    """Weights (B, N, H, G + 2 w + 1): global keys, then the window without them; 0 for global rows, given apart."""
    n, w = x.shape[1], module.window
    pattern = module.pattern | Global(special)
    allowed = pattern.dense(n, device=x.device)[:, :1] & real[:, None, None] & real[:, None, :, None]
    q, k, _ = module._project(x, x, *module._local)
    local = _softmax(q, k, allowed)
    most = int(special.sum(-1).max())
    order = special.logical_not().to(torch.uint8).argsort(dim=-1, stable=True)[:, :most]
    listed = special.take_along_dim(order, -1)
    to_global = local.take_along_dim(order[:, None, None], -1) * listed[:, None, None]
    keys = torch.arange(n, device=x.device)[:, None] + torch.arange(-w, w + 1, device=x.device)
    inside = (keys >= 0) & (keys < n) & ~special[:, keys.clamp(0, n - 1)]
    in_window = local.take_along_dim(keys.clamp(0, n - 1)[None, None], -1) * inside[:, None]
    probs = torch.cat((to_global, in_window), -1) * ~special[:, None, :, None]
    outputs = {"attn_probs": probs.transpose(1, 2)}
    if most:
        q, k, _ = module._project(x.take_along_dim(order[..., None], 1), x, *module._global)
        probs = _softmax(q, k, real[:, None, None])
        outputs["global_attn_probs"] = torch.where(listed[:, None, :, None], probs, 1 / n)  # unused slots are uniform
    return outputs


def _softmax(q: Tensor, k: Tensor, allowed: Tensor) -> Tensor:
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~allowed, -torch.inf)
    return scores.softmax(-1).nan_to_num(0.0)


def _kernel_arguments(config: Config) -> dict[str, Any]:
    return {
        "window": _option(config, "window", "w", "attention_window"),
        "dilation": _dilation(config),
        "causal": bool(_option(config, "autoregressive", "causal", default=False)),
        "scale": config.get("scale"),
        "num_heads": _option(config, "heads", "num_heads"),
    }


def _kernel_call(module: WindowKernel, inputs: Inputs, call: Call) -> Outputs:
    """Theirs is (B, N, H, D); (B, H, N, D) is told by the number of heads."""
    names = (("q", "query", "queries", "t1"), ("k", "key", "keys", "t2"), ("v", "value", "values", "t3"))
    q, k, v = (next(inputs[name] for name in some if name in inputs) for some in names)
    if q.shape[1] == module.num_heads != q.shape[2]:
        return {"out": module(q, k, v)}
    real = _states(inputs, q)[0] if "attention_mask" in inputs else None
    return {"out": module(*(t.transpose(1, 2) for t in (q, k, v)), real).transpose(1, 2)}


def _anything(**options: Any) -> nn.Module:
    return _layer(**options) if "dim" in options else WindowKernel(**options)


def _any_arguments(config: Config) -> dict[str, Any]:
    """A layer where the configuration has a width, else the kernel."""
    layer = _option(config, "hidden", "hidden_size") is not None
    return _arguments(config, sides=1) if layer else _kernel_arguments(config)


def _any_call(module: WindowKernel | Longformer, inputs: Inputs, call: Call) -> Outputs:
    if isinstance(module, WindowKernel):
        return _kernel_call(module, inputs, call)
    return _call(module, inputs, call)


def _layer_of(config: Config, number: int) -> Longformer:
    return _layer(**_arguments({"attention_window": 512, **config, "layer_id": number}, sides=2))


def _places(config: Config) -> tuple[int, int]:
    """Positions begin behind the number of the padding token, as in RoBERTa."""
    offset = config.get("pad_token_id", 1) + 1
    return offset, config.get("max_position_embeddings", 512) - offset


_KERNEL = Importer(_anything, _any_arguments, _any_call, _weights)
_MODEL = bert.importer(_layer_of, _weights, _places)
IMPORTERS = {
    "transformers:*LongformerModel": _MODEL,
    "huggingface/transformers:*LongformerModel": _MODEL,
    "allenai/longformer:longformer/longformer.py:LongformerSelfAttention": _KERNEL,
    "allenai/longformer:*": _KERNEL,
    "transformers:*models/longformer/modeling_longformer.py:LongformerSelfAttention": Importer(
        _layer, partial(_arguments, sides=2), _port_call, _weights
    ),
    "huggingface/transformers:*LongformerSelfAttention": Importer(
        _layer, partial(_arguments, sides=2), _port_call, _weights
    ),
    "equations": _KERNEL,
}
