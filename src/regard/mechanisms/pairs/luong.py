"""Luong attention: a decoder's state looks at the words of the source, at all of them or around one place.

Luong et al. 2015, arXiv:1508.04025, sections 3.1 and 3.2. For the t-th state h of the decoder (after its recurrent
step: Bahdanau asks with the state before) and the top states s_j of the encoder, j = 0 ... L - 1::

    score(h, s_j) = h . s_j                      "dot"
                    (W_a h) . s_j                "general"
                    v . tanh(W [h; s_j])         "concat"
                    (W_a h)_j                    "location": row j of W_a belongs to place j

    a = softmax_j score(h, s_j)                  "global": over all L words
                                                 local: over |j - floor(p)| <= D_w, the window around
    p = min(t, L - 1)                            "local-m", monotonic
    p = L sigmoid(v_p . tanh(W_p h))             "local-p", predictive; afterwards
    a_j <- a_j exp(-(j - p)^2 / (2 sigma^2))     with sigma = D_w / 2, not normalised again

    c = sum_j a_j s_j        y = tanh(W_c [c; h])

No map has a bias. A gradient reaches p through the Gaussian alone, and the weights of local-p sum to less than 1. Where
paper and code differ, the window is the code's: around floor(p), while the Gaussian takes p itself. Words are numbered
among the real ones, t among the real states, so padding moves nothing. A state without any word has c = 0. Time and
memory are O(N M) for every alignment: sentences are short beside D, and one product for all pairs is faster than a
window gathered for each state.
"""

from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from regard.ops.additive_scores import additive_scores
from regard.ops.masks import positions
from regard.ops.sparsemax import sparsemax_where
from regard.ops.weights import softmax_where
from regard.pair_layers import WeighingPairLayer
from regard.registry import Card, Sample, register

Score = Literal["dot", "general", "concat", "location"]
Alignment = Literal["global", "local-m", "local-p"]


def local_weights(
    scores: Float[Tensor, "B N M"],
    place: Int[Tensor, "#B M"],
    centre: Float[Tensor, "B N"],
    half_window: int,
    sigma: float | None = None,
    *,
    key_mask: Bool[Tensor, "B M"] | None = None,
    normalise: bool = False,
    sparse: bool = False,
) -> Float[Tensor, "B N M"]:
    """Weights inside the window around floor(p), with sigma under the Gaussian around p; in float32 at least.

    Args:
        scores: of all pairs.
        place: j of each word.
        centre: p of each state.
        half_window: D_w.
        sigma: width of the Gaussian; None: no Gaussian.
        key_mask: True for real words.
        normalise: the Gaussian multiplies the scores, not the weights, which then sum to 1.
        sparse: sparsemax instead of softmax.

    Example:
        >>> centre = torch.tensor([[2.0]])
        >>> local_weights(torch.zeros(1, 1, 5), torch.arange(5)[None], centre, 1)[0, 0].mul(12).round().tolist()
        [0.0, 4.0, 4.0, 4.0, 0.0]
    """
    inside = (place[:, None] - centre.detach().floor()[..., None]).abs() <= half_window
    allowed = inside if key_mask is None else inside & key_mask[:, None]
    fading = 1.0 if sigma is None else torch.exp((place[:, None] - centre[..., None]).square() / (-2 * sigma**2))
    if normalise:
        return _shares(scores.to(centre.dtype) * fading, allowed, sparse)
    return _shares(scores, allowed, sparse) * fading


def _shares(scores: Tensor, allowed: Tensor | None, sparse: bool) -> Tensor:
    """Softmax or sparsemax over the words that may be seen."""
    if sparse:
        return sparsemax_where(scores, allowed)
    return softmax_where(scores[:, None], None if allowed is None else allowed[:, None])[:, 0]


