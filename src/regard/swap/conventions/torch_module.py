"""``torch.nn.MultiheadAttention``, alone or in torch's encoder and decoder layers."""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from regard.inspect.maps import attention_map
from regard.registry import Layer, UnsupportedError
from regard.swap.conventions.convention import Convention
from regard.swap.masks import allowed_by, check_pairs
from regard.swap.reading import Call, Reading, linear, split


class TorchShell(nn.Module):
    """Stands where an ``nn.MultiheadAttention`` stood and is called like it; True in its masks means: leave out.

    Asked for weights, which is torch's default, it makes the N x M map of the new attention, without a gradient, or
    gives None where that has none; ``need_weights=False`` saves it.
    """

    # nn.TransformerEncoderLayer reads these: with None in this place it calls the module instead of its own kernel
    in_proj_bias: None = None
    in_proj_weight: None = None
    _qkv_same_embed_dim = False

    def __init__(self, attention: Layer, reading: Reading, batch_first: bool) -> None:
        super().__init__()
        self.attention = attention
        self.embed_dim, self.num_heads, self.batch_first = reading.dim, reading.num_heads, batch_first
        self.causal = bool(reading.causal)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention.forward``."""
        call = self.understand(query, key, value, key_padding_mask, attn_mask, is_causal)
        out, weights = call.ask(self.attention), None
        if need_weights:
            weights = self._weights(call)
            if weights is not None:
                weights = weights.mean(1) if average_attn_weights else weights
                weights = weights if call.batched else weights[0]
        out = out if self.batch_first else out.transpose(0, 1)
        return (out if call.batched else out.squeeze(0 if self.batch_first else 1)), weights

    def understand(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | None,
        is_causal: bool,
    ) -> Call:
        """The call in our words."""
        if value is not key:
            raise UnsupportedError("keys and values come from different tensors: the new attention takes one context")
        batched, same = query.ndim == 3, key is query
        query, key = (t if batched else t.unsqueeze(0 if self.batch_first else 1) for t in (query, key))
        query, key = (t if self.batch_first else t.transpose(0, 1) for t in (query, key))
        key_mask = None
        if key_padding_mask is not None:
            key_padding_mask = key_padding_mask if batched else key_padding_mask[None]
            boolean = key_padding_mask.dtype == torch.bool
            key_mask = ~key_padding_mask if boolean else allowed_by(key_padding_mask, "key_padding_mask")
        self._check_pairs(attn_mask, query.shape[1], key.shape[:2], is_causal)
        return Call(
            x=query,
            context=None if same else key,
            key_mask=key_mask,
            batch_first=self.batch_first,
            batched=batched,
        )

    def _check_pairs(self, attn_mask: Tensor | None, n: int, keys: torch.Size, is_causal: bool) -> None:
        """Refuse a mask that is not what the layer does by itself."""
        causal, label = self.causal, "nn.MultiheadAttention"
        if attn_mask is None:
            if causal:
                raise UnsupportedError(
                    f"{label} was swapped with causal=True, but this call has no attn_mask and sees the future"
                )
            return
        if is_causal and causal:  # torch's hint: the mask is the causal one
            return
        allowed = ~attn_mask if attn_mask.dtype == torch.bool else allowed_by(attn_mask, label)
        allowed = allowed[None, None] if allowed.ndim == 2 else allowed[:, None]
        if not torch.compiler.is_compiling():
            real = torch.ones(1, keys[1], dtype=torch.bool, device=allowed.device)
            check_pairs(allowed, real, causal, label)

    def _weights(self, call: Call) -> Tensor | None:
        """Of each head, (B, H, N, M); None for mechanisms that have none."""
        try:
            masks = call.masks
            return attention_map(
                self.attention, call.x.detach(), call.context, kind="exact", generator=None, **masks
            ).tensor
        except UnsupportedError:
            return None


class TorchModule(Convention):
    """See the head of this file."""

    title = "torch.nn.MultiheadAttention"

    def read(self, path: str, module: nn.Module) -> Reading | str | None:
        if not isinstance(module, nn.MultiheadAttention):
            return None
        if module.bias_k is not None or module.add_zero_attn:
            return "add_bias_kv and add_zero_attn make keys that no token has"
        dim, heads = module.embed_dim, module.num_heads
        if (module.kdim, module.vdim) != (dim, dim):
            return f"its keys and values have widths {module.kdim} and {module.vdim} instead of {dim}: cross attention"
        bias = cast(Tensor | None, module.in_proj_bias)
        if module._qkv_same_embed_dim:
            q, k, v = split(cast(Tensor, module.in_proj_weight), bias, [dim] * 3)
        else:
            weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
            biases = (None,) * 3 if bias is None else bias.split(dim)
            q, k, v = (linear(cast(Tensor, w), b) for w, b in zip(weights, biases, strict=True))
        out = linear(module.out_proj.weight, cast(Tensor | None, module.out_proj.bias))
        sizes: dict[str, Any] = {"dim": dim, "num_heads": heads, "num_kv_heads": heads, "head_dim": dim // heads}
        return Reading(**sizes, q=q, k=k, v=v, out=out, attn_drop=module.dropout)

    def dress(self, attention: Layer, reading: Reading, module: nn.Module) -> TorchShell:
        return TorchShell(attention, reading, bool(getattr(module, "batch_first", False)))

    def understand(self, stand_in: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        names = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights")
        given = dict(zip((*names, "is_causal"), args, strict=False)) | kwargs
        wanted = {name: given.get(name) for name in ("query", "key", "value", "key_padding_mask", "attn_mask")}
        return cast(TorchShell, stand_in).understand(**wanted, is_causal=given.get("is_causal", False))  # pyright: ignore

    def attention(self, stand_in: nn.Module) -> Layer:
        return cast(TorchShell, stand_in).attention

    def probe(self, module: nn.Module, x: Tensor, causal: bool) -> Tensor:
        n = x.shape[1]
        mask = torch.full((n, n), -math.inf, device=x.device, dtype=x.dtype).triu(1) if causal else None
        x = x if getattr(module, "batch_first", False) else x.transpose(0, 1)
        out = module(x, x, x, need_weights=False, attn_mask=mask)[0]
        return out if getattr(module, "batch_first", False) else out.transpose(0, 1)
