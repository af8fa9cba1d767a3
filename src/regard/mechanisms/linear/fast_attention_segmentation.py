"""Fast attention: cosines instead of a softmax, so that keys meet values first and cost grows with N alone.

Hu et al. 2020, "Real-time Semantic Segmentation with Fast Attention", arXiv:2007.03815, eq. 4 and 5. For n pixels, with
queries and keys of D = 32 features, of unit length in each pixel::

    q, k = unit(BN(W_q x)), unit(BN(W_k x))        v = LeakyReLU(BN(W_v x))
    y    = LeakyReLU(BN(W_o (1/n) q (k^T v))) + x

Weights may be negative and have no sum. The authors' code leaves the 1/n to the batch norm, which absorbs it for maps
of one size: ``normalise=False`` for their checkpoints. Masked pixels are no keys and not among the n. The contraction
is that of :mod:`regard.ops.descriptors`; time is O(N D C + N C^2), memory O(N (D + C) + D C).

:class:`FastAttentionFusion` is one stage of FANet: the attended map joins a coarser one, and leaves smoothed, and
narrower for the next finer stage.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.map_layers import WeighingLayer, hide_pixels
from regard.ops.batch_norm import MapBatchNorm
from regard.ops.descriptors import distribute, gather
from regard.ops.pixelwise import pixelwise
from regard.registry import Card, Sample, register

EPS = 1e-12
"""The least length that queries and keys are divided by."""


def fast_attention(
    q: Float[Tensor, "B N D"],
    k: Float[Tensor, "B M D"],
    v: Float[Tensor, "B M Dv"],
    *,
    normalise: bool = True,
    key_mask: Bool[Tensor, "B M"] | None = None,
) -> Float[Tensor, "B N Dv"]:
    """(1/n) unit(q) (unit(k)^T v), n = M or the number of keys that count.

    Args:
        q, k, v: queries, keys, and values, which are finite also where masked.
        normalise: False leaves out the 1/n.
        key_mask: True for keys that count.

    Example:
        >>> q, k, v = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[10.0]]])
        >>> fast_attention(q, k, v)
        tensor([[[8.]]])
    """
    q, k = (F.normalize(t, dim=-1, eps=EPS)[:, None] for t in (q, k))
    descriptors = gather(k, v[:, None], "scaling", key_mask)
    if not normalise:
        count = k.shape[2] if key_mask is None else key_mask.sum(-1)[:, None, None, None]
        descriptors = descriptors * count
    return distribute(q, descriptors, "scaling").squeeze(1)


@register(
    "fast_attention_segmentation",
    samples=[Sample(dim=12, head_dim=4), Sample(dim=12, head_dim=5, normalise=False)],
)
class FastAttention(WeighingLayer):
    """Projections, batch norms and a residual around it, for maps of one to three axes; see the head of this file.

    Args:
        dim: C.
        head_dim: D.
        normalise: whether to divide by the number of pixels, as the paper does and its code does not.

    Raises:
        ValueError: sizes that do not fit.
    """

    card = Card(
        title="Fast attention",
        paper="arXiv:2007.03815",
        year=2020,
        family="linear",
        data="map",
        smooth=True,
        stochastic=("batch_norm",),
        refuses={"causal": "the product of keys and values is that of the whole map"},
        cost="N",
        summary="Cosine similarity without a softmax: linear attention for segmenting large images in real time.",
        formula="(1/n) unit(q) (unit(k)^T v)",
    )
    num_axes = None

    def __init__(
        self,
        dim: int,
        head_dim: int = 32,
        *,
        normalise: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if min(dim, head_dim) < 1:
            raise ValueError(f"dim={dim}, head_dim={head_dim}: sizes must be positive")
        self.dim, self.normalise = dim, normalise
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.q_proj, self.k_proj = (nn.Linear(dim, head_dim, bias=False, **factory) for _ in range(2))
        self.v_proj, self.out_proj = (nn.Linear(dim, dim, bias=False, **factory) for _ in range(2))
        self.q_norm, self.k_norm = (MapBatchNorm(head_dim, **factory) for _ in range(2))
        self.v_norm, self.out_norm = (MapBatchNorm(dim, **factory) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kaiming's normal with slope 1, as in the authors' code: variance 1 / fan-in."""
        for part in self.children():
            if isinstance(part, nn.Linear):
                nn.init.kaiming_normal_(part.weight, a=1)
            elif isinstance(part, MapBatchNorm):
                part.reset_parameters()

    def respond(
        self,
        x: Tensor,
        source: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """Attend and add; see :class:`regard.map_layers.MapLayer`."""
        pixels = x.flatten(2)
        keys, queries = (None if mask is None else mask.flatten(1) for mask in (key_mask, query_mask))
        v = F.leaky_relu(self.v_norm(pixelwise(self.v_proj, pixels), keys))
        out = self._attend(pixels, v.mT, keys, queries)
        y = F.leaky_relu(self.out_norm(pixelwise(self.out_proj, out.mT), queries)) + pixels
        return y.unflatten(-1, x.shape[2:])

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
        """What the same weights make of other values."""
        keys, queries = (None if mask is None else mask.flatten(1) for mask in (key_mask, query_mask))
        return self._attend(x.flatten(2), values[:, 0], keys, queries)[:, None]

    def _attend(self, pixels: Tensor, v: Tensor, keys: Tensor | None, queries: Tensor | None) -> Tensor:
        q = self.q_norm(pixelwise(self.q_proj, pixels), queries).mT
        k = self.k_norm(pixelwise(self.k_proj, pixels), keys).mT
        return fast_attention(q, k, v, normalise=self.normalise, key_mask=keys)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, normalise={self.normalise}"


class FastAttentionFusion(nn.Module):
    """One stage of FANet: attention, what the next coarser stage says, and two ways out.

    p = attention(x) + the coarser map, upsampled bilinearly, corner to corner; then LeakyReLU(BN(conv p)) each::

        smooth (dim -> dim_out, 3 x 3)                     for the classifier
        up     (dim -> dim // 2, 1 x 1)                    for the next finer stage

    Args:
        dim: C.
        dim_out: the width of the smoothed map.
        up_padding: pixels around the second one; the authors' code has 1, which all are values of 0 normalised.
        options: those of :class:`FastAttention`.

    Example:
        >>> smooth, up = FastAttentionFusion(8, 3)(torch.randn(2, 8, 5, 6), torch.randn(2, 8, 3, 3))
        >>> smooth.shape, up.shape
        (torch.Size([2, 3, 5, 6]), torch.Size([2, 4, 5, 6]))
    """

    def __init__(self, dim: int, dim_out: int = 128, *, up_padding: int = 0, **options: Any) -> None:
        super().__init__()
        factory: dict[str, Any] = {name: options.get(name) for name in ("device", "dtype")}
        self.attention = FastAttention(dim, **options)
        self.smooth_conv = nn.Conv2d(dim, dim_out, 3, padding=1, bias=False, **factory)
        self.smooth_norm = MapBatchNorm(dim_out, **factory)
        self.up_conv = nn.Conv2d(dim, dim // 2, 1, padding=up_padding, bias=False, **factory)
        self.up_norm = MapBatchNorm(dim // 2, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As the attention; see :class:`FastAttention`."""
        self.attention.reset_parameters()
        for conv, norm in ((self.smooth_conv, self.smooth_norm), (self.up_conv, self.up_norm)):
            nn.init.kaiming_normal_(conv.weight, a=1)
            norm.reset_parameters()

    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        coarse: Float[Tensor, "B C h w"] | None = None,
        *,
        key_mask: Bool[Tensor, "B H W"] | None = None,
    ) -> tuple[Float[Tensor, "B d H W"], Float[Tensor, "B c H2 W2"]]:
        """The smoothed map, and the one for the next stage; ``key_mask``: True for pixels of x that count."""
        fused = self.attention(x, key_mask=key_mask)
        if coarse is not None:
            fused = fused + F.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=True)
        fused = hide_pixels(fused, key_mask)
        padding = self.up_conv.padding[0]
        up_mask = None if key_mask is None else F.pad(key_mask, [int(padding)] * 4)
        smooth = F.leaky_relu(self.smooth_norm(self.smooth_conv(fused), key_mask))
        up = F.leaky_relu(self.up_norm(self.up_conv(fused), up_mask))
        return hide_pixels(smooth, key_mask), hide_pixels(up, up_mask)
