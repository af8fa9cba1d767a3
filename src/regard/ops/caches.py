"""Streaming under a pattern of positions: keys and values are kept, and the pattern says which of them are seen."""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from regard.attention import attend
from regard.memory import KeyValueCache, StaticCache
from regard.ops.weights import visible
from regard.patterns import Causal, Pattern

Cache = KeyValueCache | StaticCache


def empty_cache(
    batch: int, num_kv_heads: int, head_dim: int, value_dim: int, *, static: int | None = None, **factory: Any
) -> Cache:
    """A cache that grows, or one of ``static`` slots that is overwritten."""
    if static is None:
        return KeyValueCache.start(batch, num_kv_heads, head_dim, value_dim, **factory)
    return StaticCache.start(batch, num_kv_heads, static, head_dim, value_dim, **factory)


def continue_from(
    memory: Cache, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, dropout_p: float = 0.0
) -> tuple[Tensor, Cache]:
    """The next tokens under a causal pattern: -> (out, the new memory).

    Args:
        memory: what came before.
        q, k, v: (B, H, N, D), (B, G, N, D) and (B, G, N, Dv) of the new tokens.
        pattern: who may look at whom, in positions of the whole sequence.
        dropout_p: dropout on the weights.
    """
    mask = None
    if isinstance(memory, StaticCache):  # its length is known to its tensors only: their rows of the pattern are a mask
        mask = slot_mask(pattern, memory.length, q.shape[-2], memory.key.shape[-2], q.shape[-3])
    grown = memory.append(k, v)
    options: dict[str, Any] = {"attn_mask": mask, "dropout_p": dropout_p, "enable_gqa": True}
    keys, values = grown.key.to(q.dtype), grown.value.to(q.dtype)
    return attend(q, keys, values, pattern if mask is None else None, **options), grown


def grow(memory: Cache, k: Tensor, v: Tensor) -> tuple[Cache, Bool[Tensor, "#B 1 N M"] | None]:
    """The memory with the next tokens, and which of its keys each of these may see: for cores with a map of their own.

    Args:
        memory: what came before.
        k, v: (B, G, N, D) and (B, G, N, Dv) of the new tokens.
    """
    n = k.shape[-2]
    if isinstance(memory, StaticCache):
        allowed = slot_mask(Causal(), memory.length, n, memory.key.shape[-2], heads=1)
        return memory.append(k, v), allowed
    grown = memory.append(k, v)
    return grown, visible(n, grown.key.shape[-2], causal=True, device=k.device)


def slot_mask(
    pattern: Pattern, length: Int[Tensor, " B"], n: int, slots: int, heads: int
) -> Bool[Tensor, "B #H n slots"]:
    """The rows of a causal pattern for n new tokens, when ``length`` slots are in use before them."""
    bound = pattern.bind(slots, slots, heads)
    h = torch.arange(heads if bound.by_head else 1, device=length.device)[:, None, None]
    i = length[:, None, None, None] + torch.arange(n, device=length.device)[:, None]
    return bound.allows(torch.zeros_like(i), h, i, torch.arange(slots, device=length.device))
