"""AlphaFold's attention: a gate for each head and channel, and uniform weights where nothing may be seen.

Jumper et al. 2021, supplementary Algorithms 7, 8, 13, 14, 17 and 19. With h heads of width c::

    q = W_q x / sqrt(c),  k = W_k y,  v = W_v y                      no biases
    a = softmax_j(q_i . k_j + b_ij  where key j takes part, else -1e9)
    out_i = W_o (sigmoid(W_g x_i + b_g) * sum_j a_ij v_j) + b_o

A query none of whose keys takes part has a = 1 / M: all its logits are -1e9.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.attention import attend
from regard.ops.projection import Projection


def attend_or_average(
    query: Float[Tensor, "*B H N D"],
    key: Float[Tensor, "*B H M D"],
    value: Float[Tensor, "*B H M Dv"],
    bias: Float[Tensor, "..."] | None = None,
    key_mask: Bool[Tensor, "*B M"] | None = None,
) -> Float[Tensor, "*B H N Dv"]:
    """softmax(q k^T / sqrt(D) + bias) v over the keys that take part; the mean of all values where none does.

    Args:
        query, key, value: heads first.
        bias: broadcasts to (*B, H, N, M) and is never expanded.
        key_mask: True for keys that take part.

    Example:
        >>> q, k, v = torch.randn(1, 2, 4), torch.randn(1, 3, 4), torch.arange(3.0).reshape(1, 3, 1)
        >>> attend_or_average(q, k, v, key_mask=torch.zeros(3, dtype=torch.bool)).flatten().tolist()
        [1.0, 1.0]
    """
    out = attend(query, key, value, attn_mask=bias, key_mask=key_mask)
    if key_mask is None:
        return out
    empty = ~key_mask.any(-1)
    if empty.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(empty.any()):
        return out  # elsewhere a look at the mask would wait for the device
    return torch.where(empty[..., None, None, None], value.mean(-2, keepdim=True), out)


class GatedAttention(nn.Module):
    """Attention with a gate; see the head of this file.

    Args:
        dim: C of what asks.
        num_heads, head_dim: h and c.
        context_dim: of what is asked; the default is C.
        value_dim: the width of the values of a head; the default is c.
        out_dim: of the result; the default is C.
        gated: False: without the gate.

    Raises:
        ValueError: sizes below 1.

    Example:
        >>> attention = GatedAttention(12, num_heads=3, head_dim=4)
        >>> attention(torch.randn(2, 5, 12), bias=torch.randn(3, 5, 5)).shape
        torch.Size([2, 5, 12])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int,
        *,
        context_dim: int | None = None,
        value_dim: int | None = None,
        out_dim: int | None = None,
        gated: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        context_dim, value_dim, out_dim = context_dim or dim, value_dim or head_dim, out_dim or dim
        if min(dim, num_heads, head_dim, context_dim, value_dim, out_dim) < 1:
            raise ValueError(f"dim={dim}, num_heads={num_heads}, head_dim={head_dim}: sizes must be positive")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.query = Projection(dim, num_heads * head_dim, "glorot", bias=False, **factory)
        self.key = Projection(context_dim, num_heads * head_dim, "glorot", bias=False, **factory)
        self.value = Projection(context_dim, num_heads * value_dim, "glorot", bias=False, **factory)
        self.gate = Projection(dim, num_heads * value_dim, "gate", **factory) if gated else None
        self.out = Projection(num_heads * value_dim, out_dim, "zero", **factory)

    def forward(
        self,
        x: Float[Tensor, "*B N C"],
        context: Float[Tensor, "*B M E"] | None = None,
        *,
        bias: Float[Tensor, "..."] | None = None,
        key_mask: Bool[Tensor, "*B M"] | None = None,
    ) -> Float[Tensor, "*B N O"]:
        """Attend from x to the context, or to x itself.

        Args:
            x: what asks, normalised.
            context: what is asked.
            bias: added to the logits; broadcasts to (*B, H, N, M).
            key_mask: True for keys that take part.
        """
        mixed = self._mix(x, x if context is None else context, bias, key_mask)
        return self.out(mixed if self.gate is None else mixed * self.gate(x).sigmoid())

    def _mix(self, x: Tensor, context: Tensor, bias: Tensor | None, key_mask: Tensor | None) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)
            for part in (self.query(x), self.key(context), self.value(context))
        )
        return attend_or_average(query, key, value, bias, key_mask).transpose(-2, -3).flatten(-2)


class GlobalAttention(nn.Module):
    """One query for all: the mean of what takes part asks, and each place gates the answer (Algorithm 19).

    q_h = W_q,h mean(x) / sqrt(c); one k and one v of width c for all heads; the mean is sum / (count + 1e-10).

    Args:
        dim: C.
        num_heads, head_dim: h and c.
        value_dim: the width of the values; the default is c.
        gated: False: without the gate; every place gets the same.

    Raises:
        ValueError: sizes below 1.

    Example:
        >>> GlobalAttention(12, num_heads=3, head_dim=4)(torch.randn(2, 7, 12)).shape
        torch.Size([2, 7, 12])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int,
        *,
        value_dim: int | None = None,
        gated: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        value_dim = value_dim or head_dim
        if min(dim, num_heads, head_dim, value_dim) < 1:
            raise ValueError(f"dim={dim}, num_heads={num_heads}, head_dim={head_dim}: sizes must be positive")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.query = Projection(dim, num_heads * head_dim, "glorot", bias=False, **factory)
        self.key = Projection(dim, head_dim, "glorot", bias=False, **factory)
        self.value = Projection(dim, value_dim, "glorot", bias=False, **factory)
        self.gate = Projection(dim, num_heads * value_dim, "gate", **factory) if gated else None
        self.out = Projection(num_heads * value_dim, dim, "zero", **factory)

    def forward(
        self, x: Float[Tensor, "*B N C"], *, key_mask: Bool[Tensor, "*B N"] | None = None
    ) -> Float[Tensor, "*B N C"]:
        """Attend from the mean.

        Args:
            x: what is asked, normalised.
            key_mask: True for places that take part.
        """
        query = self.query(_mean(x, key_mask)).unflatten(-1, (1, self.num_heads, -1))  # the heads are its rows
        key, value = self.key(x)[..., None, :, :], self.value(x)[..., None, :, :]
        mixed = attend_or_average(query, key, value, key_mask=key_mask).flatten(-3)
        if self.gate is None:
            return self.out(mixed)[..., None, :].expand_as(x)
        return self.out(mixed[..., None, :] * self.gate(x).sigmoid())


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Over places that take part, (..., C); summed in float32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if mask is None:
        return x.mean(-2, dtype=wide).to(x.dtype)
    total = x.masked_fill(~mask[..., None], 0.0).sum(-2, dtype=wide)
    return (total / (mask.sum(-1, keepdim=True, dtype=wide) + 1e-10)).to(x.dtype)
