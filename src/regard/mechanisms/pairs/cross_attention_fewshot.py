"""Cross attention of few-shot classification: a class and a query tell each other which pixels matter for both.

Hou et al. 2019 (CAN), arXiv:1910.07677, section 3. Of a prototype P and a query Q, both (C, m) with m = h w pixels, and
their columns p_i and q_j scaled to length 1::

    R_ij = p_i . q_j                                   what pixel i of the class has in common with pixel j of the query
    g_j = mean_i R_ij        w = W_2 relu(BN(W_1 g))    a kernel over the query's pixels, W_1 (m / r, m)
    a_i = mean_j w_j R_ij    A_i = 1 + softmax_i(a_i / t), t = 0.025    P' = P A

and Q' the same with R^T and the same weights. Every class meets every query, K Q pairs in all; no pair sees another.
The paper has w . r_i for the mean over j, which at its t is 36 times sharper at 6 x 6 pixels; the authors' code, and so
every published number, takes the mean, as we do; ``reduce="sum"`` is the paper's text.

R is never formed: g_j = (mean_i p_i) . q_j and a_i = p_i . mean_j w_j q_j, so time is O(B K Q m C) and memory
O(B K Q (m + C)) beside the outputs, which hold every map once for each of its partners, O(B K Q m C);
:meth:`CrossAttentionFewshot.weights` returns A alone. For 4 episodes of 5 classes and 30 queries at C = 512 and 6 x 6
pixels, forward and backward on one CPU core, that took 0.31 of the time of the same by R, and the whole layer 0.79.
W_1 and W_2 belong to m pixels, so maps have one size.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from regard.ops.batch_norm import TokenBatchNorm
from regard.registry import Card, Layer, Sample, register

Reduce = Literal["mean", "sum"]


def cross_weights(
    own: Float[Tensor, "B K C m"],
    other: Float[Tensor, "B Q C m"],
    fuse: Callable[[Tensor], Tensor],
    *,
    reduce: Reduce = "mean",
    temperature: float = 0.025,
) -> Float[Tensor, "B Q K m"]:
    """A of the pixels of ``own``, as each of ``other`` sees them; see the head of this file.

    Args:
        own, other: maps whose pixels have length 1.
        fuse: g (..., m) -> w (..., m).
        reduce: "mean" or "sum" over j.
        temperature: t.

    Example:
        >>> own, other = torch.ones(1, 2, 1, 4), torch.ones(1, 3, 1, 4)
        >>> cross_weights(own, other, torch.ones_like)[0, 0, 0].tolist()
        [1.25, 1.25, 1.25, 1.25]
    """
    profile = torch.einsum("bkc,bqcj->bqkj", own.mean(-1), other)
    mixed = torch.einsum("bqkj,bqcj->bqkc", fuse(profile), other)
    scores = torch.einsum("bqkc,bkci->bqki", mixed if reduce == "sum" else mixed / own.shape[-1], own)
    return 1 + F.softmax(scores / temperature, -1)


class MetaFusion(nn.Module):
    """W_2 relu(BN(W_1 g)): what makes a kernel over pixels from how much each of them has in common with the other map.

    Args:
        size: m.
        reduction: r.

    Example:
        >>> MetaFusion(36, 6)(torch.randn(2, 3, 5, 36)).shape
        torch.Size([2, 3, 5, 36])
    """

    def __init__(self, size: int, reduction: int, **factory: Any) -> None:
        super().__init__()
        inner = max(1, size // reduction)
        self.squeeze, self.expand = nn.Linear(size, inner, **factory), nn.Linear(inner, size, **factory)
        self.norm = TokenBatchNorm(inner, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights normal with variance 2 / what goes out, biases as torch draws them."""
        for linear in (self.squeeze, self.expand):
            linear.reset_parameters()
            nn.init.normal_(linear.weight, std=(2 / linear.out_features) ** 0.5)
        self.norm.reset_parameters()

    def forward(self, profile: Float[Tensor, "*B m"]) -> Float[Tensor, "*B m"]:
        """g -> w; in training the norm's statistics are those of all pairs of the batch."""
        return self.expand(F.relu(self.norm(self.squeeze(profile))))


def _episode() -> dict[str, Tensor]:
    """Two episodes: five prototypes and four queries of 2 x 3 pixels each."""
    generator = torch.Generator().manual_seed(0)
    return {
        "prototypes": torch.randn(2, 5, 4, 2, 3, generator=generator),
        "queries": torch.randn(2, 4, 4, 2, 3, generator=generator),
    }


