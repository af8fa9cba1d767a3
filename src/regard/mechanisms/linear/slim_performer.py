"""SLiM Performer: causal linear attention whose sums can be taken back, so that training keeps no activations.

Likhosherstov et al. 2020, arXiv:2012.11346, eq. 3 to 6. For features f of queries and keys, causal only::

    R_n = sum_{j <= n} f(k_j) v_j^T        r_n = sum_{j <= n} f(k_j)        y_n = R_n^T f(q_n) / (f(q_n) . r_n + 1e-16)

    elu        elu(x) + 1                      relu       relu(x)                      square     x^2
    softmax    exp(w . x~ - |x~|^2 / 2) for every random row w, x~ = x / D^(1/4); unbiased for exp(q . k / sqrt(D))

What came before some tokens is (R, r) after them minus their own terms (:func:`sums_before`). So a network of such
layers can be run backwards in time, a piece of the sequence after another, with nothing kept but the last sums:
:class:`regard.models.slim_performer.SlimPerformerLM` trains that way. Softmax features are taken as they are, not
relative to a maximum, for a maximum could not be taken back: in float32 they overflow where x~ of a query and of a key
both come near a row of length sqrt(D) and D is 80 or more.

Time O(N (m + c) D) a head for m features, in chunks of c = 64; the memory has m (D + 1) numbers.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from regard.memory import LinearState
from regard.ops.feature_attention import feature_attention
from regard.ops.feature_sums import FeatureSums
from regard.ops.features import orthogonal_rows
from regard.ops.scan import causal_products
from regard.registry import Card, Core, Sample, register

Kind = Literal["elu", "relu", "square", "softmax"]
EPS = 1e-16
"""The authors', added to every denominator: a query that meets nothing gives 0."""


def kernel_features(
    x: Float[Tensor, "B H T D"], kind: Kind = "elu", projection: Float[Tensor, "#H m D"] | None = None
) -> Float[Tensor, "B H T m"]:
    """f(x) of queries or keys, in float32 at least.

    Args:
        x: queries or keys, heads first.
        kind: which features; see the head of this file.
        projection: the random rows of "softmax", one set for all heads or one for each.

    Raises:
        ValueError: "softmax" without rows, or another kind with them.

    Example:
        >>> kernel_features(torch.tensor([[[[1.0, -2.0]]]]), "square")
        tensor([[[[1., 4.]]]])
    """
    if (kind == "softmax") != (projection is not None):
        given = "with" if kind != "softmax" else "without"
        raise ValueError(f"{kind} features {given} a projection: random rows are for softmax features, which need them")
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if projection is not None:
        x = x * x.shape[-1] ** -0.25
        return (x @ projection.to(x.dtype).mT - x.square().sum(-1, keepdim=True) / 2).exp()
    if kind == "square":
        return x.square()
    return F.relu(x) if kind == "relu" else F.elu(x) + 1


def slim_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N Dv"],
    projection: Float[Tensor, "#H m D"] | None = None,
    *,
    features: Kind = "elu",
    key_mask: Bool[Tensor, "B N"] | None = None,
    before: LinearState | None = None,
) -> tuple[Float[Tensor, "B H N Dv"], LinearState]:
    """R_n^T f(q_n) / (f(q_n) . r_n + 1e-16) over the keys up to n.

    Args:
        q, k, v: queries, keys and values, heads first.
        projection: the random rows of "softmax" features.
        features: which.
        key_mask: True for real keys; the others leave both sums.
        before: the sums over earlier keys.

    Returns:
        One row per query, 0 where it meets no key; and the sums after the last key, from which to continue.

    Raises:
        ValueError: not as many keys as queries, or rows that do not go with the features.

    Example:
        >>> q = k = v = torch.randn(1, 2, 5, 4)
        >>> out, memory = slim_attention(q, k, v)
        >>> out.shape, memory.state.shape
        (torch.Size([1, 2, 5, 4]), torch.Size([1, 2, 4, 4]))
    """
    if q.shape[-2] != k.shape[-2]:
        raise ValueError(f"{q.shape[-2]} queries and {k.shape[-2]} keys: slim_performer attends within one sequence")
    if before is None:
        width = k.shape[-1] if projection is None else projection.shape[-2]
        before = LinearState.start(len(k), k.shape[1], width, v.shape[-1], device=k.device, dtype=k.dtype)
    if features == "elu":  # there is an operator that keeps no features
        state = torch.cat((before.state, before.normaliser[..., None]), -1)
        sums, no_rows = FeatureSums(state, state.new_zeros(state.shape[:2])), q.new_empty(1, 0, q.shape[-1])
        out, sums = feature_attention(q, k, v, no_rows, sums, kind="elu", causal=True, key_mask=key_mask, eps=EPS)
        return out, LinearState(sums.state[..., :-1].contiguous(), sums.state[..., -1].contiguous())
    with torch.autocast(q.device.type, enabled=False):
        phi_k, values = _terms(k, v, projection, features, key_mask)
        out, total, after = causal_products(kernel_features(q, features, projection), phi_k, values, before)
        return (out / (total + EPS)[..., None]).to(q.dtype), after


