"""Quasi-attention: a context adds to the softmax a second map of its own, which may also subtract.

Wu & Ong 2020, "Context-Guided BERT for Targeted Aspect-Based Sentiment Analysis", arXiv:2010.07523. Every token x_i
comes with a context c_i, such as what is asked about it. In each head, with q, k, v from x and cq, ck from c::

    A_ij = softmax_j(q_i . k_j / sqrt(D)) + lambda_i sigmoid(cq_i . ck_j / sqrt(D))        y = A v        (quasi)
    lambda_i = 1 - lq_i - lk_i                                            in [-1, 1]
    lq_i = sigmoid(w_1 . cq_i + w_2 . q_i + b)      lk_i = sigmoid(w_3 . ck_i + w_4 . k_i + b')

A lies in [-1, 2], and its rows do not sum to 1. The plain variant mixes the context into queries and keys instead::

    q' = (1 - lq) q + lq cq      k' = (1 - lk) k + lk ck      y = softmax(q' k'^T / sqrt(D)) v            (mixed)

where the context is cut into heads first and mapped by one D x D matrix for all of them. The heads share the w.

As in the authors' code lambda belongs to the query alone: lk is taken at i, not at the key j. ``gate="outer"`` takes it
at j, lambda_ij = 1 - lq_i - lk_j, an extension of ours. Masked pairs are 0 in both maps; both can be causal.

Time O(N^2 D) for each of the two maps, which go through in runs of queries of 16 MB; compiled, or in training with
dropout, memory is O(N^2). "mixed" is an exact softmax for any engine.
"""

from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.attention import attend
from regard.layers import head_width
from regard.ops.dropout import drop
from regard.ops.masks import admit_one_sequence, check_tokens, check_values, hide, hide_rows
from regard.ops.row_runs import by_rows
from regard.ops.weights import softmax_where, visible
from regard.patterns import Causal
from regard.registry import Card, Layer, Sample, UnsupportedError, register

Kind = Literal["quasi", "mixed"]
Gate = Literal["row", "outer"]


def quasi_weights(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H M D"],
    cq: Float[Tensor, "B H N D"],
    ck: Float[Tensor, "B H M D"],
    lam: Float[Tensor, "B H N #M"],
    *,
    allowed: Bool[Tensor, "#B 1 #N M"] | None = None,
) -> tuple[Float[Tensor, "B H N M"], Float[Tensor, "B H N M"]]:
    """The two parts of A: softmax(q k^T / sqrt(D)) and lambda sigmoid(cq ck^T / sqrt(D)), in float32 at least.

    Args:
        q, k: queries and keys, heads first.
        cq, ck: those of the context.
        lam: lambda, for each query or for each pair.
        allowed: True for pairs that take part; the others are exactly 0 in both.

    Example:
        >>> q, k, cq, ck = torch.randn(4, 1, 2, 5, 3)
        >>> usual, quasi = quasi_weights(q, k, cq, ck, torch.full((1, 2, 5, 1), -1.0))
        >>> bool((usual > 0).all() and (quasi < 0).all())
        True
    """
    scale = q.shape[-1] ** -0.5
    usual = softmax_where((q * scale) @ k.mT, allowed)
    composed = ((cq * scale) @ ck.mT).to(usual.dtype).sigmoid()
    if allowed is not None:
        composed = composed.masked_fill(~allowed, 0.0)
    return usual, lam.to(usual.dtype) * composed


def quasi_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N Dv"],
    cq: Float[Tensor, "B H N D"],
    ck: Float[Tensor, "B H N D"],
    lq: Float[Tensor, "B H N 1"],
    lk: Float[Tensor, "B H N 1"],
    *,
    gate: Gate = "row",
    allowed: Bool[Tensor, "#B 1 #N N"] | None = None,
    attn_drop: float = 0.0,
    generator: Generator | None = None,
) -> Float[Tensor, "B H N Dv"]:
    """A v; see the head of this file.

    Args:
        q, k, v: of the tokens, heads first.
        cq, ck: of their contexts.
        lq, lk: what queries and keys say to the gate.
        gate: whether lk is taken at the query ("row") or at the key ("outer").
        allowed: True for pairs that take part.
        attn_drop, generator: dropout on A, and what draws it.

    Returns:
        One row per query, 0 where it may look at nothing.

    Example:
        >>> q, k, v, cq, ck = torch.randn(5, 1, 2, 4, 3)
        >>> half = torch.full((1, 2, 4, 1), 0.5)  # lambda = 0: the plain softmax
        >>> out = quasi_attention(q, k, v, cq, ck, half, half)
        >>> torch.allclose(out, (q @ k.mT / 3**0.5).softmax(-1) @ v, atol=1e-6)
        True
    """
    at_query, at_key = (1 - lq - lk, torch.zeros_like(lk.mT[..., :1])) if gate == "row" else (1 - lq, lk.mT)
    weigh = partial(_weigh, attn_drop=attn_drop, generator=generator)
    numbers = k.shape[0] * k.shape[1] * k.shape[2]
    return by_rows(weigh, (q, cq, at_query, allowed), (k, v, ck, at_key), numbers, again=not attn_drop)