@register(
    "cross_attention_fewshot",
    samples=[
        Sample(inputs=_episode, size=6, reduction=2),
        Sample(inputs=_episode, size=6, reduction=1, reduce="sum", temperature=0.5),
    ],
)
class CrossAttentionFewshot(Layer):
    """Prototypes and queries in, each as every partner sees it out; see the head of this file.

    Args:
        size: m, the pixels of a map.
        reduction: r.
        reduce: over the other map's pixels: "mean", or "sum", the paper's text.
        temperature: t.

    Raises:
        ValueError: sizes or options that do not fit.
    """

    card = Card(
        title="Cross attention (CAN)",
        paper="arXiv:1910.07677",
        year=2019,
        family="pairs",
        data="pair",
        cross=True,
        smooth=True,
        stochastic=("batch_norm",),
        refuses={
            "causal": "pixels have no order",
            "key_mask": "its weights belong to the pixels of one size, all of which take part",
        },
        cost="K Q m",
        summary="A class prototype and a query image highlight what they share, before they are compared.",
        formula="P (1 + softmax(mean_j w_j R_ij / 0.025)), w = MLP(mean_i R_ij), R = cosines of all pixels",
    )

    def __init__(
        self,
        size: int = 36,
        reduction: int = 6,
        *,
        reduce: Reduce = "mean",
        temperature: float = 0.025,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if reduce not in get_args(Reduce):
            raise ValueError(f'reduce={reduce!r} is neither "mean" nor "sum"')
        if min(size, reduction) < 1 or temperature <= 0:
            raise ValueError(f"size={size}, reduction={reduction}, temperature={temperature}: all must be positive")
        self.size, self.temperature = size, temperature
        self.reduce: Reduce = reduce
        self.fusion = MetaFusion(size, reduction, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """As :meth:`MetaFusion.reset_parameters`."""
        self.fusion.reset_parameters()

    def forward(
        self, prototypes: Float[Tensor, "B K C h w"], queries: Float[Tensor, "B Q C h w"]
    ) -> tuple[Float[Tensor, "B Q K C h w"], Float[Tensor, "B Q K C h w"]]:
        """Every class and every query, as they see each other.

        Args:
            prototypes: one map a class, of any number of classes.
            queries: one map a query, of any number of queries.

        Returns:
            [b, q, k] of the first is class k as query q sees it, of the second query q as class k sees it.

        Raises:
            ValueError: shapes that do not fit.
        """
        of_prototypes, of_queries = self.weights(prototypes, queries)
        sides = prototypes.shape[3:]
        of_prototypes, of_queries = (a.unflatten(-1, sides)[:, :, :, None] for a in (of_prototypes, of_queries))
        return prototypes[:, None] * of_prototypes, queries[:, :, None] * of_queries

    def weights(
        self, prototypes: Float[Tensor, "B K C h w"], queries: Float[Tensor, "B Q C h w"]
    ) -> tuple[Float[Tensor, "B Q K m"], Float[Tensor, "B Q K m"]]:
        """A of the prototypes' pixels and A of the queries', for every pair; arguments as in ``forward``."""
        self._check(prototypes, queries)
        p, q = (_unit(maps.flatten(3)) for maps in (prototypes, queries))
        options: dict[str, Any] = {"reduce": self.reduce, "temperature": self.temperature}
        of_prototypes = cross_weights(p, q, self._fuse, **options)
        of_queries = cross_weights(q, p, self._fuse, **options).transpose(1, 2)
        return of_prototypes.to(prototypes.dtype), of_queries.to(queries.dtype)

    def _fuse(self, profile: Tensor) -> Tensor:
        """In the dtype of the weights."""
        return self.fusion(profile.to(self.fusion.squeeze.weight.dtype)).to(profile.dtype)

    def _check(self, prototypes: Tensor, queries: Tensor) -> None:
        for name, maps in (("prototypes", prototypes), ("queries", queries)):
            if maps.ndim != 5 or 0 in maps.shape:
                raise ValueError(f"{name} have shape {tuple(maps.shape)}, expected (batch, number, C, h, w)")
        if prototypes.shape[0] != queries.shape[0] or prototypes.shape[2:] != queries.shape[2:]:
            raise ValueError(
                f"prototypes have shape {tuple(prototypes.shape)} and queries {tuple(queries.shape)}: only their "
                "numbers, the second axis, may differ"
            )
        pixels = prototypes.shape[3:].numel()
        if pixels != self.size:
            raise ValueError(
                f"the maps have {pixels} pixels, but this layer was built with size={self.size}: its weights belong to "
                "the pixels"
            )

    def extra_repr(self) -> str:
        return f"size={self.size}, reduce={self.reduce!r}, temperature={self.temperature}"


def _unit(maps: Float[Tensor, "B K C m"]) -> Float[Tensor, "B K C m"]:
    """Every pixel scaled to length 1, in float32 at least: float16 cannot tell the least length from 0."""
    return F.normalize(maps.to(torch.promote_types(maps.dtype, torch.float32)), dim=2, eps=1e-12)
