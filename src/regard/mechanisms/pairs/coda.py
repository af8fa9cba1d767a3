"""Compositional de-attention: weights in [-1, 1] that add a token, subtract it or leave it out; no softmax.

Tay et al. 2019, "Compositional De-Attention Networks", NeurIPS, section 2. Of two sequences a and b::

    E_ij = alpha F_E(a_i) . F_E(b_j)               similarity
    N_ij = -beta ||F_N(a_i) - F_N(b_j)||_1         dissimilarity, 0 or less
    M    = tanh(E) g(N)                            g says whether, tanh(E) with which sign
    A'   = M b      B' = M^T a

with a gate g that is one of::

    scaled      2 sigmoid(N)             in (0, 1]
    plain       sigmoid(N)               in (0, 1/2]: outputs are half as large
    centered    sigmoid(N - mean(N))     in (0, 1), the mean over all pairs of real tokens of a sequence and head

and, on request, E - mean(E) instead of E. In multi-head attention F_E and F_N are the projections of queries and keys,
alpha = beta = 1 / sqrt(D), and each head gives y = M v.

A masked pair has weight 0 and enters no mean. Rows are not normalised: they grow with the number of keys, so put a norm
behind. "scaled" is the default, as neither padding nor the future moves it; a mean depends on every pair of a sequence.

Time O(N M D) twice a head: once as a matrix product and once, several times slower, for the distances. Queries go
through in runs of which a map has 16 MB (training at N = M = 4096, D = 32 with two heads took 0.6 GB, the differences
would be 4 GB); memory is O(N M) for what is centered, in training with dropout, and compiled. The N M D differences are
never stored (:mod:`regard.ops.distances`).
"""

from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.memory import KeyValueCache, StaticCache
from regard.ops.caches import empty_cache, grow
from regard.ops.distances import manhattan
from regard.ops.dropout import drop
from regard.ops.row_runs import by_rows
from regard.ops.weights import visible
from regard.pair_layers import WeighingPairLayer
from regard.registry import Card, Core, Sample, UnsupportedError, register

Gate = Literal["scaled", "plain", "centered"]


def compositional_weights(
    similar: tuple[Float[Tensor, "*B N K"], Float[Tensor, "*B M K"]],
    apart: tuple[Float[Tensor, "*B N L"], Float[Tensor, "*B M L"]],
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    gate: Gate = "scaled",
    center_scores: bool = False,
    allowed: Bool[Tensor, "..."] | None = None,
) -> Float[Tensor, "*B N M"]:
    """M, in float32 at least; see the head of this file.

    Args:
        similar: F_E of both sequences.
        apart: F_N of both sequences.
        alpha, beta: factors of E and N.
        gate, center_scores: which g, and whether E loses its mean.
        allowed: True for pairs that take part, of a shape that broadcasts to M.

    Example:
        >>> a, b = torch.randn(2, 5, 4), torch.randn(2, 7, 4)
        >>> m = compositional_weights((a, b), (a, b))
        >>> m.shape, bool((m.abs() <= 1).all())
        (torch.Size([2, 5, 7]), True)
    """
    precise = torch.promote_types(similar[0].dtype, torch.float32)
    scores = ((alpha * similar[0]) @ similar[1].mT).to(precise)
    nearness = -beta * manhattan(apart[0].to(precise), apart[1].to(precise))
    if center_scores:
        scores = scores - _mean(scores, allowed)
    if gate == "centered":
        nearness = nearness - _mean(nearness, allowed)
    weights = scores.tanh() * nearness.sigmoid()
    if gate == "scaled":
        weights = 2 * weights
    return weights if allowed is None else weights.masked_fill(~allowed, 0.0)


def _mean(values: Float[Tensor, "*B N M"], allowed: Bool[Tensor, "..."] | None) -> Float[Tensor, "*B 1 1"]:
    """Over the pairs that take part."""
    if allowed is None:
        return values.mean((-2, -1), keepdim=True)
    allowed = allowed.expand(*allowed.shape[:-2], *values.shape[-2:])
    count = allowed.sum((-2, -1), keepdim=True).clamp(min=1)
    return values.masked_fill(~allowed, 0.0).sum((-2, -1), keepdim=True) / count


