"""torch.nn.MultiheadAttention's interface over :func:`regard.attend`: its arguments, its masks, its weights.

For models that call it as torch's. The masks are turned around at this door (torch: True = leave out), a query that may
look at nothing gives 0 instead of NaN, and train and eval compute the same.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.attention import attend
from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind

__all__ = ["IMPORTER", "MultiheadAttention", "attention_state", "attention_weights", "keep_mask"]


class MultiheadAttention(nn.Module):
    """Multi-head attention with the constructor and the forward of ``torch.nn.MultiheadAttention``.

    The parameters are those of :class:`regard.layers.MultiHead`; :func:`regard.authors.load` translates torch's.

    Args:
        embed_dim, num_heads: C and H.
        dropout: on the attention weights.
        bias: on all four projections.
        add_bias_kv: one learned key and value behind the others.
        add_zero_attn: a key and a value of zeros behind them.
        kdim, vdim: widths of keys and values, C by default.
        batch_first: (B, N, C) instead of (N, B, C).

    Example:
        >>> x = torch.randn(5, 2, 8)
        >>> out, weights = MultiheadAttention(8, 2)(x, x, x)
        >>> out.shape, weights.shape
        (torch.Size([5, 2, 8]), torch.Size([2, 5, 5]))
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim={embed_dim} is not divisible by num_heads={num_heads}")
        self.num_heads, self.dropout, self.add_zero_attn, self.batch_first = (
            num_heads,
            dropout,
            add_zero_attn,
            batch_first,
        )
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        self.k_proj = nn.Linear(kdim or embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        self.v_proj = nn.Linear(vdim or embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        extra = torch.empty(2, embed_dim, device=device, dtype=dtype)
        self.bias_k = nn.Parameter(extra[0].clone()) if add_bias_kv else None
        self.bias_v = nn.Parameter(extra[1].clone()) if add_bias_kv else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform matrices, biases 0, Xavier-normal for the learned key and value."""
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            for parameter in linear.parameters():
                _ = nn.init.xavier_uniform_(parameter) if parameter.ndim == 2 else nn.init.zeros_(parameter)
        for extra in (self.bias_k, self.bias_v):
            if extra is not None:
                nn.init.xavier_normal_(extra[None])

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
        """As torch's.

        Args:
            query: (N, B, C), (B, N, C) with ``batch_first``, or (N, C).
            key, value: the same with M for N, and their own widths.
            key_padding_mask: (B, M) or (M,): bool, True = leave this key out, or float, added to the scores.
            need_weights: also return the weights, which takes O(N M) memory.
            attn_mask: (N, M) or (B H, N, M): bool, True = leave this pair out, or float, added to the scores.
            average_attn_weights: the mean over heads.
            is_causal: no query sees a later key, where no ``attn_mask`` says so already.

        Returns:
            The output in the layout of ``query``, and weights (B, N, M), per head (B, H, N, M), or None.
        """
        single, swap = query.ndim == 2, not self.batch_first and query.ndim == 3
        if single:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif swap:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = self._heads(self.q_proj(query)), self._heads(self.k_proj(key)), self._heads(self.v_proj(value))
        if is_causal and attn_mask is None:
            attn_mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1)
        mask = keep_mask(attn_mask, key_padding_mask, self.num_heads, q.dtype)
        k, v, mask = self._with_extra_keys(k, v, mask)
        drop = self.dropout * self.training
        out, lse = attend(q, k, v, attn_mask=mask, dropout_p=drop, return_lse=True)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        weights = attention_weights(q, k, lse, mask) if need_weights else None
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if single:
            return out[0], None if weights is None else weights[0]
        return (out.transpose(0, 1) if swap else out), weights

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _with_extra_keys(self, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The learned key, then the zero key, that every query may see."""
        keys, values = [k], [v]
        if self.bias_k is not None and self.bias_v is not None:
            for parts, extra in ((keys, self.bias_k), (values, self.bias_v)):
                parts.append(self._heads(extra[None, None]).expand(len(k), -1, -1, -1))
        if self.add_zero_attn:
            keys.append(torch.zeros_like(k[:, :, :1]))
            values.append(torch.zeros_like(v[:, :, :1]))
        if mask is not None:
            added = len(keys) - 1
            mask = F.pad(mask, (0, added), value=True) if mask.dtype == torch.bool else F.pad(mask, (0, added))
        return torch.cat(keys, 2), torch.cat(values, 2), mask


def keep_mask(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, num_heads: int, dtype: torch.dtype
) -> Tensor | None:
    """torch's two masks as one of ours (B or 1, H or 1, N, M): Bool, True = takes part, if both are, else float."""
    masks: list[Tensor] = []
    if attn_mask is not None:
        masks.append(attn_mask[None, None] if attn_mask.ndim == 2 else attn_mask.unflatten(0, (-1, num_heads)))
    if key_padding_mask is not None:
        masks.append(key_padding_mask[:, None, None])
    if not masks:
        return None
    if all(mask.dtype == torch.bool for mask in masks):
        return ~masks[0] if len(masks) == 1 else ~(masks[0] | masks[1])
    added = [
        torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)
        if mask.dtype == torch.bool
        else mask.to(dtype)
        for mask in masks
    ]
    return added[0] if len(added) == 1 else added[0] + added[1]


def attention_weights(q: Tensor, k: Tensor, lse: Tensor, mask: Tensor | None = None) -> Tensor:
    """The weights (B, H, N, M) that :func:`regard.attend` does not keep; 0 for a query that may look at nothing."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    lse = lse.to(scores.dtype)[..., None]
    return (scores - lse.masked_fill(lse == -torch.inf, 0.0)).exp()


_OPTIONS = ["embed_dim", "num_heads", "dropout", "bias", "add_bias_kv", "add_zero_attn", "kdim", "vdim", "batch_first"]


def _arguments(config: Config) -> dict[str, Any]:
    """Theirs are ours; where the weights live and in which dtype, the weights say."""
    return {name: config[name] for name in _OPTIONS if name in config}


def attention_state(state: State) -> State:
    """The joint matrix as three projections; the learned key and value as vectors."""
    weights: dict[str, Tensor] = {}
    for name, tensor in state.items():
        prefix, _, last = name.rpartition("in_proj_")
        if name.endswith(("in_proj_weight", "in_proj_bias")):
            weights |= {f"{prefix}{p}_proj.{last}": t for p, t in zip("qkv", tensor.chunk(3), strict=True)}
        elif name.endswith("_proj_weight"):
            weights[name.replace("_proj_weight", "_proj.weight")] = tensor
        else:
            weights[name] = tensor.flatten() if name in ("bias_k", "bias_v") else tensor
    return weights


def _call(module: MultiheadAttention, inputs: Inputs, call: Call) -> Outputs:
    options = {
        name: bool(value)
        for name, value in {**call, **call.get("kwargs", {})}.items()
        if name in ("need_weights", "average_attn_weights", "is_causal") and isinstance(value, int)
    }
    given = bind(inputs, call, "query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")
    key = given.get("key", given["query"])
    out, weights = module(**{"key": key, "value": key} | given, **options)
    return {"out": out} | ({} if weights is None else {"weights": weights})


IMPORTER = Importer(MultiheadAttention, _arguments, _call, attention_state)