def sums_before(
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N Dv"],
    after: LinearState,
    projection: Float[Tensor, "#H m D"] | None = None,
    *,
    features: Kind = "elu",
) -> LinearState:
    """What the sums were before these keys, from what they are after them: exact but for rounding.

    Args:
        k, v, projection, features: as for :func:`slim_attention`.
        after: what it returned.

    Example:
        >>> q = k = v = torch.randn(1, 2, 5, 4)
        >>> before = sums_before(k, v, slim_attention(q, k, v)[1])
        >>> torch.allclose(before.state, torch.zeros(1, 2, 4, 4), atol=1e-5)
        True
    """
    with torch.autocast(k.device.type, enabled=False):
        phi_k, values = _terms(k, v, projection, features)
        return LinearState(after.state - phi_k.mT @ values, after.normaliser - phi_k.sum(-2))


def _terms(
    k: Tensor, v: Tensor, projection: Tensor | None, features: Kind, key_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Features and values of keys; a masked key has features 0."""
    if key_mask is None:
        phi_k = kernel_features(k, features, projection)
    else:
        hidden = ~key_mask[:, None, :, None]
        k, v = k.masked_fill(hidden, 0.0), v.masked_fill(hidden, 0.0)
        phi_k = kernel_features(k, features, projection).masked_fill(hidden, 0.0)
    return phi_k, v.to(phi_k.dtype)


@register(
    "slim_performer",
    samples=[
        Sample(dim=12, num_heads=3),
        Sample(dim=12, num_heads=3, features="softmax", num_features=9),
        Sample(dim=12, num_heads=2, features="relu"),
        Sample(dim=12, num_heads=2, head_dim=5, features="square"),
    ],
)
class SlimPerformer(Core):
    """Around :func:`slim_attention`, always causal; of "softmax" features it owns the rows, the buffer ``projection``.

    Nothing redraws them by itself. In training the paper draws new ones for every step: call :meth:`redraw`.

    Args:
        num_heads, head_dim: shape of the queries.
        features: "elu", "relu", "square" or "softmax".
        num_features: m, of "softmax" only; D by default. Rows are orthogonal in blocks of D, with length sqrt(D).
        device, dtype: of the rows.

    Raises:
        ValueError: unknown features, or a number of them for another kind than "softmax".
    """

    card = Card(
        title="SLiM Performer",
        paper="arXiv:2012.11346",
        year=2020,
        family="linear",
        data="sequence",
        causal="strict",
        streaming=True,
        smooth=True,
        refuses={"attn_drop": "it never forms weights that could be dropped"},
        cost="N m D",
        summary="Linear attention trained backwards in time: with the activations of one piece of the sequence only.",
        formula="f(q_n)^T sum_{j <= n} f(k_j) v_j^T / (f(q_n)^T sum_{j <= n} f(k_j) + 1e-16)",
    )

    causal = True
    projection: Tensor | None

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        features: Kind = "elu",
        num_features: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if features not in ("elu", "relu", "square", "softmax"):
            raise ValueError(f'features={features!r} is none of "elu", "relu", "square" and "softmax"')
        if features != "softmax" and num_features is not None:
            raise ValueError(f"num_features={num_features}: {features} has as many features as a head is wide")
        self.features: Kind = features
        self.num_features = num_features or head_dim
        rows = torch.empty(num_heads, self.num_features, head_dim, device=device, dtype=dtype)
        self.register_buffer("projection", rows if features == "softmax" else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the rows, if there are any."""
        self.redraw()

    @torch.no_grad()
    def redraw(self, generator: Generator | None = None) -> None:
        """Draw other rows, in place, before a step of training; a memory is worth nothing afterwards."""
        if self.projection is not None:
            place = self.projection.device
            rows = orthogonal_rows(*self.projection.shape, norms="sqrt", generator=generator, device=place)
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
        """Attend; shapes as in :func:`slim_attention` (``query_mask`` is idle: queries enter no sum)."""
        return slim_attention(q, k, v, self.projection, features=self.features, key_mask=key_mask)[0]

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
    ) -> LinearState:
        """Sums over nothing; their size is constant, so ``static`` has nothing to reserve."""
        width = head_dim if self.projection is None else self.num_features
        return LinearState.start(batch, num_kv_heads, width, value_dim, device=device, dtype=dtype)

    def stream(self, q: Tensor, k: Tensor, v: Tensor, memory: LinearState) -> tuple[Tensor, LinearState]:
        """Continue with one token or many: -> (out, the new memory)."""
        return slim_attention(q, k, v, self.projection, features=self.features, before=memory)

    def rewind(self, k: Tensor, v: Tensor, memory: LinearState) -> LinearState:
        """The memory before these keys, from the one after them."""
        return sums_before(k, v, memory, self.projection, features=self.features)

    def extra_repr(self) -> str:
        return f"features={self.features!r}, num_features={self.num_features}"