def compositional_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H M D"],
    v: Float[Tensor, "B H M Dv"],
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    gate: Gate = "scaled",
    center_scores: bool = False,
    allowed: Bool[Tensor, "#B 1 #N M"] | None = None,
    attn_drop: float = 0.0,
    generator: Generator | None = None,
) -> Float[Tensor, "B H N Dv"]:
    """M v, with M from the queries and keys of each head; alpha and beta multiply 1 / sqrt(D).

    Args:
        q, k, v: queries, keys and values, heads first.
        alpha, beta, gate, center_scores: as in :func:`compositional_weights`.
        allowed: True for pairs that take part, the same for all heads.
        attn_drop, generator: dropout on the weights, and what draws it.

    Returns:
        One row per query, 0 where it may look at nothing.

    Example:
        >>> q, k, v = torch.randn(3, 1, 2, 5, 4)
        >>> compositional_attention(q, k, v).shape
        torch.Size([1, 2, 5, 4])
    """
    scale = q.shape[-1] ** -0.5
    formed: dict[str, Any] = {"alpha": alpha * scale, "beta": beta * scale, "gate": gate}
    weigh = partial(_weigh, attn_drop=attn_drop, generator=generator, center_scores=center_scores, **formed)
    if center_scores or gate == "centered":
        return weigh(q, allowed, k, v)
    return by_rows(weigh, (q, allowed), (k, v), len(k) * k.shape[1] * k.shape[2], again=not attn_drop)


def _weigh(
    q: Tensor,
    allowed: Tensor | None,
    k: Tensor,
    v: Tensor,
    *,
    attn_drop: float,
    generator: Generator | None,
    **formed: Any,
) -> Tensor:
    """A run of queries."""
    weights = compositional_weights((q, k), (q, k), allowed=allowed, **formed).to(v.dtype)
    return drop(weights, attn_drop, generator) @ v


