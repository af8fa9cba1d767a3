"""Criss-cross attention: each pixel attends to its row and its column; twice over, to every pixel of the map.

Huang et al. 2018, arXiv:1811.11721 (CCNet). One application, with q and k of C / 8 features, v of C, and no scaling::

    y_i = x_i + gamma * sum over j in cross(i) of softmax_j(q_i . k_j) v_j

One softmax goes over the whole cross, H + W - 1 pixels, in which the pixel itself counts once, as in the authors' code;
gamma is a single number that starts at 0, so that the layer starts as the identity. It is not in the paper's formula.
It is applied ``recurrence`` times with the same weights, after two of which each pixel has heard of all others. In
volumes, the cross has an arm along each axis (journal version).

For N pixels of an image, an application takes O(N (H + W) C) time, against O(N^2 C) of a non-local block, and O(N C)
memory: the weights are never stored. :func:`category_consistent_loss` is the journal version's loss for the features.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from regard.attention import attend
from regard.map_layers import WeighingLayer
from regard.patterns import CrissCross as Cross
from regard.patterns import Pattern
from regard.registry import Card, Sample, register


def criss_cross_attention(
    q: Float[Tensor, "B *grid D"],
    k: Float[Tensor, "B *grid D"],
    v: Float[Tensor, "B *grid Dv"],
    key_mask: Bool[Tensor, "B *grid"] | None = None,
) -> Float[Tensor, "B *grid Dv"]:
    """softmax(q k^T) v over the pixels that differ in one coordinate at most; see the head of this file.

    Args:
        q, k, v: grids of one to three axes, with the features last.
        key_mask: True for pixels that may be seen.

    Returns:
        A vector for each pixel, 0 where it sees nothing.

    Example:
        >>> x = torch.randn(1, 3, 4, 8)
        >>> criss_cross_attention(x, x, x).shape
        torch.Size([1, 3, 4, 8])
    """
    grid = tuple(q.shape[1:-1])
    mask = None if key_mask is None else key_mask.flatten(1)
    q, k, v = (t.flatten(1, -2)[:, None] for t in (q, k, v))
    out = attend(q, k, v, Cross(grid), key_mask=mask, scale=1.0)
    return out[:, 0].unflatten(1, grid)


@register(
    "criss_cross",
    samples=[
        Sample(dim=12, gamma=1.0),
        Sample(dim=8, recurrence=1, key_dim=3, gamma=0.5),
    ],
)
class CrissCross(WeighingLayer):
    """A criss-cross block with residual, for maps; see the head of this file.

    Args:
        dim: C.
        recurrence: how often it is applied, with the same weights; twice joins all pixels of an image.
        key_dim: features of queries and keys, the default is C / 8, and 1 at least.
        num_axes: 2 for images, 3 for volumes, where three times join all pixels.
        gamma: where the weight of the attention starts; 0: the layer starts as the identity.

    Raises:
        ValueError: sizes that do not fit.
        UnsupportedError: segments or a context.
    """

    card = Card(
        title="Criss-cross attention (CCNet)",
        paper="arXiv:1811.11721",
        year=2018,
        family="patterned",
        data="map",
        smooth=True,
        dynamic=False,  # crosses are planned for fixed sides: a graph holds for one size of maps only
        refuses={"causal": "a pixel sees both ways along its row and column"},
        cost="N (H + W)",
        summary="Rows and columns, twice: full-image context for segmentation at a fraction of a non-local block.",
        formula="x + gamma softmax(q k^T) v over the pixels of the same row or column, repeated",
    )

    def __init__(
        self,
        dim: int,
        recurrence: int = 2,
        *,
        key_dim: int | None = None,
        num_axes: int = 2,
        gamma: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        key_dim = max(1, dim // 8) if key_dim is None else key_dim
        if min(dim, key_dim, recurrence) < 1:
            raise ValueError(f"dim={dim}, key_dim={key_dim}, recurrence={recurrence}: they must be positive")
        if num_axes not in (1, 2, 3):
            raise ValueError(f"num_axes={num_axes}: a map has one to three axes")
        self.dim, self.recurrence, self.num_axes, self.start = dim, recurrence, num_axes, gamma
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.q_proj, self.k_proj = (nn.Linear(dim, key_dim, **factory) for _ in range(2))
        self.v_proj = nn.Linear(dim, dim, **factory)
        self.gamma = nn.Parameter(torch.empty(1, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices as torch draws them, and gamma at its start."""
        for linear in (self.q_proj, self.k_proj, self.v_proj):
            linear.reset_parameters()
        nn.init.constant_(self.gamma, self.start)

    def pattern_on(self, sides: Sequence[int]) -> Pattern:
        """The cross of one application."""
        return Cross(tuple(sides))

    def respond(
        self,
        x: Tensor,
        source: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """Attend along rows and columns, again and again; see :class:`regard.map_layers.MapLayer`."""
        return self._after(x, key_mask, self.recurrence).movedim(-1, 1)

    def mix(
        self,
        x: Tensor,
        source: Tensor,
        values: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """What the last application makes of other values: (B, 1, N, Dv)."""
        pixels = self._after(x, key_mask, self.recurrence - 1)
        out = criss_cross_attention(
            self.q_proj(pixels), self.k_proj(pixels), values[:, 0].unflatten(1, x.shape[2:]), key_mask
        )
        return out.flatten(1, -2)[:, None]

    def _after(self, x: Tensor, key_mask: Tensor | None, times: int) -> Tensor:
        """The map after so many applications, with the features last."""
        pixels = x.movedim(1, -1).contiguous()  # else each projection would copy it
        for _ in range(times):
            out = criss_cross_attention(self.q_proj(pixels), self.k_proj(pixels), self.v_proj(pixels), key_mask)
            pixels = torch.addcmul(pixels, self.gamma, out)
        return pixels

    def extra_repr(self) -> str:
        return f"dim={self.dim}, recurrence={self.recurrence}, num_axes={self.num_axes}"


class CategoryConsistency(NamedTuple):
    """The parts of the category-consistent loss, each a scalar.

    Attributes:
        total: their weighted sum, what training adds.
        variance, distance, regularity: the parts, unweighted.
    """

    total: Tensor
    variance: Tensor
    distance: Tensor
    regularity: Tensor


def category_consistent_loss(
    features: Float[Tensor, "B D *grid"],
    labels: Int[Tensor, "B *grid"],
    *,
    near: float = 0.5,
    far: float = 1.5,
    weights: tuple[float, float, float] = (1.0, 1.0, 0.001),
    ignore_index: int = 255,
) -> CategoryConsistency:
    """Pixels of one category near their mean, the means of different categories apart (journal version, section 3.4).

    With mu_c the mean of the pixels of category c in the whole batch, means over pixels first, then over categories::

        variance   = mean phi(|f - mu_c|),   phi(d) = 0 up to near, (d - near)^2 up to far, then linear with slope 1
        distance   = mean over pairs of max(0, 2 far - |mu_a - mu_b|)^2
        regularity = mean |mu_c|

    Args:
        features: what the criss-cross layers give, usually after a reduction to C / 16 features.
        labels: the category of each pixel.
        near, far: the distances; the paper's delta_v and delta_d.
        weights: of the three parts.
        ignore_index: the label of pixels that do not count.

    Returns:
        The loss and its parts, in float32 at least; 0 where there is no category, or for ``distance`` only one.

    Example:
        >>> features, labels = torch.randn(2, 8, 5, 6), torch.randint(3, (2, 5, 6))
        >>> category_consistent_loss(features, labels).total.shape
        torch.Size([])
    """
    real = labels != ignore_index
    pixels = features.movedim(1, -1)[real]
    pixels = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
    categories, member, count = labels[real].unique(return_inverse=True, return_counts=True)
    number = max(1, len(categories))

    def means(x: Tensor) -> Tensor:
        sums = x.new_zeros(len(categories), *x.shape[1:]).index_add(0, member, x)
        return sums / count.view(-1, *(1,) * (x.ndim - 1))

    centres = means(pixels)
    gap = torch.linalg.vector_norm(pixels - centres[member], dim=-1)
    beyond = (gap - near).clamp(min=0)
    penalty = torch.where(gap <= far, beyond.square(), gap - far + (far - near) ** 2)
    variance = means(penalty).sum() / number
    one, other = torch.triu_indices(len(centres), len(centres), 1, device=centres.device)
    apart = torch.linalg.vector_norm(centres[one] - centres[other], dim=-1)
    distance = (2 * far - apart).clamp(min=0).square().sum() / max(1, len(apart))
    regularity = torch.linalg.vector_norm(centres, dim=-1).sum() / number
    parts = (variance, distance, regularity)
    total = sum((weight * part for weight, part in zip(weights, parts, strict=True)), torch.zeros_like(variance))
    return CategoryConsistency(total, *parts)
