"""Additive attention: a small network scores each word of the source against what asks.

Bahdanau et al. 2014, "RNNsearch", arXiv:1409.0473, section 3.1 and appendix A.1.2. For a query s and annotations h_j::

    e_j = v . tanh(W_a s + U_a h_j)        alpha = softmax_j(e_j)        c = sum_j alpha_j h_j

Query and annotations may differ in width; n' units lie between them. In the paper s is the state of the decoder before
its step (Luong asks with the one after): see :class:`regard.models.RNNsearch`. v starts at 0, so attention starts
uniform, and W_a and U_a get no gradient in the first step. A query without any word gets c = 0.

U_a h_j is made once a sentence. Time is O(N M n'); memory is O(N M), because the tanh of all pairs is computed some
rows at a time, and again for the gradient.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.ops.additive_scores import additive_scores
from regard.ops.sparsemax import sparsemax_where
from regard.ops.weights import softmax_where
from regard.pair_layers import WeighingPairLayer
from regard.registry import Card, Sample, register


def additive_weights(
    query: Float[Tensor, "B N P"],
    key: Float[Tensor, "B M P"],
    vector: Float[Tensor, " P"],
    key_mask: Bool[Tensor, "B M"] | None = None,
    *,
    sparse: bool = False,
) -> Float[Tensor, "B N M"]:
    """softmax_j(v . tanh(q_i + k_j)) over real words, in float32 at least; 0 where there is none.

    Args:
        query, key: W_a s and U_a h.
        vector: v.
        key_mask: True for real words.
        sparse: sparsemax instead of softmax.

    Example:
        >>> additive_weights(torch.zeros(1, 1, 3), torch.randn(1, 2, 3), torch.zeros(3)).tolist()
        [[[0.5, 0.5]]]
    """
    scores = additive_scores(query, key, vector)
    allowed = None if key_mask is None else key_mask[:, None]
    if sparse:
        return sparsemax_where(scores, allowed)
    return softmax_where(scores[:, None], None if allowed is None else allowed[:, None])[:, 0]


@register(
    "bahdanau",
    samples=[
        Sample(dim=8),
        Sample(dim=8, context_dim=6, hidden_dim=5, normalised=True),
        Sample(dim=8, query_bias=True, joined=True),
    ],
)
class Bahdanau(WeighingPairLayer):
    """What each query (B, N, C) has seen of its context (B, M, C'): c (B, N, C'); see the head of this file.

    Args:
        dim: C, of what asks.
        context_dim: C', of the annotations; None: C.
        hidden_dim: n'; None: C.
        normalised: v is g v / ||v||, with a learned g that starts at 1 / sqrt(n') and a bias inside the tanh (as in
            TensorFlow's seq2seq; weight normalisation of Salimans and Kingma 2016).
        query_bias: a bias inside the tanh, as in OpenNMT.
        joined: return W_o [c; s] + b_o (B, N, C) instead of c, as in OpenNMT.
        sparse: sparsemax instead of softmax, as OpenNMT has it.

    Example:
        >>> layer = Bahdanau(8, context_dim=6)
        >>> layer(torch.randn(2, 5, 8), torch.randn(2, 7, 6)).shape
        torch.Size([2, 5, 6])
    """

    card = Card(
        title="Additive attention (RNNsearch)",
        paper="arXiv:1409.0473",
        year=2014,
        family="pairs",
        data="pair",
        cross=True,
        smooth=True,
        refuses={"causal": "it looks at another sequence; its decoder is what goes from left to right"},
        cost="N M n'",
        summary="The original soft alignment: a small network scores every pair, whatever the widths of both sides.",
        formula="sum over j of softmax_j(v . tanh(W_a s + U_a h_j)) h_j",
    )

    def __init__(
        self,
        dim: int,
        context_dim: int | None = None,
        *,
        hidden_dim: int | None = None,
        normalised: bool = False,
        query_bias: bool = False,
        joined: bool = False,
        sparse: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.context_dim = dim, dim if context_dim is None else context_dim
        self.normalised, self.sparse = normalised, sparse
        hidden = dim if hidden_dim is None else hidden_dim
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.query_proj = nn.Linear(dim, hidden, bias=query_bias or normalised, **factory)
        self.key_proj = nn.Linear(self.context_dim, hidden, bias=False, **factory)
        self.vector = nn.Linear(hidden, 1, bias=False, **factory)
        self.gain = nn.Parameter(torch.empty(1, **factory)) if normalised else None
        self.out_proj = nn.Linear(self.context_dim + dim, dim, **factory) if joined else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """W_a and U_a N(0, 0.001^2), v at 0, or N(0, 0.01^2) where it gives a direction; W_o N(0, 0.01^2), biases 0."""
        nn.init.normal_(self.query_proj.weight, std=0.001)
        nn.init.normal_(self.key_proj.weight, std=0.001)
        nn.init.zeros_(self.vector.weight)
        if self.gain is not None:
            nn.init.normal_(self.vector.weight, std=0.01)
            nn.init.constant_(self.gain, self.vector.in_features**-0.5)
        if self.out_proj is not None:
            nn.init.normal_(self.out_proj.weight, std=0.01)
        for linear in (self.query_proj, self.out_proj):
            if linear is not None and linear.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
                nn.init.zeros_(linear.bias)

    def weights(
        self, x: Float[Tensor, "B N C"], keys: Float[Tensor, "B M P"], *, key_mask: Tensor | None = None
    ) -> Float[Tensor, "B N M"]:
        """alpha of each query, in float32 at least.

        Args:
            x: what asks.
            keys: U_a h, ``key_proj`` of the context; a decoder makes them once.
            key_mask: Bool (B, M), True for real words.
        """
        vector = self.vector.weight[0]
        if self.gain is not None:
            vector = self.gain * vector / vector.norm()
        return additive_weights(self.query_proj(x), keys, vector, key_mask, sparse=self.sparse)

    def meet(
        self,
        x: Tensor,
        context: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """All queries at once; see :class:`regard.pair_layers.PairLayer`."""
        seen = self.weights(x, self.key_proj(context), key_mask=key_mask).to(context.dtype) @ context
        return seen if self.out_proj is None else self.out_proj(torch.cat((seen, x), -1))

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
        """c of other values."""
        weights = self.weights(x, self.key_proj(context), key_mask=key_mask)
        return weights[:, None].to(values.dtype) @ values

    def extra_repr(self) -> str:
        return f"dim={self.dim}, context_dim={self.context_dim}, normalised={self.normalised}"
