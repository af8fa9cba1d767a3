"""Speech without frame labels: CTC, and the attention that knows where it has just looked.

Connectionist Temporal Classification is a criterion and a search, not a layer; it stands in ``regard.ops`` and is named
here: :func:`ctc_loss`, :func:`greedy_labels`, :func:`prefix_beam_search`, :func:`align`, :func:`occupancies`,
:class:`CTCPrefixScorer`. Graves et al. 2006, "Connectionist Temporal Classification", ICML; Watanabe et al. 2017,
"Hybrid CTC/Attention Architecture for End-to-End Speech Recognition" (Kim et al. 2016, arXiv:1609.06773).

The layer is the other half of a hybrid recogniser: location-aware attention, Chorowski et al. 2015, arXiv:1506.07503,
section 2.1. For the states s_t of a decoder and the frames h_j of an encoder, one step after the other::

    f_t = F * w_(t-1)                                   K filters of width 2 r + 1 along the frames, zeros outside
    e_tj = g . tanh(W s_t + V h_j + U f_tj + b)         A units
    w_t = softmax_j(scaling e_tj)                       or sigma(e_tj) / sum_j sigma(e_tj), "smoothed" (section 2.3)
    c_t = sum_j w_tj h_j

Before the first step w is uniform over the real frames. V h_j is made once an utterance. Masked frames have weight 0,
and a masked query is no step. Time is O(T S (A + K r)), memory of inference O(S A), and T S A while training.

Departures: ESPnet, whose recipes the defaults follow, sharpens by 2.0, once and for all; here that is an argument, and
the paper's other two ideas, smoothing and windows, are there as well.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.ops.ctc_alignment import Alignment, Span, Word, align, occupancies, words
from regard.ops.ctc_loss import ctc_loss, infeasible
from regard.ops.ctc_prefix_score import CTCPrefixScorer
from regard.ops.ctc_search import GreedySearch, Prefix, PrefixSearch, greedy_labels, prefix_beam_search
from regard.ops.masks import hide
from regard.ops.weights import softmax_where
from regard.pair_layers import WeighingPairLayer
from regard.registry import Card, Sample, register

__all__ = [
    "Alignment",
    "CTCPrefixScorer",
    "GreedySearch",
    "LocationAware",
    "Prefix",
    "PrefixSearch",
    "Span",
    "Word",
    "align",
    "ctc_loss",
    "greedy_labels",
    "infeasible",
    "occupancies",
    "prefix_beam_search",
    "window",
    "words",
]


def window(
    weights: Float[Tensor, "B S"], width: int, key_mask: Bool[Tensor, "B S"] | None = None
) -> Bool[Tensor, "B S"]:
    """The real frames p - width <= j < p + width around the median p of the previous weights (section 2.2).

    Args:
        weights: of the step before.
        width: frames on each side.
        key_mask: True for real frames; only these are counted.

    Example:
        >>> window(torch.tensor([[0.1, 0.1, 0.7, 0.1, 0.0]]), 1).int().tolist()
        [[0, 1, 1, 0, 0]]
    """
    real = torch.ones_like(weights, dtype=torch.bool) if key_mask is None else key_mask
    place = real.long().cumsum(-1) - 1
    reached = (weights.cumsum(-1) >= 0.5 * weights.sum(-1, keepdim=True)) & (weights > 0)
    median = torch.where(reached, place, weights.shape[-1]).amin(-1, keepdim=True)
    return real & (place >= median - width) & (place < median + width)


@register(
    "ctc",
    samples=[
        Sample(dim=8, channels=3, radius=4),
        Sample(dim=8, context_dim=6, hidden_dim=5, channels=2, radius=2, smoothed=True),
        Sample(dim=8, context_dim=10, channels=2, radius=3, window=3, scaling=1.0, claims={"smooth": False}),
    ],
)
class LocationAware(WeighingPairLayer):
    """What each state of a decoder (B, T, C) hears of its frames (B, S, C'): contexts (B, T, C'); see the head.

    Args:
        dim: C, of the states.
        context_dim: C', of the frames; None: C.
        hidden_dim: A; None: C.
        channels: K, of the filters along the previous weights.
        radius: r; a filter sees 2 r + 1 frames.
        scaling: sharpens the softmax.
        smoothed: sigmoids over their sum instead of the softmax; several frames may then matter alike.
        window: hear only so many frames on each side of the median of the previous weights, the first step those at
            the start; None: all of them.

    Raises:
        ValueError: sizes below 1, or a scaling that is not positive.

    Example:
        >>> layer = LocationAware(8, context_dim=6, radius=3)
        >>> layer(torch.randn(2, 5, 8), torch.randn(2, 20, 6)).shape
        torch.Size([2, 5, 6])
    """

    card = Card(
        title="CTC with location-aware attention",
        paper="arXiv:1506.07503",
        year=2015,
        family="pairs",
        data="pair",
        cross=True,
        smooth=True,
        dynamic=False,  # one step needs the weights of the step before: a loop over the length
        refuses={"causal": "it looks at another sequence; its decoder is what goes from left to right"},
        cost="T S (A + K r)",
        summary="For speech: each step of a decoder knows where the step before has listened, and moves on.",
        formula="w_t = softmax_j(scaling g . tanh(W s_t + V h_j + U (F * w_(t-1))_j)); c_t = sum_j w_tj h_j",
    )

    def __init__(
        self,
        dim: int,
        context_dim: int | None = None,
        *,
        hidden_dim: int | None = None,
        channels: int = 10,
        radius: int = 100,
        scaling: float = 2.0,
        smoothed: bool = False,
        window: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if channels < 1 or radius < 0 or scaling <= 0 or (window is not None and window < 1):
            raise ValueError(
                f"channels={channels}, radius={radius}, scaling={scaling}, window={window}: one channel at least, no "
                "negative radius, a positive scaling, and a window of one frame at least, or None"
            )
        self.dim, self.context_dim = dim, dim if context_dim is None else context_dim
        self.scaling, self.smoothed, self.window = scaling, smoothed, window
        hidden = dim if hidden_dim is None else hidden_dim
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.query_proj = nn.Linear(dim, hidden, bias=False, **factory)
        self.key_proj = nn.Linear(self.context_dim, hidden, **factory)
        self.filters = nn.Conv1d(1, channels, 2 * radius + 1, padding=radius, bias=False, **factory)
        self.filter_proj = nn.Linear(channels, hidden, bias=False, **factory)
        self.vector = nn.Linear(hidden, 1, **factory)

    def reset_parameters(self) -> None:
        """As torch draws linear maps and convolutions, like ESPnet's layer (its recipes draw everything again)."""
        for part in (self.query_proj, self.key_proj, self.filters, self.filter_proj, self.vector):
            part.reset_parameters()

    def start(self, keys: Float[Tensor, "B S A"], key_mask: Bool[Tensor, "B S"] | None = None) -> Float[Tensor, "B S"]:
        """The weights before the first step: uniform over real frames; with a window, all on the first of them."""
        real = torch.ones_like(keys[..., 0], dtype=torch.bool) if key_mask is None else key_mask
        if self.window is not None:
            real = real & (real.cumsum(-1) == 1)
        real = real.to(torch.promote_types(keys.dtype, torch.float32))
        return real / real.sum(-1, keepdim=True).clamp(min=1)

    def step(
        self,
        query: Float[Tensor, "B C"],
        context: Float[Tensor, "B S E"],
        keys: Float[Tensor, "B S A"],
        weights: Float[Tensor, "B S"],
        *,
        key_mask: Bool[Tensor, "B S"] | None = None,
    ) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B S"]]:
        """One step of a decoder.

        Args:
            query: its state.
            context: the frames, finite also where masked.
            keys: ``key_proj`` of the frames; a decoder makes them once.
            weights: those of the step before, at first :meth:`start`.
            key_mask: True for real frames.

        Returns:
            What is heard, and the weights, in float32 at least.
        """
        weights = self.weights(self.query_proj(query), keys, weights, key_mask)
        return (weights[:, None].to(context.dtype) @ context)[:, 0], weights

    def weights(
        self,
        query: Float[Tensor, "B A"],
        keys: Float[Tensor, "B S A"],
        weights: Float[Tensor, "B S"],
        key_mask: Bool[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B S"]:
        """w_t from the projected query W s_t, the projected frames and w_(t-1)."""
        if not keys.shape[1]:  # there is nothing to filter
            return weights
        allowed = key_mask if self.window is None else window(weights, self.window, key_mask)
        features = self.filters(weights[:, None].to(keys.dtype)).mT
        energies = self.vector((keys + query[:, None] + self.filter_proj(features)).tanh())[..., 0]
        if self.smoothed:
            energies = energies.to(torch.promote_types(energies.dtype, torch.float32))
            some = hide(energies.mul(self.scaling).sigmoid()[..., None], allowed)[..., 0]
            total = some.sum(-1, keepdim=True)
            return some / total.masked_fill(total == 0, 1.0)
        allowed = None if allowed is None else allowed[:, None, None]
        energies = energies.to(torch.promote_types(energies.dtype, torch.float32))
        return softmax_where(self.scaling * energies[:, None, None], allowed)[:, 0, 0]

    def all_weights(
        self, x: Tensor, context: Tensor, key_mask: Tensor | None = None, query_mask: Tensor | None = None
    ) -> Float[Tensor, "B T S"]:
        """The weights of all steps, one after the other; at a masked query those of the step before stay."""
        keys, queries = self.key_proj(context), self.query_proj(x)
        weights = self.start(keys, key_mask)
        found: list[Tensor] = []
        for number, query in enumerate(queries.unbind(1)):
            moved = self.weights(query, keys, weights, key_mask)
            weights = moved if query_mask is None else torch.where(query_mask[:, number, None], moved, weights)
            found.append(weights)
        return torch.stack(found, 1) if found else weights.new_zeros(x.shape[0], 0, context.shape[1])

    def meet(
        self,
        x: Tensor,
        context: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """All steps; see :class:`regard.pair_layers.PairLayer`."""
        return self.all_weights(x, context, key_mask, query_mask).to(context.dtype) @ context

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
        """What is heard of other values."""
        return self.all_weights(x, context, key_mask, query_mask)[:, None].to(values.dtype) @ values

    def extra_repr(self) -> str:
        return f"dim={self.dim}, context_dim={self.context_dim}, scaling={self.scaling}, smoothed={self.smoothed}"
