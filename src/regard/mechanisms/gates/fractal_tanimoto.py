"""Fractal Tanimoto attention: query and key are compared as fuzzy sets, and how alike they are weighs the value.

Diakogiannis, Waldner and Caccetta 2020, arXiv:2009.02062, sections 2.2 and 3.1. For p and l with values in 0 to 1, and
p.l a sum over some of their axes::

    FT_d(p, l) = (p.l + e) / (2^d (p.p + l.l) - (2^(d + 1) - 1) p.l + e)            e = 1e-5
    FT(p, l)   = mean of FT_d over d = 0 ... depth - 1
    T(p, l)    = (FT(p, l) + FT(1 - p, 1 - l)) / 2                                  1 for equal sets

    q, k, v    = sigmoid(norm(conv_3(x)))                                           of each its own
    y          = norm((T over pixels (q, k) + T over channels (q, k)) v / 2)        B x C x 1 x 1 and B x 1 x H x W

There is no softmax and no product of matrices. The *relative* form takes q from one map and k and v from another of the
same size, such as two dates of one place. T itself is :func:`regard.ops.tanimoto.fractal_tanimoto`, and 1 - T over all
axes a loss for segmentation, :func:`regard.ops.tanimoto.tanimoto_loss`. :class:`FractalUnit` is the residual unit of
the authors' networks.

Heads only group the channels of the convolutions, as in the authors' code (feevos/ceecnet, MXNet). Sums are taken in
float32 at least: the denominator is a difference. For N pixels, time is O(N C (9 C / H + depth)), memory O(N C).
"""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.map_layers import MapLayer, hide_pixels
from regard.ops.map_norms import MapNorm, map_norm
from regard.ops.single_values import refuse_single_values
from regard.ops.tanimoto import products, similarity
from regard.registry import Card, Sample, UnsupportedError, register


class FuzzySet(nn.Module):
    """sigmoid(norm(conv(x))).

    Args:
        dim, dim_out: channels in and out.
        num_heads: groups of the convolution.
        kernel_size: k, odd.
        norm, norm_groups: as in :func:`regard.ops.map_norms.map_norm`.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        num_heads: int,
        kernel_size: int,
        norm: MapNorm,
        norm_groups: int | None,
        **factory: Any,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"padding": kernel_size // 2, "groups": num_heads, "bias": False, **factory}
        self.conv = nn.Conv2d(dim, dim_out, kernel_size, **options)
        self.norm = map_norm(norm, dim_out, norm_groups, **factory)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, C', H, W) in 0 to 1 from (B, C, H, W), whose masked pixels are 0."""
        out = self.conv(x)
        refuse_single_values(out, self.norm)
        return self.norm(out, mask).sigmoid()


def _pair() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(2, 8, 6, 7, generator=generator) for name in ("x", "context")}