@register(
    "coda",
    samples=[
        Sample(dim=12, num_heads=3),
        Sample(dim=12, num_heads=3, gate="plain", causal=True, attn_drop=0.1),
        Sample(dim=12, num_heads=2, gate="centered", center_scores=True),
    ],
)
class CoDA(Core):
    """:func:`compositional_attention` in place of the softmax of multi-head attention; it has no parameters.

    Args:
        gate: "scaled", "plain" or "centered"; see the head of this file.
        center_scores: the similarities lose their mean as well.
        causal: no query sees a later key; with N != M the last query stands at the last key.
        alpha, beta: temperatures of similarity and dissimilarity, beside 1 / sqrt(D).
        attn_drop: dropout on the weights, in training.

    Raises:
        ValueError: an unknown gate, or temperatures that are not positive.
        UnsupportedError: causal and centered, or streaming without ``causal=True``.
    """

    card = Card(
        title="CoDA",
        paper="NeurIPS 2019",
        year=2019,
        family="pairs",
        data="sequence",
        causal="strict",
        cross=True,
        streaming=True,
        smooth=True,
        stochastic=("dropout",),
        cost="N^2",
        summary="Weights in [-1, 1]: a token is added, subtracted or left out. Needs a norm behind; slow.",
        formula="tanh(q k^T / sqrt(D)) 2 sigmoid(-||q - k||_1 / sqrt(D)) v",
    )

    def __init__(
        self,
        gate: Gate = "scaled",
        center_scores: bool = False,
        causal: bool = False,
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
        attn_drop: float = 0.0,
    ) -> None:
        super().__init__()
        _check(gate, alpha, beta)
        if causal and (center_scores or gate == "centered"):
            raise UnsupportedError(
                "coda cannot be causal and centered: the mean over all pairs has seen the future; take "
                'gate="scaled" or "plain" and center_scores=False'
            )
        self.gate: Gate = gate
        self.center_scores, self.causal, self.alpha, self.beta = center_scores, causal, alpha, beta
        self.attn_drop = attn_drop

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
            query_mask: Bool (B, N), True for real queries: the others enter no mean.
            generator: draws the dropout.

        Returns:
            (B, H, N, Dv).
        """
        allowed = visible(q.shape[-2], k.shape[-2], key_mask, causal=self.causal, device=q.device)
        if query_mask is not None and (self.center_scores or self.gate == "centered"):
            asking = query_mask[:, None, :, None]
            allowed = asking.expand(-1, -1, -1, k.shape[-2]) if allowed is None else asking & allowed
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
            raise UnsupportedError("coda streams only with causal=True: here every query sees all keys")
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
        formed: dict[str, Any] = {"alpha": self.alpha, "beta": self.beta, "gate": self.gate}
        rate = self.attn_drop * self.training
        return compositional_attention(
            q, k, v, center_scores=self.center_scores, allowed=allowed, attn_drop=rate, generator=generator, **formed
        )

    def extra_repr(self) -> str:
        return f"gate={self.gate!r}, center_scores={self.center_scores}, causal={self.causal}"


def _check(gate: str, alpha: float, beta: float) -> None:
    if gate not in get_args(Gate):
        raise ValueError(f"gate={gate!r} is none of {', '.join(get_args(Gate))}")
    if min(alpha, beta) <= 0:
        raise ValueError(f"alpha={alpha}, beta={beta}: temperatures must be positive")


class CompositionalAlignment(WeighingPairLayer):
    """A' = M b and B' = M^T a, the paper's first form: what each sequence hears of the other, for ESIM and its like.

    Both sequences pass the same linear maps, so both have C features. M is formed as a whole, O(N M) numbers.

    Args:
        dim: C.
        key_dim: K, the width of F_E and F_N; the default is C.
        shared: F_N is F_E.
        gate: "scaled", "plain" or "centered"; see the head of this file.
        center_scores: the similarities lose their mean as well.
        alpha, beta: temperatures of similarity and dissimilarity.
        attn_drop: dropout on the weights, in training.

    Raises:
        ValueError: sizes or temperatures that are not positive, or an unknown gate.

    Example:
        >>> layer = CompositionalAlignment(8)
        >>> a_new, b_new = layer(torch.randn(2, 5, 8), torch.randn(2, 7, 8))
        >>> a_new.shape, b_new.shape
        (torch.Size([2, 5, 8]), torch.Size([2, 7, 8]))
    """

    card = CoDA.card
    mechanism = "coda"

    def __init__(
        self,
        dim: int,
        key_dim: int | None = None,
        shared: bool = True,
        gate: Gate = "scaled",
        center_scores: bool = False,
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
        attn_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        key_dim = dim if key_dim is None else key_dim
        if min(dim, key_dim) < 1:
            raise ValueError(f"dim={dim}, key_dim={key_dim}: sizes must be positive")
        _check(gate, alpha, beta)
        self.dim = self.context_dim = dim
        self.gate: Gate = gate
        self.center_scores, self.alpha, self.beta, self.attn_drop = center_scores, alpha, beta, attn_drop
        self.similar = nn.Linear(dim, key_dim, device=device, dtype=dtype)
        self.apart = None if shared else nn.Linear(dim, key_dim, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """As torch draws linear maps."""
        for linear in (self.similar, self.apart):
            if linear is not None:
                linear.reset_parameters()

    def weights(
        self, a: Tensor, b: Tensor, key_mask: Tensor | None = None, query_mask: Tensor | None = None
    ) -> Float[Tensor, "B N M"]:
        """M, in float32 at least; masked pairs have weight 0 and enter no mean."""
        similar = self.similar(a), self.similar(b)
        apart = similar if self.apart is None else (self.apart(a), self.apart(b))
        allowed = None if key_mask is None else key_mask[:, None]
        if query_mask is not None:
            allowed = query_mask[..., None] if allowed is None else query_mask[..., None] & allowed
            allowed = allowed.expand(-1, -1, b.shape[1])
        formed: dict[str, Any] = {"alpha": self.alpha, "beta": self.beta, "gate": self.gate}
        return compositional_weights(similar, apart, center_scores=self.center_scores, allowed=allowed, **formed)

    def meet(
        self,
        x: Tensor,
        context: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """A' (B, N, C) and B' (B, M, C)."""
        weights = self._dropped(x, context, key_mask, query_mask, generator)
        return weights @ context, weights.mT @ x

    def mix(
        self,
        x: Tensor,
        context: Tensor,
        values: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """M values, for the map of A'."""
        return self._dropped(x, context, key_mask, query_mask, generator)[:, None] @ values

    def _dropped(self, x: Tensor, context: Tensor, *masks: Any) -> Tensor:
        key_mask, query_mask, generator = masks
        weights = self.weights(x, context, key_mask, query_mask).to(x.dtype)
        return drop(weights, self.attn_drop * self.training, generator)

    def extra_repr(self) -> str:
        return f"gate={self.gate!r}, center_scores={self.center_scores}, attn_drop={self.attn_drop}"
