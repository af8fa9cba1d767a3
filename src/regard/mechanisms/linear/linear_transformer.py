"""Linear attention: softmax replaced by a positive feature map, so that attention is two matrix products.

Katharopoulos et al. 2020, "Transformers are RNNs", arXiv:2006.16236, eq. 4 to 6 (all queries see all keys), 8 to 12
(causal) and 16 to 20 (token by token)::

    phi(x) = elu(x) + 1
    y_i = phi(q_i)^T S / (phi(q_i)^T z + eps)        S = sum_j phi(k_j) v_j^T        z = sum_j phi(k_j)

where j runs over the real keys, in the causal case over those up to i: there S and z are running sums, and all that
decoding has to remember. The scores are not scaled. eps = 1e-6 is the authors', the paper has none; it makes the
row of a query that sees no key 0. Where there are more keys than queries, the authors' causal code drops the last keys;
here the last query stands at the last key. Fewer keys than queries it reads out of bounds; here it is refused.

Time O((N + M) D Dv) a head, causal O(M D Dv + N c (D + Dv)) in chunks of c = 32 to 128; memory O(D Dv) beside
inputs and outputs, in training too.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from regard.memory import LinearState
from regard.ops.feature_attention import feature_attention
from regard.ops.feature_sums import FeatureSums
from regard.registry import Card, Core, Sample, UnsupportedError, register


def linear_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H M D"],
    v: Float[Tensor, "B H M Dv"],
    *,
    causal: bool = False,
    key_mask: Bool[Tensor, "B M"] | None = None,
    eps: float = 1e-6,
    before: LinearState | None = None,
) -> tuple[Float[Tensor, "B H N Dv"], LinearState]:
    """phi(q_i)^T S / (phi(q_i)^T z + eps), with S and z over all real keys or, if causal, over those up to query i.

    Args:
        q, k, v: queries, keys and values, heads first.
        causal: the last query stands at the last key; earlier ones see one key less each. Needs M >= N.
        key_mask: True for real keys; the others leave both sums.
        eps: added to the denominator.
        before: the sums over keys that come before these.

    Returns:
        One row per query, 0 where it sees no key; and the sums over all keys so far, from which to continue.

    Raises:
        ValueError: causal with fewer keys than queries.

    Example:
        >>> q = k = v = torch.randn(1, 2, 5, 4)
        >>> out, memory = linear_attention(q, k, v, causal=True)
        >>> out.shape, memory.state.shape
        (torch.Size([1, 2, 5, 4]), torch.Size([1, 2, 4, 4]))
    """
    n, m = q.shape[-2], k.shape[-2]
    if causal and m < n:
        raise ValueError(f"causal linear attention of {n} queries needs at least as many keys, got {m}")
    batch, heads, _, width = k.shape
    if before is None:
        before = LinearState.start(batch, heads, width, v.shape[-1], device=k.device, dtype=k.dtype)
    # the operator keeps the normaliser as one more column of the state, and an exponent, 0 for these features
    sums = FeatureSums(
        torch.cat((before.state, before.normaliser[..., None]), -1), before.state.new_zeros(batch, heads)
    )
    no_rows = q.new_empty(1, 0, width)
    out, sums = feature_attention(q, k, v, no_rows, sums, kind="elu", causal=causal, key_mask=key_mask, eps=eps)
    # contiguous, as the first memory is: a compiled step is compiled once
    return out, LinearState(sums.state[..., :-1].contiguous(), sums.state[..., -1].contiguous())


@register(
    "linear_transformer",
    samples=[
        Sample(dim=12, num_heads=3),
        Sample(dim=12, num_heads=3, causal=True),
        Sample(dim=16, num_heads=4, num_kv_heads=2, causal=True),
    ],
)
class LinearTransformer(Core):
    """The module around :func:`linear_attention`; it has no parameters.

    Args:
        causal: no query sees a later key.
        eps: added to the denominator.

    Raises:
        ValueError: causal with fewer keys than queries.
        UnsupportedError: streaming without ``causal=True``.
    """

    card = Card(
        title="Linear Transformer",
        paper="arXiv:2006.16236",
        year=2020,
        family="linear",
        data="sequence",
        causal="strict",
        cross=True,
        streaming=True,
        smooth=True,
        refuses={"attn_drop": "it never forms weights that could be dropped"},
        cost="N D^2",
        summary="Linear time in training and a state of constant size in decoding, for some loss of sharpness.",
        formula="phi(q)^T sum_j phi(k_j) v_j^T / (phi(q)^T sum_j phi(k_j) + eps), phi = elu + 1",
    )

    def __init__(self, causal: bool = False, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.causal, self.eps = causal, eps

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
        """Attend; shapes as in :func:`linear_attention` (``query_mask`` is idle: queries enter no sum)."""
        return linear_attention(q, k, v, causal=self.causal, key_mask=key_mask, eps=self.eps)[0]

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
        if not self.causal:
            raise UnsupportedError("linear_transformer streams only with causal=True: here every query sees all keys")
        return LinearState.start(batch, num_kv_heads, head_dim, value_dim, device=device, dtype=dtype)

    def stream(self, q: Tensor, k: Tensor, v: Tensor, memory: LinearState) -> tuple[Tensor, LinearState]:
        """Continue with one token or many: -> (out, the new memory)."""
        return linear_attention(q, k, v, causal=True, eps=self.eps, before=memory)

    def extra_repr(self) -> str:
        return f"causal={self.causal}, eps={self.eps}"