@register(
    "fractal_tanimoto",
    samples=[
        Sample(dim=8, num_heads=2, claims={"cross": False}),
        Sample(dim=8, dim_out=6, depth=0, norm="group", norm_groups=3, claims={"cross": False, "stochastic": ()}),
        Sample(dim=8, kernel_size=1, relative=True, inputs=_pair),
    ],
)
class FractalTanimoto(MapLayer):
    """Convolutions around the comparison of two fuzzy sets; see the head of this file.

    Args:
        dim: C.
        dim_out: C', the channels of q, k, v and the output; None: C.
        num_heads: groups of the convolutions.
        kernel_size: of the convolutions, odd.
        depth: how many terms of the similarity are averaged; the paper goes up to 10.
        relative: k and v come from a ``context`` of the size of x, which must then be given. Both lie on one grid: each
            of the two masks is the default of the other.
        norm: "batch", "group" with ``norm_groups``, "instance" or "layer" (over channels).
        norm_groups: of "group".

    ``return_aux`` tells the similarities, ``map/channel`` (B, C') and ``map/spatial`` (B, H, W).

    Raises:
        ValueError: sizes that do not fit, or no context for ``relative``.
        UnsupportedError: a context without ``relative``.
    """

    card = Card(
        title="Fractal Tanimoto attention",
        paper="arXiv:2009.02062",
        year=2020,
        family="gates",
        data="map",
        cross=True,
        stochastic=("batch_norm",),
        refuses={"causal": "the similarity of channels has seen the whole map"},
        cost="N C depth",
        summary="Compares query and key as fuzzy sets, by channel and by pixel; made to find changes between images.",
        formula="norm((T_pixels(q, k) + T_channels(q, k)) v / 2), q, k, v = sigmoid(norm(conv(x)))",
    )

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        dim_out: int | None = None,
        kernel_size: int = 3,
        depth: int = 5,
        *,
        relative: bool = False,
        norm: MapNorm = "batch",
        norm_groups: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dim_out = dim if dim_out is None else dim_out
        if num_heads < 1 or dim % num_heads or dim_out % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide both dim={dim} and dim_out={dim_out}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size}: only an odd one has a centre")
        if depth < 0:
            raise ValueError(f"depth={depth}: the number of terms that are averaged is not negative")
        if not relative:
            self.card = replace(self.card, cross=False)
        self.dim, self.dim_out, self.num_heads, self.depth, self.relative = dim, dim_out, num_heads, depth, relative
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        sizes = (dim, dim_out, num_heads, kernel_size, norm, norm_groups)
        self.query, self.key, self.value = (FuzzySet(*sizes, **factory) for _ in range(3))
        self.norm = map_norm(norm, dim_out, norm_groups, **factory)

    def reset_parameters(self) -> None:
        """As torch draws convolutions and norms; the paper does not say."""
        for part in self.modules():
            if isinstance(part, (nn.Conv2d, nn.BatchNorm1d, nn.GroupNorm, nn.LayerNorm)):
                part.reset_parameters()

    def admit(
        self,
        x: Tensor,
        context: Tensor | None = None,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """The door of all layers on maps; a context has the size of x, and the masks are for one grid."""
        if context is None and self.relative:
            raise ValueError("relative=True compares x with a second map: pass it as context")
        if context is not None and not self.relative:
            raise UnsupportedError("fractal_tanimoto takes a context only with relative=True")
        if context is not None and context.shape != x.shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)} and context {tuple(context.shape)}: pixels are compared with those of "
                "the same place, so bring both to one size"
            )
        if context is not None:
            key_mask, query_mask = (a if b is None else b for a, b in ((query_mask, key_mask), (key_mask, query_mask)))
        return super().admit(x, context, key_mask, query_mask, segments)

    def respond(
        self,
        x: Tensor,
        source: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare a map with itself, or with a context; see :class:`regard.map_layers.MapLayer`."""
        return self.compare(x, source, source, key_mask=key_mask, query_mask=query_mask)

    def compare(
        self,
        query: Float[Tensor, "B C H W"],
        key: Float[Tensor, "B C H W"],
        value: Float[Tensor, "B C H W"],
        *,
        key_mask: Bool[Tensor, "B H W"] | None = None,
        query_mask: Bool[Tensor, "B H W"] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The paper's form of three maps, each pixel meeting that of the same place.

        Returns:
            y (B, C', H, W), and the similarities by name.
        """
        q = self.query(hide_pixels(query, query_mask), query_mask)
        k, v = self.key(hide_pixels(key, key_mask), key_mask), self.value(hide_pixels(value, key_mask), key_mask)
        both = query_mask if key_mask is None else key_mask if query_mask is None else key_mask & query_mask
        compared = products(q, k, None if both is None else both[:, None])
        channel, spatial = (similarity(compared, axes, self.depth).to(q.dtype) for axes in ((2, 3), (1,)))
        y = self.norm((channel + spatial) * hide_pixels(v, key_mask) / 2, query_mask)
        return y, {"map/channel": channel.flatten(1), "map/spatial": hide_pixels(spatial, query_mask)[:, 0]}

    def extra_repr(self) -> str:
        sizes = f"dim={self.dim}, dim_out={self.dim_out}, num_heads={self.num_heads}"
        return f"{sizes}, depth={self.depth}, relative={self.relative}"


class FractalUnit(nn.Module):
    """(x + block(x)) (1 + gamma attention(x)): a residual unit that starts without attention, as gamma is 0.

    The block is norm, ReLU, convolution, twice; the second convolution has a bias.

    Args:
        dim: C.
        num_heads, depth: of the attention.
        kernel_size, dilation, groups: of the block; the attention has the same kernel.
        norm, norm_groups: of both.

    Example:
        >>> FractalUnit(8)(torch.randn(2, 8, 5, 7)).shape
        torch.Size([2, 8, 5, 7])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        kernel_size: int = 3,
        depth: int = 5,
        dilation: int = 1,
        groups: int = 1,
        *,
        norm: MapNorm = "batch",
        norm_groups: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        named: dict[str, Any] = {"norm": norm, "norm_groups": norm_groups, **factory}
        self.attention = FractalTanimoto(dim, num_heads, kernel_size=kernel_size, depth=depth, **named)
        options: dict[str, Any] = {"padding": dilation * (kernel_size // 2), "dilation": dilation, "groups": groups}
        self.norm1, self.norm2 = (map_norm(norm, dim, norm_groups, **factory) for _ in range(2))
        self.conv1 = nn.Conv2d(dim, dim, kernel_size, bias=False, **options, **factory)
        self.conv2 = nn.Conv2d(dim, dim, kernel_size, **options, **factory)
        self.gamma = nn.Parameter(torch.zeros(1, **factory))

    def forward(self, x: Float[Tensor, "B C H W"], mask: Bool[Tensor, "B H W"] | None = None) -> Tensor:
        """Of the shape of x; ``mask``: True for pixels that count, the others become 0."""
        x = hide_pixels(x, mask)
        block = self.conv1(hide_pixels(self.norm1(x, mask).relu(), mask))
        block = self.conv2(hide_pixels(self.norm2(block, mask).relu(), mask))
        weight, _ = self.attention.compare(x, x, x, key_mask=mask, query_mask=mask)
        return hide_pixels((x + block) * (1 + self.gamma * weight), mask)
