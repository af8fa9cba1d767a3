"""Show, attend and tell: the state of a decoder looks at the places of an image, softly or at one of them.

Xu et al. 2015, arXiv:1502.03044, sections 3.1 and 4. For states h_1 .. h_T and annotations a_1 .. a_L::

    P_l     = W_c a_l + b                        (then tanh(W_i P_l + b_i) for each further layer)
    alpha_t = softmax_l(tau u . tanh(P_l + W_d h_t))
    soft:     z_t = sum_l alpha_tl a_l
    hard:     z_t = sum_l s_tl a_l,              s_t one-hot, drawn from alpha_t
    selector: z_t <- sigmoid(w . h_t + b) z_t

In training a hard layer draws places for the whole pass with probability ``sampling``, by one draw for all, and else
looks softly; in evaluation it looks softly, or with ``argmax`` at the likeliest place. "Doubly stochastic" attention
adds lambda sum_l (1 - sum_t alpha_tl)^2: in the end every place should have been looked at. No gradient flows through a
draw: what hard attention learns from is in :mod:`regard.ops.drawn_places`, and in whole in
:class:`regard.models.CaptionLoss`.

As in the authors' code tau multiplies the scores, and P_l has the width of an annotation. Their constant beside u is
left out, since softmax does not see it. Their penalty is summed over the batch and averaged over the places
(``penalty="code"``); ours is the paper's.

Time O(T L D) for the scores and O(T L D) for the sums, memory O(T L) beside a bounded part of the tanh.
"""

from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.ops.additive_scores import additive_scores
from regard.ops.drawn_places import draw_places, entropy, one_hot
from regard.pair_layers import Met, WeighingPairLayer
from regard.registry import Card, Sample, register

Looking = Literal["soft", "hard"]
Penalty = Literal["paper", "code"]


def log_location_weights(
    query: Float[Tensor, "B T A"],
    key: Float[Tensor, "B L A"],
    u: Float[Tensor, " A"],
    *,
    temperature: float = 1.0,
    key_mask: Bool[Tensor, "B L"] | None = None,
) -> Float[Tensor, "B T L"]:
    """log softmax_l(tau u . tanh(query_t + key_l)), in float32 at least: a weight may vanish, its logarithm does not.

    A masked place has weight 0; where all are masked nothing is told apart.

    Example:
        >>> log_location_weights(torch.zeros(1, 1, 2), torch.zeros(1, 4, 2), torch.ones(2)).exp().tolist()
        [[[0.25, 0.25, 0.25, 0.25]]]
    """
    scores = additive_scores(query, key, u)
    scores = temperature * scores.to(torch.promote_types(scores.dtype, torch.float32))
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None], torch.finfo(scores.dtype).min)
    return scores.log_softmax(-1)


def hard_weights(
    weights: Float[Tensor, "B T L"], samples: Float[Tensor, "B T L"], sampled: Bool[Tensor, ""]
) -> Float[Tensor, "B T L"]:
    """The samples, of which nothing flows back, where it was drawn that they are taken; else the weights themselves.

    Example:
        >>> half, first = torch.full((1, 1, 2), 0.5), torch.tensor([[[1.0, 0.0]]])
        >>> [hard_weights(half, first, torch.tensor(sampled)).tolist() for sampled in (True, False)]
        [[[[1.0, 0.0]]], [[[0.5, 0.5]]]]
    """
    return torch.where(sampled, samples, weights)


def doubly_stochastic(
    weights: Float[Tensor, "B T L"],
    *,
    penalty: Penalty = "paper",
    key_mask: Bool[Tensor, "B L"] | None = None,
    query_mask: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, ""]:
    """sum_l (1 - sum_t alpha_tl)^2, the mean over the batch; or the sum over the batch of means over the places.

    Args:
        weights: alpha.
        penalty: "paper", or "code": the authors' code adds the batch up, and has all steps, padded ones too.
        key_mask, query_mask: True for places that count, and for real steps.

    Example:
        >>> doubly_stochastic(torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])).item()
        2.0
    """
    if query_mask is not None and penalty == "paper":
        weights = weights.masked_fill(~query_mask[..., None], 0.0)
    missed = (1 - weights.sum(1)).square()
    if key_mask is not None:
        missed = missed.masked_fill(~key_mask, 0.0)
    if penalty == "paper":
        return missed.sum(-1).mean()
    count = missed.shape[-1] if key_mask is None else key_mask.sum(-1, keepdim=True).clamp(min=1)
    return (missed / count).sum()


