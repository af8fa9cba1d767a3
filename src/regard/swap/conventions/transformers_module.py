"""Self-attentions of Hugging Face's transformers that own plain projections: BERT, RoBERTa, ViT, GPT-2, BART, ...

What is looked for is how they are built and called, ``forward(hidden_states, ..., attention_mask=None, ...)`` beside
projections under the usual names; that a copy computes what they compute is shown by a call before anything changes.
"""

import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn

from regard.inspect.maps import attention_map
from regard.registry import Layer, UnsupportedError
from regard.swap.conventions.convention import Convention
from regard.swap.masks import key_mask_of
from regard.swap.reading import Call, Reading, split, with_scale

_INPUTS = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"))
_OUTPUTS = ("out_proj", "o_proj", "out_lin")
_COUNTS = ("num_attention_heads", "num_heads", "n_heads")
_IDLE = ("position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states", "return_dict")
"""Arguments that change nothing in an attention without rotary positions and without a cache."""


class TransformersShell(nn.Module):
    """Stands where a self-attention of transformers stood and gives what it gave: (output, weights or None)."""

    def __init__(self, attention: Layer, reading: Reading, takes: tuple[str, ...], layer_idx: int | None) -> None:
        super().__init__()
        self.attention, self.proj_drop = attention, reading.proj_drop
        self.takes, self.layer_idx = takes, layer_idx
        self.is_causal = bool(reading.causal)  # where transformers' own modules say it

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """As the module before; what the new attention cannot honour is refused."""
        call = self.understand(*args, **kwargs)
        weights = None
        if kwargs.get("output_attentions"):
            weights = attention_map(self.attention, call.x.detach(), key_mask=call.key_mask, kind="exact").tensor
        return self.proj_drop(call.ask(self.attention)), weights

    def understand(self, *args: Any, **kwargs: Any) -> Call:
        """The call in our words."""
        given = dict(zip(self.takes, args, strict=False)) | kwargs
        given = {name: value for name, value in given.items() if value is not None and name not in _IDLE}
        x, mask = given.pop("hidden_states"), given.pop("attention_mask", None)
        if "cache" in given or "past_key_values" in given:
            raise UnsupportedError(
                f"{self.attention.mechanism} keeps no cache of transformers': call the model with use_cache=False"
            )
        if unknown := sorted(name for name, value in given.items() if value is not False):
            raise UnsupportedError(f"{self.attention.mechanism} has no place for {', '.join(unknown)} of this call")
        real = key_mask_of(mask, self.is_causal, "attention_mask")
        return Call(x=x, key_mask=None if real is None else real.expand(len(x), -1))


class TransformersModule(Convention):
    """See the head of this file."""

    title = "transformers"

    def read(self, path: str, module: nn.Module) -> Reading | str | None:
        if not type(module).__module__.startswith(("transformers.", "transformers_modules.")):
            return None
        takes = inspect.signature(module.forward).parameters
        if "hidden_states" not in takes or "attention_mask" not in takes:
            return None
        projections = _projections(module)
        if projections is None:
            return None
        if reason := _obstacle(module, path, takes):
            return reason
        q, k, v, out = projections
        heads = next((value for name in _COUNTS if isinstance(value := getattr(module, name, None), int)), None)
        if heads is None:
            return "it does not say how many heads it has"
        width = q.out_features // heads
        scaling = getattr(module, "scaling", None)
        drop = _rate(module, ("dropout", "attn_dropout", "attention_dropout"))
        after = getattr(module, "resid_dropout", None)
        return Reading(
            dim=q.in_features,
            num_heads=heads,
            num_kv_heads=k.out_features // width,
            head_dim=width,
            q=with_scale(q, scaling, width) if isinstance(scaling, float) else q,
            k=k,
            v=v,
            out=out,
            attn_drop=drop,
            proj_drop=after if isinstance(after, nn.Module) else nn.Identity(),
            causal=bool(getattr(module, "is_causal", False)),
        )

    def dress(self, attention: Layer, reading: Reading, module: nn.Module) -> TransformersShell:
        takes = tuple(inspect.signature(module.forward).parameters)
        return TransformersShell(attention, reading, takes, getattr(module, "layer_idx", None))

    def understand(self, stand_in: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return cast(TransformersShell, stand_in).understand(*args, **kwargs)

    def attention(self, stand_in: nn.Module) -> Layer:
        return cast(TransformersShell, stand_in).attention

    def probe(self, module: nn.Module, x: Tensor, causal: bool) -> Tensor:
        n, lowest = x.shape[1], torch.finfo(x.dtype).min
        mask = torch.full((n, n), lowest, device=x.device, dtype=x.dtype).triu(1)[None, None] if causal else None
        return module(x, attention_mask=mask)[0]


def _projections(module: nn.Module) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear | None] | None:
    """Queries, keys, values and, where the module has it, the output."""
    fused, out = getattr(module, "c_attn", None), getattr(module, "c_proj", None)
    if hasattr(fused, "nf") and hasattr(out, "nf"):  # GPT-2's Conv1D holds its matrix the other way round
        weight, bias = cast(Any, fused).weight, cast(Any, fused).bias
        if weight.shape[1] != 3 * weight.shape[0]:
            return None
        q, k, v = split(weight.mT, bias, [len(weight)] * 3)
        return q, k, v, split(cast(Any, out).weight.mT, cast(Any, out).bias, [len(weight)])[0]
    for names in _INPUTS:
        parts = [getattr(module, name, None) for name in names]
        if all(isinstance(part, nn.Linear) for part in parts):
            q, k, v = cast(tuple[nn.Linear, ...], tuple(parts))
            found = next((part for name in _OUTPUTS if (part := getattr(module, name, None)) is not None), None)
            return q, k, v, cast(nn.Linear | None, found)
    return None


def _obstacle(module: nn.Module, path: str, takes: Any) -> str:
    """Why the module is left alone; empty where nothing speaks against it."""
    if getattr(module, "is_cross_attention", False) or "cross" in type(module).__name__.lower():
        return "cross attention"
    if path.rpartition(".")[2] in ("encoder_attn", "crossattention", "EncDecAttention"):
        return "cross attention"
    if "position_embeddings" in takes:
        return "its rotary positions are turned inside, and a mechanism that owns its projections has no place for them"
    if "position_bias" in takes:
        return "its position bias has no place in a mechanism that owns its projections"
    return ""


def _rate(module: nn.Module, names: tuple[str, ...]) -> float:
    found = next((getattr(module, name) for name in names if hasattr(module, name)), 0.0)
    return found.p if isinstance(found, nn.Dropout) else float(found)