@register(
    "luong",
    samples=[
        Sample(dim=8, alignment="local-p", half_window=3),
        Sample(dim=8, context_dim=6, score="concat", alignment="local-m", half_window=2),
        Sample(dim=8, score="location", max_length=20),
        Sample(dim=8, score="dot", alignment="local-p", half_window=4, normalise=True),
    ],
)
class Luong(WeighingPairLayer):
    """The attentional state y (B, N, C) of each decoder state x under a source; see the head of this file.

    Args:
        dim: C, of the decoder's states.
        context_dim: width of the encoder's states; None: C.
        score: how a pair is scored.
        alignment: which words are seen.
        half_window: D_w.
        sigma: of the Gaussian of local-p; None: D_w / 2.
        normalise: the authors' later local-p, a = softmax_j(score * Gaussian), whose weights sum to 1.
        source_proj: False: "concat" is v . tanh(W h + s_j), as in the authors' code.
        sparse: sparsemax instead of softmax, as OpenNMT has it.
        max_length: rows of W_a, the most words that "location" can tell apart; the other scores need none.

    Raises:
        ValueError: options that do not fit together, or with "location" a context of more than ``max_length`` words.

    Example:
        >>> layer = Luong(8, alignment="local-p", half_window=2)
        >>> states, source = torch.randn(2, 5, 8), torch.randn(2, 7, 8)
        >>> layer(states, source).shape
        torch.Size([2, 5, 8])
    """

    card = Card(
        title="Luong attention",
        paper="arXiv:1508.04025",
        year=2015,
        family="pairs",
        data="pair",
        cross=True,
        smooth=True,
        refuses={"causal": "it looks at another sequence; its decoder is what goes from left to right"},
        cost="N M",
        summary="Attention of a recurrent decoder to its source, by cheap products, to all words or a soft window.",
        formula="tanh(W_c [sum over j of a_j s_j; h]), a = softmax_j((W_a h) . s_j)",
    )

    def __init__(
        self,
        dim: int,
        context_dim: int | None = None,
        *,
        score: Score = "general",
        alignment: Alignment = "global",
        half_window: int = 10,
        sigma: float | None = None,
        normalise: bool = False,
        source_proj: bool = True,
        sparse: bool = False,
        max_length: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.context_dim = dim, dim if context_dim is None else context_dim
        self.score: Score = score
        self.alignment: Alignment = alignment
        self.half_window, self.sigma = half_window, half_window / 2 if sigma is None else sigma
        self.normalise, self.source_proj, self.sparse, self.max_length = normalise, source_proj, sparse, max_length
        self._check(sigma)
        factory: dict[str, Any] = {"bias": False, "device": device, "dtype": dtype}
        rows = {"general": self.context_dim, "location": max_length, "concat": dim if source_proj else self.context_dim}
        scored = rows.get(score)
        self.query_proj = nn.Linear(dim, scored, **factory) if scored else None
        self.key_proj = nn.Linear(self.context_dim, dim, **factory) if score == "concat" and source_proj else None
        self.vector = nn.Linear(scored or 0, 1, **factory) if score == "concat" else None
        predicts = alignment == "local-p"
        self.place_proj = nn.Linear(dim, dim, **factory) if predicts else None
        self.place_vector = nn.Linear(dim, 1, **factory) if predicts else None
        self.out_proj = nn.Linear(self.context_dim + dim, dim, **factory)
        self.reset_parameters()

    def _check(self, sigma: float | None) -> None:
        for name, value, choices in (("score", self.score, Score), ("alignment", self.alignment, Alignment)):
            if value not in get_args(choices):
                raise ValueError(f"{name}={value!r} is none of {', '.join(map(repr, get_args(choices)))}")
        if self.score == "location" and not self.max_length:
            raise ValueError(
                f'score="location" has a row for each place: max_length={self.max_length} must say how many'
            )
        if self.score == "dot" and self.context_dim != self.dim:
            raise ValueError(f'score="dot" needs equal widths, not dim={self.dim} and context_dim={self.context_dim}')
        if not self.source_proj and self.score != "concat":
            raise ValueError(f'source_proj=False is a form of score="concat", not of score={self.score!r}')
        if self.alignment != "local-p" and (self.normalise or sigma is not None):
            raise ValueError(f'normalise and sigma are about the Gaussian of "local-p", not of {self.alignment!r}')
        if self.alignment != "global" and (self.half_window < 1 or self.sigma <= 0):
            raise ValueError(f"half_window={self.half_window} and sigma={self.sigma} must be positive")

    def reset_parameters(self) -> None:
        """Everything uniform between -0.1 and 0.1."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)

    def weights(
        self,
        x: Float[Tensor, "B N C"],
        context: Float[Tensor, "B M Cc"],
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        start: int | Int[Tensor, "B 1"] = 0,
    ) -> Float[Tensor, "B N M"]:
        """a of each state, in float32 at least.

        Args:
            x, context, key_mask, query_mask: as ``forward`` takes them; what is masked holds 0.
            start: t of the first state, for a decoder that goes on step by step.
        """
        scores = self._scores(x, context, place := positions(context, key_mask))
        if self.alignment == "global":
            return _shares(scores, None if key_mask is None else key_mask[:, None], self.sparse)
        centre = self.centre(x, context, key_mask=key_mask, query_mask=query_mask, start=start)
        gaussian = self.alignment == "local-p"
        return local_weights(
            scores,
            place,
            centre,
            self.half_window,
            self.sigma if gaussian else None,
            key_mask=key_mask,
            normalise=self.normalise,
            sparse=self.sparse,
        )

    def centre(
        self,
        x: Float[Tensor, "B N C"],
        context: Float[Tensor, "B M Cc"],
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        start: int | Int[Tensor, "B 1"] = 0,
    ) -> Float[Tensor, "B N"]:
        """p of each state, for local alignments; arguments as in :meth:`weights`.

        In float32 at least: in half precision it would miss its word in a long sentence.
        """
        lengths = _lengths(context, key_mask)
        precise = torch.promote_types(x.dtype, torch.float32)
        if self.place_proj is None or self.place_vector is None:
            step = start + positions(x, query_mask)
            return torch.minimum(step, lengths - 1).to(precise).expand(x.shape[:2])
        logit = self.place_vector(self.place_proj(x).tanh()).squeeze(-1)
        return lengths * logit.to(precise).sigmoid()

    def answer(self, x: Float[Tensor, "B N C"], seen: Float[Tensor, "B N Cc"]) -> Float[Tensor, "B N C"]:
        """y = tanh(W_c [c; h]) of what has been seen."""
        return self.out_proj(torch.cat((seen, x), -1)).tanh()

    def meet(
        self,
        x: Tensor,
        context: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """All states at once; see :class:`regard.pair_layers.PairLayer`."""
        weights = self.weights(x, context, key_mask=key_mask, query_mask=query_mask)
        return self.answer(x, weights.to(context.dtype) @ context)

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
        weights = self.weights(x, context, key_mask=key_mask, query_mask=query_mask)
        return weights[:, None].to(values.dtype) @ values

    def _scores(self, x: Tensor, context: Tensor, place: Tensor) -> Float[Tensor, "B N M"]:
        query = x if self.query_proj is None else self.query_proj(x)
        if self.score == "location":
            if self.max_length is not None and context.shape[1] > self.max_length:
                raise ValueError(
                    f"{context.shape[1]} words, but this layer was built with max_length={self.max_length}"
                )
            return query.gather(-1, place[:, None].expand(*query.shape[:-1], -1))
        if self.vector is None:
            return query @ context.mT
        key = context if self.key_proj is None else self.key_proj(context)
        return additive_scores(query, key, self.vector.weight[0])

    def extra_repr(self) -> str:
        return f"dim={self.dim}, context_dim={self.context_dim}, score={self.score!r}, alignment={self.alignment!r}"


def _lengths(context: Tensor, key_mask: Tensor | None) -> Int[Tensor, "#B 1"]:
    """L of each source, 1 at least."""
    if key_mask is None:
        return torch.full((1, 1), context.shape[1], device=context.device)
    return key_mask.sum(-1, keepdim=True).clamp(min=1)
