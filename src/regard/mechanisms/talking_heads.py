"""Talking heads: heads exchange their logits before the softmax and their weights after it.

Shazeer et al. 2020, arXiv:2003.02436, section 4. With logits of all heads, mixed by learned P_l (H x S) to S softmax
heads, whose weights are mixed by learned P_w (S x Hv) to the heads of the values::

    J_h = q_h k_h^T / sqrt(D)    W_s = softmax(sum_h P_l[h, s] J_h)    U_g = sum_s P_w[s, g] W_s    out_g = U_g v_g

Masks act between the logit mix and the softmax, where a hidden pair is hidden for all heads. Rows of U need not sum to
1, and may be negative. Dropout acts on W, as in the ports; the paper folds 1/sqrt(D) into its initialisation.

Time O(N M (H D + H S + S Hv + Hv Dv)): all heads of a pair are needed at once, so no fused softmax kernel applies. It
grows with the square of the number of heads: dozens are fine, hundreds are not. Queries go through in runs, so memory
is that of a few maps of 16 MB; compiled, or in training with dropout, it is O(N M S).
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.memory import KeyValueCache, StaticCache
from regard.ops.caches import empty_cache, grow
from regard.ops.dropout import drop
from regard.ops.row_runs import by_rows
from regard.ops.weights import softmax_where, visible
from regard.registry import Card, Core, Sample, UnsupportedError, register


def mixed_weights(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H M D"],
    logit_mix: Float[Tensor, "H S"],
    weight_mix: Float[Tensor, "S G"],
    *,
    allowed: Bool[Tensor, "#B 1 #N M"] | None = None,
    attn_drop: float = 0.0,
    generator: Generator | None = None,
) -> Float[Tensor, "B G N M"]:
    """U, what each head of the values is weighed with; see the head of this file.

    Args:
        q, k: queries and keys, heads first.
        logit_mix, weight_mix: P_l and P_w; a column is what one head hears.
        allowed: True for pairs that take part, the same for all heads.
        attn_drop, generator: dropout on the weights before they are mixed, and what draws it.

    Example:
        >>> one = torch.eye(2)
        >>> q, k = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 7, 4)
        >>> u = mixed_weights(q, k, one, one)  # nobody talks
        >>> torch.allclose(u, (q @ k.mT / 2).softmax(-1), atol=1e-6)
        True
    """
    logits = (q / q.shape[-1] ** 0.5) @ k.mT
    weights = softmax_where(_mix(logit_mix, logits), allowed).to(q.dtype)
    return _mix(weight_mix, drop(weights, attn_drop, generator))


def _mix(table: Float[Tensor, "H S"], maps: Float[Tensor, "B H N M"]) -> Float[Tensor, "B S N M"]:
    """sum_h table[h, s] maps_h: one thin matrix product over all pairs."""
    # a broadcast product would copy the maps
    return torch.bmm(table.mT.expand(len(maps), -1, -1), maps.flatten(2)).unflatten(-1, maps.shape[2:])


def talking_heads(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H M D"],
    v: Float[Tensor, "B G M Dv"],
    logit_mix: Float[Tensor, "H S"],
    weight_mix: Float[Tensor, "S G"],
    *,
    allowed: Bool[Tensor, "#B 1 #N M"] | None = None,
    attn_drop: float = 0.0,
    generator: Generator | None = None,
) -> Float[Tensor, "B G N Dv"]:
    """U v; arguments are those of :func:`mixed_weights`, and values of their own number of heads.

    Returns:
        One row per query and head of the values; 0 for a query that may look at nothing.

    Example:
        >>> q, k, v = (torch.randn(1, heads, 5, 4) for heads in (2, 2, 3))
        >>> talking_heads(q, k, v, torch.randn(2, 6), torch.randn(6, 3)).shape
        torch.Size([1, 3, 5, 4])
    """
    weigh = partial(_weigh, attn_drop=attn_drop, generator=generator)
    numbers = len(q) * logit_mix.shape[1] * k.shape[2]
    return by_rows(weigh, (q, allowed), (k, v, logit_mix, weight_mix), numbers, again=not attn_drop)


def _weigh(
    q: Tensor, allowed: Tensor | None, k: Tensor, v: Tensor, logit_mix: Tensor, weight_mix: Tensor, **dropout: Any
) -> Tensor:
    """A run of queries."""
    return mixed_weights(q, k, logit_mix, weight_mix, allowed=allowed, **dropout) @ v


@register(
    "talking_heads",
    samples=[
        Sample(dim=12, num_heads=3),
        Sample(dim=12, num_heads=3, softmax_heads=5, causal=True, attn_drop=0.1),
    ],
)
class TalkingHeads(Core):
    """Owns the two tables of :func:`talking_heads`, through which the heads talk.

    As a start that changes nothing in a trained multi-head layer, set both tables to the identity.

    Args:
        num_heads: H, of queries, keys and values.
        softmax_heads: S, how many maps go through the softmax; H by default.
        causal: no query sees a later key; with N != M the last query stands at the last key.
        attn_drop: dropout on the weights before they are mixed, in training.
        device, dtype: of the tables.

    Raises:
        ValueError: no heads, or other heads than it was made for.
        UnsupportedError: streaming without ``causal=True``.
    """

    card = Card(
        title="Talking-heads attention",
        paper="arXiv:2003.02436",
        year=2020,
        family="softmax",
        data="sequence",
        causal="strict",
        cross=True,
        streaming=True,
        smooth=True,
        stochastic=("dropout",),
        cost="N^2 H",
        summary="Heads share what they see before and after the softmax: better from many small heads, but no flash.",
        formula="(softmax((q k^T / sqrt(D)) mixed over heads) mixed over heads) v",
    )

    def __init__(
        self,
        num_heads: int,
        softmax_heads: int | None = None,
        causal: bool = False,
        *,
        attn_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        softmax_heads = num_heads if softmax_heads is None else softmax_heads
        if min(num_heads, softmax_heads) < 1:
            raise ValueError(f"num_heads={num_heads}, softmax_heads={softmax_heads}: numbers of heads must be positive")
        self.num_heads, self.causal, self.attn_drop = num_heads, causal, attn_drop
        self.logit_mix = nn.Parameter(torch.empty(num_heads, softmax_heads, device=device, dtype=dtype))
        self.weight_mix = nn.Parameter(torch.empty(softmax_heads, num_heads, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal, of variance 1 / (heads that are heard)."""
        for table in self.parameters():
            nn.init.normal_(table, std=len(table) ** -0.5)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """Attend from q (B, H, N, D) to k (B, H, M, D) and v (B, H, M, Dv).

        Args:
            key_mask: Bool (B, M), True for real keys.
            query_mask: queries enter no statistic, so it has nothing to hide.
            generator: draws the dropout.

        Returns:
            (B, H, N, Dv).
        """
        allowed = visible(q.shape[-2], k.shape[-2], key_mask, causal=self.causal, device=q.device)
        return self._attend(q, k, v, allowed, generator)

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
            raise UnsupportedError("talking_heads streams only with causal=True: here every query sees all keys")
        return empty_cache(batch, num_kv_heads, head_dim, value_dim, static=static, device=device, dtype=dtype)

    def stream(
        self, q: Tensor, k: Tensor, v: Tensor, memory: KeyValueCache | StaticCache
    ) -> tuple[Tensor, KeyValueCache | StaticCache]:
        """Continue with one token or many: -> (out, the new memory)."""
        grown, allowed = grow(memory, k, v)
        return self._attend(q, grown.key.to(q.dtype), grown.value.to(q.dtype), allowed), grown

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, generator: Generator | None = None
    ) -> Tensor:
        if q.shape[1] != self.num_heads or k.shape[1] != self.num_heads or v.shape[1] != self.num_heads:
            raise ValueError(
                f"q, k and v have {q.shape[1]}, {k.shape[1]} and {v.shape[1]} heads, but this TalkingHeads was built "
                f"for num_heads={self.num_heads}"
            )
        rate = self.attn_drop * self.training
        return talking_heads(
            q, k, v, self.logit_mix, self.weight_mix, allowed=allowed, attn_drop=rate, generator=generator
        )

    def extra_repr(self) -> str:
        heads, softmax_heads = self.logit_mix.shape
        return f"num_heads={heads}, softmax_heads={softmax_heads}, causal={self.causal}"