def _weigh(
    q: Tensor,
    cq: Tensor,
    at_query: Tensor,
    allowed: Tensor | None,
    k: Tensor,
    v: Tensor,
    ck: Tensor,
    at_key: Tensor,
    *,
    attn_drop: float,
    generator: Generator | None,
) -> Tensor:
    """A run of queries."""
    usual, composed = quasi_weights(q, k, cq, ck, at_query - at_key, allowed=allowed)
    return drop((usual + composed).to(v.dtype), attn_drop, generator) @ v


def _with_context() -> dict[str, Tensor]:
    """Nine tokens, each with its context."""
    x, context = torch.randn(2, 2, 9, 12, generator=torch.Generator().manual_seed(0))
    return {"x": x, "context": context}


_ONE: dict[str, Any] = {"inputs": _with_context, "claims": {"data": "sequence"}}
"""What all samples share: x and the context are about the same tokens, so there is one length and one mask."""


@register(
    "quasi_attention",
    samples=[
        Sample(dim=12, num_heads=3, **_ONE),
        Sample(dim=12, num_heads=1, gate="outer", causal=True, attn_drop=0.1, **_ONE),
        Sample(dim=12, num_heads=2, kind="mixed", causal=True, **_ONE),
    ],
)
class QuasiAttention(Layer):
    """Self-attention under a context that comes with every token; see the head of this file.

    Args:
        dim, num_heads: C and H.
        context_dim: the width of the context, C by default.
        kind: "quasi" adds a gated map of the context, "mixed" mixes the context into queries and keys.
        gate: of "quasi", "row" as published or "outer".
        causal: no token sees a later one.
        attn_drop: dropout on A, and in "quasi" on cq and ck.
        proj_drop: dropout on the output.

    Raises:
        ValueError: sizes that do not fit, unknown choices, or no context.
        UnsupportedError: ``gate="outer"`` for "mixed", which has no lambda, or segments.

    Example:
        >>> layer = QuasiAttention(12, 3)
        >>> layer(torch.randn(2, 9, 12), torch.randn(2, 9, 12)).shape
        torch.Size([2, 9, 12])
    """

    card = Card(
        title="Quasi-attention",
        paper="arXiv:2010.07523",
        year=2020,
        family="pairs",
        data="pair",
        causal="strict",
        smooth=True,
        stochastic=("dropout",),
        refuses={"segments": "the tokens of a context belong to one sequence"},
        cost="N^2",
        summary="One text, many questions: what is asked adds a map that may subtract tokens from the softmax.",
        formula="(softmax(q k^T / sqrt(D)) + lambda sigmoid(cq ck^T / sqrt(D))) v, lambda in [-1, 1]",
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        context_dim: int | None = None,
        kind: Kind = "quasi",
        gate: Gate = "row",
        causal: bool = False,
        *,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        context_dim = dim if context_dim is None else context_dim
        head_dim = head_width(dim, num_heads)
        if kind not in get_args(Kind) or gate not in get_args(Gate):
            raise ValueError(f'kind={kind!r}, gate={gate!r}: choose "quasi" or "mixed", and "row" or "outer"')
        if kind == "mixed" and gate != "row":
            raise UnsupportedError(f'kind="mixed" has no lambda that gate={gate!r} could change')
        self.dim, self.num_heads, self.context_dim, self.head_dim = dim, num_heads, context_dim, head_dim
        self.causal, self.attn_drop = causal, attn_drop
        self.kind: Kind = kind
        self.gate: Gate = gate
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim, **factory) for _ in range(4))
        given, made = (context_dim, dim) if kind == "quasi" else (head_width(context_dim, num_heads), head_dim)
        self.context_q, self.context_k = (nn.Linear(given, made, **factory) for _ in range(2))
        self.gate_q, self.gate_cq, self.gate_k, self.gate_ck = (
            nn.Linear(head_dim, 1, bias=kind == "quasi", **factory) for _ in range(4)
        )
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Projections N(0, 0.02^2) without bias, as BERT's; gates N(0, 0.01^2), so lambda starts near 0.

        The maps of the context and the biases of the gates are drawn as torch draws them.
        """
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        for linear in (self.context_q, self.context_k):
            linear.reset_parameters()
        for linear in (self.gate_q, self.gate_cq, self.gate_k, self.gate_ck):
            linear.reset_parameters()
            nn.init.normal_(linear.weight, std=0.01)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        segments: Tensor | None = None,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Attend within x, guided by the context of each token.

        Args:
            x: (B, N, C).
            context: (B, N, C'), what comes with each token; one for all is ``c[:, None].expand(-1, N, -1)``.
            key_mask, query_mask: Bool (B, N), True for real tokens; each is the default for the other.
            segments: refused.
            generator: draws the dropout.
            return_aux: also return what else there is to tell: nothing.

        Returns:
            y (B, N, C), 0 for masked queries; with ``return_aux`` (y, {}).

        Raises:
            ValueError, TypeError: no context, or shapes or masks that do not fit.
            UnsupportedError: segments.
        """
        x, context, key_mask, query_mask = self._admit(x, context, key_mask, query_mask, segments)
        out = self._look(x, context, None, key_mask, generator)
        y = hide(self.proj_drop(self.out_proj(out.transpose(1, 2).flatten(2))), query_mask)
        return (y, {}) if return_aux else y

    def weigh(
        self,
        x: Tensor,
        values: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        segments: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """What A makes of other values, before the output projection.

        Args:
            x, context, key_mask, query_mask, segments, generator: as in ``forward``.
            values: (B or 1, H or 1, N, Dv), one for each token.

        Returns:
            (B, H, N, Dv), 0 for masked queries.
        """
        x, context, key_mask, query_mask = self._admit(x, context, key_mask, query_mask, segments)
        check_values(values, x.shape[0], self.num_heads, x.shape[1])
        values = values.to(x.dtype).expand(x.shape[0], self.num_heads, -1, -1)
        return hide_rows(self._look(x, context, values, key_mask, generator), query_mask)

    def gates(self, q: Tensor, k: Tensor, cq: Tensor, ck: Tensor) -> tuple[Tensor, Tensor]:
        """lq and lk (B, H, N, 1), of heads-first tokens and contexts."""
        lq = (self.gate_cq(cq) + self.gate_q(q)).sigmoid()
        return lq, (self.gate_ck(ck) + self.gate_k(k)).sigmoid()

    def project(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k, cq and ck, each (B, H, N, D)."""
        q, k = self._heads(self.q_proj(x)), self._heads(self.k_proj(x))
        if self.kind == "mixed":
            parts = context.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            return q, k, self.context_q(parts), self.context_k(parts)
        return q, k, self._heads(self.context_q(context)), self._heads(self.context_k(context))

    def _look(
        self, x: Tensor, context: Tensor, values: Tensor | None, key_mask: Tensor | None, generator: Generator | None
    ) -> Tensor:
        """A v (B, H, N, Dv), for the layer's own values or for others."""
        q, k, cq, ck = self.project(x, context)
        v = self._heads(self.v_proj(x)) if values is None else values
        rate = self.attn_drop * self.training
        if self.kind == "mixed":
            lq, lk = self.gates(q, k, cq, ck)
            q, k = torch.lerp(q, cq, lq), torch.lerp(k, ck, lk)
            pattern = Causal() if self.causal else None
            return attend(q, k, v, pattern, key_mask=key_mask, dropout_p=rate, generator=generator)
        cq, ck = drop(cq, rate, generator), drop(ck, rate, generator)
        lq, lk = self.gates(q, k, cq, ck)
        allowed = visible(x.shape[1], x.shape[1], key_mask, causal=self.causal, device=x.device)
        options: dict[str, Any] = {"gate": self.gate, "allowed": allowed, "attn_drop": rate, "generator": generator}
        return quasi_attention(q, k, v, cq, ck, lq, lk, **options)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _admit(
        self,
        x: Tensor,
        context: Tensor | None,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        segments: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Tokens and contexts with padding set to 0, and both masks."""
        if segments is not None:
            raise UnsupportedError("quasi_attention takes no segments: the tokens of a context belong to one sequence")
        if context is None:
            raise ValueError("quasi_attention is guided by a context: pass one of (batch, length, context_dim)")
        x, key_mask, query_mask = admit_one_sequence(
            "quasi_attention", x, self.dim, None, key_mask, query_mask, segments
        )
        check_tokens(context, self.context_dim, "context")
        if context.shape[:2] != x.shape[:2]:
            raise ValueError(
                f"context is of {tuple(context.shape[:2])} tokens and x of {tuple(x.shape[:2])}: each token has its own"
            )
        part = None if key_mask is None or query_mask is None else key_mask | query_mask
        return x, hide(context, part), key_mask, query_mask

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_heads={self.num_heads}, kind={self.kind!r}, gate={self.gate!r}, causal={self.causal}"
        )
