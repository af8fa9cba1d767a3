"""Performer: softmax attention estimated without bias by random features, in linear time (FAVOR+).

Choromanski et al. 2020, arXiv:2009.14794, eq. 4 to 7 and Lemma 1. With x~ = x / D^(1/4) and m random rows W::

    phi(x) = m^(-1/2) exp(W x~ - |x~|^2 / 2)                 E[phi(q) . phi(k)] = exp(q . k / sqrt(D))
    y_i = sum_j phi(q_i) . phi(k_j) v_j / sum_j phi(q_i) . phi(k_j)

where j runs over the real keys, in the causal case over those up to i. The rows are orthogonal in blocks of D, with
the norms of Gaussian vectors. Other kinds of features: :mod:`regard.ops.features`.

Departures from the code of the authors and its ports: they add 1e-4 to every feature and take the largest exponent
over all keys, so a later key changes earlier outputs; here the exponents cancel exactly, and causal means causal. Their
padded keys stay in the denominator, here they leave both sums. A query that sees no key gives 0. A row is also 0 where
all its products of features underflow, which takes queries and keys far longer than any softmax can use.

Time O((N + M) m D) a head, memory O(m D) beside inputs and outputs, in training too. Its error grows with |q| |k|, and
falls with sqrt(m).
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from regard.ops.feature_attention import feature_attention
from regard.ops.feature_sums import FeatureSums
from regard.ops.features import Norms, RandomKind, orthogonal_rows
from regard.registry import Card, Core, Sample, UnsupportedError, register


def performer_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H M D"],
    v: Float[Tensor, "B H M Dv"],
    projection: Float[Tensor, "#H W D"],
    *,
    features: RandomKind = "softmax",
    causal: bool = False,
    key_mask: Bool[Tensor, "B M"] | None = None,
    before: FeatureSums | None = None,
) -> tuple[Float[Tensor, "B H N Dv"], FeatureSums]:
    """sum_j phi(q_i) . phi(k_j) v_j / sum_j phi(q_i) . phi(k_j), over all real keys or, if causal, those up to query i.

    Args:
        q, k, v: queries, keys and values, heads first.
        projection: the random rows, one set for all heads or one for each; "symmetric" makes 2 features of each.
        features: "softmax", "symmetric" or "relu".
        causal: the last query stands at the last key; earlier ones see one key less each. Needs M >= N.
        key_mask: True for real keys; the others leave both sums.
        before: the sums over keys that come before these.

    Returns:
        One row per query, 0 where it sees no key; and the sums over all keys so far, from which to continue.

    Raises:
        ValueError: causal with fewer keys than queries, or rows that are as wide as no query.

    Example:
        >>> q = k = v = torch.randn(1, 2, 5, 4)
        >>> out, memory = performer_attention(q, k, v, orthogonal_rows(1, 6, 4), causal=True)
        >>> out.shape, memory.state.shape
        (torch.Size([1, 2, 5, 4]), torch.Size([1, 2, 6, 5]))
    """
    n, m = q.shape[-2], k.shape[-2]
    if causal and m < n:
        raise ValueError(f"causal performer attention of {n} queries needs at least as many keys, got {m}")
    if projection.shape[-1] != q.shape[-1] or len(projection) not in (1, q.shape[1]):
        raise ValueError(
            f"the projection has shape {tuple(projection.shape)}, but queries have {q.shape[1]} heads of width "
            f"{q.shape[-1]}: it must be (1 or {q.shape[1]}, rows, {q.shape[-1]})"
        )
    if before is None:
        (batch, heads, _, width), count = v.shape, projection.shape[1] * (2 if features == "symmetric" else 1)
        before = FeatureSums.start(batch, heads, count, width, device=v.device, dtype=v.dtype)
    return feature_attention(q, k, v, projection, before, kind=features, causal=causal, key_mask=key_mask)


@register(
    "performer",
    samples=[
        Sample(dim=12, num_heads=3),
        Sample(dim=12, num_heads=3, causal=True),
        Sample(dim=16, num_heads=4, num_kv_heads=2, causal=True, features="symmetric", per_head=True),
        Sample(dim=12, num_heads=3, causal=True, features="relu", num_features=7),
    ],
)
class Performer(Core):
    """Owns the random rows of :func:`performer_attention`, the buffer ``projection``, which is saved with the weights.

    Nothing redraws them by itself. In training the paper does so every 1000 steps: call :meth:`redraw`.

    Args:
        head_dim: D.
        num_features: m, int(D ln D) by default.
        features: "softmax", "symmetric" (two features a row) or "relu", another kernel that trains well.
        causal: no query sees a later key.
        norms: of the rows, see :func:`regard.ops.features.orthogonal_rows`.
        per_head: rows of its own for each of ``num_heads``, instead of the same for all.
        num_heads: H, needed for ``per_head``.
        device, dtype: of the rows.

    Raises:
        ValueError: an odd number of symmetric features, ``per_head`` without ``num_heads``, an unknown kind, or causal
            with fewer keys than queries.
        UnsupportedError: streaming without ``causal=True``.
    """

    card = Card(
        title="Performer",
        paper="arXiv:2009.14794",
        year=2020,
        family="linear",
        data="sequence",
        causal="strict",
        cross=True,
        streaming=True,
        smooth=True,
        refuses={"attn_drop": "it never forms weights that could be dropped"},
        cost="N m D",
        summary="The softmax itself, estimated in linear time: the nearest to a model that was trained with softmax.",
        formula="phi(q)^T sum_j phi(k_j) v_j^T / phi(q)^T sum_j phi(k_j), phi(x) = exp(W x~ - |x~|^2 / 2) / sqrt(m)",
    )

    projection: Tensor
    features: RandomKind
    norms: Norms

    def __init__(
        self,
        head_dim: int,
        num_features: int | None = None,
        features: RandomKind = "softmax",
        causal: bool = False,
        *,
        norms: Norms = "chi",
        per_head: bool = False,
        num_heads: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if features not in ("softmax", "symmetric", "relu"):
            raise ValueError(f'features={features!r} is none of "softmax", "symmetric" and "relu"')
        if norms not in ("chi", "sqrt"):
            raise ValueError(f'norms={norms!r} is neither "chi" nor "sqrt"')
        if per_head and num_heads is None:
            raise ValueError("per_head=True draws rows for each head: pass num_heads")
        signs = 2 if features == "symmetric" else 1
        if num_features is None:
            num_features = max(head_dim, int(head_dim * math.log(head_dim))) // signs * signs or signs
        if num_features < 1 or num_features % signs:
            raise ValueError(f"num_features={num_features}: {features} features are a positive multiple of {signs}")
        self.features, self.causal, self.norms, self.num_features = features, causal, norms, num_features
        shape = (num_heads or 1 if per_head else 1, num_features // signs, head_dim)
        self.register_buffer("projection", torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the rows."""
        self.redraw()

    @torch.no_grad()
    def redraw(self, generator: Generator | None = None) -> None:
        """Draw other rows, in place: in training every 1000 steps or so.

        All processes of a distributed run need the same rows: give each a generator with the same seed. A memory is
        worth nothing after a redraw, so none may come between a prompt and its continuation.
        """
        device = self.projection.device
        rows = orthogonal_rows(*self.projection.shape, norms=self.norms, generator=generator, device=device)
        self.projection.copy_(rows)

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
        """Attend; shapes as in :func:`performer_attention` (``query_mask`` is idle: queries enter no sum)."""
        return self._attend(q, k, v, key_mask=key_mask)[0]

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
    ) -> FeatureSums:
        """Sums over nothing; their size is constant, so ``static`` has nothing to reserve."""
        if not self.causal:
            raise UnsupportedError("performer streams only with causal=True: here every query sees all keys")
        return FeatureSums.start(batch, num_kv_heads, self.num_features, value_dim, device=device, dtype=dtype)

    def stream(self, q: Tensor, k: Tensor, v: Tensor, memory: FeatureSums) -> tuple[Tensor, FeatureSums]:
        """Continue with one token or many: -> (out, the new memory)."""
        return self._attend(q, k, v, before=memory)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, FeatureSums]:
        return performer_attention(q, k, v, self.projection, features=self.features, causal=self.causal, **options)

    def extra_repr(self) -> str:
        return f"{self.num_features} {self.features} features, causal={self.causal}, norms={self.norms}"
