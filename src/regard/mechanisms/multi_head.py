"""Scaled dot-product attention, the one that every other mechanism is measured against.

Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762, eq. 1::

    Attention(Q, K, V) = softmax(Q K^T / sqrt(D)) V

Dropout acts on the weights after the softmax, which the paper's text leaves out and all its codes have. A query that
may look at nothing gives 0. Time O(N M D) a head; memory O((N + M) D): the weights are never stored as a whole.
"""

from typing import Any

from torch import Generator, Tensor

from regard.attention import attend, merge
from regard.memory import KeyValueCache, StaticCache
from regard.ops.caches import empty_cache
from regard.patterns import Causal, Full, Segments
from regard.registry import Card, Core, Sample, UnsupportedError, register


@register(
    "multi_head",
    aliases=["full"],
    samples=[
        Sample(dim=12, num_heads=3),
        Sample(dim=12, num_heads=3, causal=True, attn_drop=0.1),
        Sample(dim=16, num_heads=4, num_kv_heads=2, head_dim=6, causal=True),
        Sample(dim=12, num_heads=3, qkv_bias=False, qk_norm=True, rotary=1e4, claims={"cross": False}),
    ],
)
class ScaledDotProduct(Core):
    """softmax(q k^T / sqrt(D)) v over all pairs or, if causal, over keys at or before the query.

    Args:
        causal: no query sees a later key; with N != M the last query stands at the last key.
        attn_drop: dropout on the weights, in training.
        scale: instead of 1/sqrt(D).

    Raises:
        UnsupportedError: streaming without ``causal=True``.
    """

    card = Card(
        title="Multi-head attention",
        paper="arXiv:1706.03762",
        year=2017,
        family="softmax",
        data="sequence",
        causal="strict",
        cross=True,
        gqa=True,
        streaming=True,
        segments=True,
        smooth=True,
        stochastic=("dropout",),
        cost="N^2",
        summary="Every token weighs every other: the exact softmax that the others approximate, restrict or replace.",
        formula="softmax(q k^T / sqrt(D)) v",
    )

    def __init__(self, causal: bool = False, *, attn_drop: float = 0.0, scale: float | None = None) -> None:
        super().__init__()
        self.causal, self.attn_drop, self.scale = causal, attn_drop, scale
        self.pattern = Causal() if causal else Full()

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        segments: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """Attend from q (B, H, N, D) to k (B, G, M, D) and v (B, G, M, Dv), G a divisor of H.

        Args:
            key_mask: Bool (B, M), True for real keys.
            query_mask: queries enter no statistic, so it has nothing to hide.
            segments: Int (B, N), one id a packed document; nobody looks into another document.
            generator: draws the dropout.

        Returns:
            (B, H, N, Dv).
        """
        pattern = self.pattern if segments is None else self.pattern & Segments(segments)
        return self._attend(q, k, v, pattern, key_mask=key_mask, generator=generator)

    def memory(
        self,
        batch: int,
        num_kv_heads: int,
        head_dim: int,
        value_dim: int,
        *,
        device: Any = None,
        dtype: Any = None,
        static: int | None = None,
    ) -> KeyValueCache | StaticCache:
        """An empty cache of keys and values that grows, or one of ``static`` slots that is overwritten."""
        if not self.causal:
            raise UnsupportedError("multi_head streams only with causal=True: here every query sees all keys")
        return empty_cache(batch, num_kv_heads, head_dim, value_dim, static=static, device=device, dtype=dtype)

    def stream(
        self, q: Tensor, k: Tensor, v: Tensor, memory: KeyValueCache | StaticCache
    ) -> tuple[Tensor, KeyValueCache | StaticCache]:
        """Continue with one token or many: -> (out, the new memory)."""
        one = q.shape[-2] == 1
        if isinstance(memory, KeyValueCache):
            grown = memory.append(k, v)
            return self._attend(q, grown.key.to(q.dtype), grown.value.to(q.dtype), Full() if one else Causal()), grown
        filled, grown = memory.filled(), memory.append(k, v)
        keys, values = grown.key.to(q.dtype), grown.value.to(q.dtype)
        if one:
            return self._attend(q, keys, values, Full(), key_mask=grown.filled()), grown
        # the slots in use are known to the tensors only: old and new tokens apart need no mask of N x slots
        old = self._attend(q, keys, values, Full(), key_mask=filled, return_lse=True)
        new = self._attend(q, k, v, Causal(), return_lse=True)
        return merge([old[0], new[0]], [old[1], new[1]])[0], grown

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, pattern: Any, **options: Any) -> Any:
        drop = self.attn_drop * self.training
        return attend(q, k, v, pattern, scale=self.scale, dropout_p=drop, enable_gqa=True, **options)

    def extra_repr(self) -> str:
        return f"causal={self.causal}, attn_drop={self.attn_drop}"
