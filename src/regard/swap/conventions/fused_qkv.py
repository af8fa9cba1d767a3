"""timm's attention and its many relatives: a fused ``qkv``, a ``proj``, ``num_heads``, and forward(x, attn_mask=None).

The names are those of ``timm.layers.attention.Attention``; vision transformers outside timm (DINO, MAE, Segment
Anything's image-wide blocks) have them too.
"""

import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn

from regard.registry import Layer, UnsupportedError
from regard.swap.conventions.convention import Convention
from regard.swap.masks import key_mask_of
from regard.swap.reading import Call, Reading, split, with_scale


class FusedShell(nn.Module):
    """Stands where a fused attention stood: forward(x, attn_mask=None, is_causal=False) on (B, N, C)."""

    def __init__(self, attention: Layer, reading: Reading) -> None:
        super().__init__()
        self.attention, self.proj_drop = attention, reading.proj_drop
        self.num_heads, self.head_dim, self.causal = reading.num_heads, reading.head_dim, bool(reading.causal)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """As timm's."""
        return self.proj_drop(self.understand(x, attn_mask, is_causal).ask(self.attention))

    def understand(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Call:
        """The call in our words."""
        if attn_mask is None and is_causal != self.causal:
            raise UnsupportedError(
                f"called with is_causal={is_causal}, but swapped with causal={self.causal}: pass causal={is_causal} to "
                "swap_attention"
            )
        mask = attn_mask[None, None] if attn_mask is not None and attn_mask.ndim == 2 else attn_mask
        real = key_mask_of(mask, self.causal, "attn_mask")
        return Call(x=x, key_mask=None if real is None else real.expand(len(x), -1))


class FusedQkv(Convention):
    """See the head of this file."""

    title = "fused qkv"

    def read(self, path: str, module: nn.Module) -> Reading | str | None:
        qkv, proj, heads = (getattr(module, name, None) for name in ("qkv", "proj", "num_heads"))
        if not (isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear) and isinstance(heads, int)):
            return None
        dim, width = qkv.in_features, qkv.out_features // 3
        if qkv.out_features % (3 * heads) or proj.in_features != width or proj.out_features != dim:
            return (
                f"its qkv gives {qkv.out_features} features and its proj takes {proj.in_features}: no three equal parts"
            )
        others = set(inspect.signature(module.forward).parameters) - {"x", "attn_mask", "is_causal"}
        if others:
            return f"its forward takes {', '.join(sorted(others))} besides x, attn_mask and is_causal"
        for name in ("norm", "gate", "q_bias", "relative_position_bias_table", "rel_pos_h"):
            if getattr(module, name, None) is not None and not isinstance(getattr(module, name), nn.Identity):
                return f"its {name} has no place in the new attention"
        q, k, v = split(qkv.weight, cast(Tensor | None, qkv.bias), [width] * 3)
        scale = getattr(module, "scale", None)
        q_norm, k_norm = (_norm(getattr(module, name, None)) for name in ("q_norm", "k_norm"))
        if isinstance(scale, float):
            q = with_scale(q, scale, width // heads)
        drop, proj_drop = getattr(module, "attn_drop", None), getattr(module, "proj_drop", None)
        return Reading(
            dim=dim,
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=width // heads,
            q=q,
            k=k,
            v=v,
            out=proj,
            q_norm=q_norm,
            k_norm=k_norm,
            attn_drop=drop.p if isinstance(drop, nn.Dropout) else 0.0,
            proj_drop=proj_drop if isinstance(proj_drop, nn.Module) else nn.Identity(),
        )

    def dress(self, attention: Layer, reading: Reading, module: nn.Module) -> FusedShell:
        return FusedShell(attention, reading)

    def understand(self, stand_in: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return cast(FusedShell, stand_in).understand(*args, **kwargs)

    def attention(self, stand_in: nn.Module) -> Layer:
        return cast(FusedShell, stand_in).attention

    def probe(self, module: nn.Module, x: Tensor, causal: bool) -> Tensor:
        if not causal:
            return module(x)
        n = x.shape[1]
        return module(x, attn_mask=torch.ones(n, n, dtype=torch.bool, device=x.device).tril()[None, None])


def _norm(norm: Any) -> nn.Module | None:
    return norm if isinstance(norm, nn.Module) and not isinstance(norm, nn.Identity) else None