@register(
    "show_attend_tell",
    samples=[
        Sample(dim=8, context_dim=6, num_layers=2, selector=True),
        Sample(dim=8, attention="hard", temperature=2.0, doubly_stochastic=1.0),
    ],
)
class ShowAttendTell(WeighingPairLayer):
    """Decoder states x look at annotations (the context): z, one row for each state. See the head of this file.

    ``return_aux`` tells "map/weights" alpha, "map/chosen" what z was summed with, "metric/entropy", and with
    ``doubly_stochastic`` its "loss/doubly_stochastic".

    Args:
        dim: of the states.
        context_dim: D, of the annotations and of z; the default is ``dim``.
        attention: "soft" or "hard".
        num_layers: of the network behind the annotations.
        selector: a gate on z, from the state.
        temperature: tau, which multiplies the scores.
        sampling: how likely a hard layer in training draws places, instead of looking softly.
        argmax: a hard layer in evaluation looks at the likeliest place alone.
        doubly_stochastic: lambda of the penalty.
        penalty: see :func:`doubly_stochastic`.

    Raises:
        ValueError: sizes or probabilities out of range, an unknown word, or options of hard attention on soft.

    Example:
        >>> layer = ShowAttendTell(8, context_dim=6)
        >>> layer(torch.randn(2, 3, 8), torch.randn(2, 5, 6)).shape
        torch.Size([2, 3, 6])
    """

    card = Card(
        title="Show, Attend and Tell",
        paper="arXiv:1502.03044",
        year=2015,
        family="pairs",
        data="pair",
        cross=True,
        smooth=True,
        stochastic=("noise",),
        cost="N M",
        summary="Looks at places of an image softly, or at one drawn place; the root of hard attention.",
        formula="z = sum_l s_l a_l, s ~ softmax_l(u . tanh(W_c a_l + W_d h))",
    )

    def __init__(
        self,
        dim: int,
        context_dim: int | None = None,
        *,
        attention: Looking = "soft",
        num_layers: int = 1,
        selector: bool = False,
        temperature: float = 1.0,
        sampling: float = 0.5,
        argmax: bool = False,
        doubly_stochastic: float = 0.0,
        penalty: Penalty = "paper",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        width = dim if context_dim is None else context_dim
        if min(dim, width, num_layers) < 1:
            raise ValueError(f"dim={dim}, context_dim={width}, num_layers={num_layers}: at least 1")
        for name, word, words in (("attention", attention, Looking), ("penalty", penalty, Penalty)):
            if word not in get_args(words):
                raise ValueError(f"{name}={word!r} is none of {', '.join(map(repr, get_args(words)))}")
        if not 0 <= sampling <= 1:
            raise ValueError(f"sampling={sampling} is no probability: between 0 and 1")
        if attention == "soft" and (sampling != 0.5 or argmax):
            raise ValueError('sampling and argmax are for attention="hard": soft attention draws nothing')
        if doubly_stochastic < 0:
            raise ValueError(f"doubly_stochastic={doubly_stochastic} would reward what it is to punish: at least 0")
        self.dim, self.context_dim, self.num_layers = dim, width, num_layers
        self.attention: Looking = attention
        self.temperature, self.sampling, self.argmax = temperature, sampling, argmax
        self.doubly_stochastic = doubly_stochastic
        self.penalty: Penalty = penalty
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.key_proj = nn.Linear(width, width, **factory)
        self.layers = nn.ModuleList(nn.Linear(width, width, **factory) for _ in range(num_layers - 1))
        self.query_proj = nn.Linear(dim, width, bias=False, **factory)
        self.u = nn.Parameter(torch.empty(width, **factory))
        self.selector = nn.Linear(dim, 1, **factory) if selector else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """N(0, 0.01^2), but the further layers orthogonal, and W_d where it is square; biases 0."""
        draw_matrix_(self.key_proj.weight, orthogonal=False)
        for linear in (*self.layers, self.query_proj, self.selector):
            if isinstance(linear, nn.Linear):
                draw_matrix_(linear.weight)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
        nn.init.normal_(self.u, std=0.01)

    def keys(self, context: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """P: what the scores need of the annotations, once for all states."""
        key = self.key_proj(context)
        for layer in self.layers:
            key = layer(key).tanh()
        return key

    def look(
        self,
        x: Float[Tensor, "B T C"],
        key: Float[Tensor, "B L D"],
        *,
        key_mask: Bool[Tensor, "B L"] | None = None,
        samples: Float[Tensor, "B T L"] | None = None,
        sampled: Bool[Tensor, ""] | None = None,
        generator: Generator | None = None,
    ) -> tuple[Float[Tensor, "B T L"], Float[Tensor, "B T L"]]:
        """Where states look.

        Args:
            x: states.
            key: what :meth:`keys` makes of the annotations.
            key_mask: True for places that can be looked at.
            samples: one-hot places for hard attention instead of its own draws.
            sampled: whether samples are taken in this pass, instead of an own draw.
            generator: draws both.

        Returns:
            log alpha, and what annotations are to be summed with: alpha or one-hot rows; 0 where all places are masked.
        """
        log_weights = log_location_weights(
            self.query_proj(x), key, self.u, temperature=self.temperature, key_mask=key_mask
        )
        weights = chosen = log_weights.exp()
        if self.attention == "hard":
            if self.training or samples is not None or sampled is not None:
                samples = draw_places(weights, generator) if samples is None else samples.to(weights.dtype)
                chosen = hard_weights(weights, samples, self.draw(x, generator) if sampled is None else sampled)
            elif self.argmax:
                chosen = one_hot(weights.argmax(-1), weights)
        if key_mask is not None:
            chosen = chosen * key_mask.any(-1)[:, None, None]
        return log_weights, chosen

    def select(self, x: Float[Tensor, "*B C"], z: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """z times the selector, if there is one."""
        return z if self.selector is None else z * self.selector(x).sigmoid()

    def draw(self, x: Tensor, generator: Generator | None = None) -> Bool[Tensor, ""]:
        """Whether a pass takes samples: one draw for the whole batch and all steps."""
        return torch.empty((), dtype=torch.bool, device=x.device).bernoulli_(self.sampling, generator=generator)

    def meet(
        self,
        x: Tensor,
        context: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Met:
        """z for all states at once."""
        log_weights, chosen = self.look(x, self.keys(context), key_mask=key_mask, generator=generator)
        weights = log_weights.exp()
        aux = {"map/weights": weights, "map/chosen": chosen, "metric/entropy": entropy(log_weights.detach()).mean()}
        if self.doubly_stochastic:
            missed = doubly_stochastic(weights, penalty=self.penalty, key_mask=key_mask, query_mask=query_mask)
            aux["loss/doubly_stochastic"] = self.doubly_stochastic * missed
        return self.select(x, chosen.to(context.dtype) @ context), aux

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
        """The same sums of other values; the selector counts."""
        _, chosen = self.look(x, self.keys(context), key_mask=key_mask, generator=generator)
        return self.select(x[:, None], chosen[:, None].to(values.dtype) @ values)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, context_dim={self.context_dim}, attention={self.attention!r}"


def draw_matrix_(weight: Float[Tensor, "O I"], *, orthogonal: bool = True) -> None:
    """The authors' start of a matrix: orthogonal where it is square, else N(0, 0.01^2)."""
    if not orthogonal or weight.shape[0] != weight.shape[1]:
        nn.init.normal_(weight, std=0.01)
        return
    wide = torch.empty_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
    with torch.no_grad():
        weight.copy_(nn.init.orthogonal_(wide))  # torch has no orthogonal matrices in half precision
