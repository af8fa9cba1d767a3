"""Pyramid attention: three scales of a map weigh each of its pixels, and what it shows on the whole is added.

Li et al. 2018, arXiv:1805.10180, sections 3.1 and 3.2 (PAN). Feature pyramid attention, at the top of a network, with d
channels in its output and conv_k a convolution of k x k with batch norm::

    p_1 = down_7(x)    p_2 = down_5(p_1)    p_3 = down_3(p_2)              at 1/2, 1/4 and 1/8 of the size
    a = up(q_1 + up(q_2 + up(q_3)))         q_i = conv_k(p_i), k = 7, 5, 3
    y = a * conv_1(x) + conv_1(mean x)                                     a is no sigmoid: its size matters

The global attention upsample then brings high-level features to the size of lower ones, which it gates by their mean::

    y = up(high) + conv_3(low) * act(conv_1(mean high))

The authors released no code, and the two versions in use differ; ``style`` says which:

- "strided" (JaveyWang/Pyramid-Attention-Networks-pytorch), nearer to the paper's text: convolutions of stride 2 to
  C / 4 channels, transposed ones back, a ReLU on each merged sum and on y, and as act. Theirs takes sides of 8 n only;
  here down rounds up, and what up makes too much is cut off, so that any size will do.
- "maxpool" (segmentation_models.pytorch): 2 x 2 maximum and a convolution to a single channel, bilinear back, a ReLU in
  each conv but not on y; act is a sigmoid. Odd sides are rounded down; below 8 pixels, a side of 1 stays 1.

"strided" keeps masked pixels at 0 on each scale, where a pixel is masked if all four below it are; padding stands at
the end. "maxpool" stretches maps from corner to corner and takes no masks. For N pixels and w channels in the pyramid,
time is O(49 N C w / 4).
"""

from dataclasses import replace
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.map_layers import MapLayer, hide_pixels
from regard.ops.conv_norm import ConvNorm, cut
from regard.ops.pixel_pools import pool_pixels
from regard.registry import Card, Sample, UnsupportedError, register

Style = Literal["strided", "maxpool"]
Stretch = Literal["bilinear", "bicubic", "nearest"]

KERNELS = (7, 5, 3)
"""Of the three scales, from fine to coarse."""

NO_MASKS = 'style="maxpool" stretches maps from corner to corner, which padding would move: take style="strided"'


def coarser(mask: Bool[Tensor, "B H W"] | None, scales: int) -> list[Tensor | None]:
    """At each of so many scales, which 2 x 2 pixels of the finer one hold one that counts; the last may be cut.

    Example:
        >>> coarser(torch.tensor([[[True, False, False], [False, False, False], [False, False, True]]]), 1)[0].tolist()
        [[[True, False], [False, True]]]
    """
    if mask is None:
        return [None] * scales
    share = mask.float()
    found: list[Tensor | None] = []
    for _ in range(scales):
        share = F.max_pool2d(share, 2, ceil_mode=True)
        found.append(share.bool())
    return found


def halved_map(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
    """The maxima of 2 x 2 blocks; an odd last row or column is left out, unless it is the only one.

    Example:
        >>> halved_map(torch.arange(3.0).view(1, 1, 1, 3)).tolist()
        [[[[1.0]]]]
    """
    height, width = (cast(int, torch.sym_max(side // 2, 1)) for side in x.shape[2:])  # max() would fix them in a graph
    return cut(F.max_pool2d(x, 2, ceil_mode=True), height, width)


def stretched(x: Float[Tensor, "B C h w"], like: Tensor, stretch: Stretch) -> Float[Tensor, "B C H W"]:
    """x at the size of another map; bilinear with corners on corners.

    Example:
        >>> stretched(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2), torch.zeros(1, 1, 1, 3), "bilinear").flatten().tolist()
        [0.0, 0.5, 1.0]
    """
    return F.interpolate(x, list(like.shape[2:]), mode=stretch, align_corners=True if stretch == "bilinear" else None)


def _check(style: Style, stretch: Stretch) -> None:
    if style not in get_args(Style):
        raise ValueError(f'style={style!r} is neither "strided" nor "maxpool"')
    if stretch not in get_args(Stretch):
        raise ValueError(f"stretch={stretch!r} is none of {', '.join(get_args(Stretch))}")
    if style == "strided" and stretch != "bilinear":
        raise ValueError(f'stretch={stretch!r}, but style="strided" upsamples by transposed convolutions')


def _one_pixel(mask: Tensor | None) -> Tensor | None:
    """The mask of what is told of whole maps: those of which something counts."""
    return None if mask is None else mask.flatten(1).any(1)[:, None, None]


@register(
    "pyramid_attention",
    samples=[
        Sample(dim=8),
        Sample(dim=8, dim_out=6, style="maxpool", claims={"refuses": {"key_mask": NO_MASKS}}),
    ],
)
class PyramidAttention(MapLayer):
    """Feature pyramid attention; see the head of this file.

    Args:
        dim: C.
        dim_out: d, the channels of the output; None: C.
        style: "strided" or "maxpool".
        width: channels of the pyramid; None: C // 4 of "strided", 1 of "maxpool", which can have d instead.
        stretch: how "maxpool" upsamples.

    Raises:
        ValueError: an unknown style, a width that "maxpool" cannot have, or in training a single map, whose whole has
            no batch statistics.
        UnsupportedError: masks for "maxpool".
    """

    card = Card(
        title="Pyramid attention network",
        paper="arXiv:1805.10180",
        year=2018,
        family="gates",
        data="map",
        stochastic=("batch_norm",),
        padding="end",
        dynamic=False,  # a graph is bound to which coarse scales are one pixel wide
        refuses={"causal": "the coarse scales have seen the whole map"},
        cost="N",
        summary="Weighs each pixel by what three scales around it show: the decoder of a light segmentation network.",
        formula="a conv(x) + conv(mean x), a = up(q_1 + up(q_2 + up(q_3))) of convolutions at 1/2, 1/4 and 1/8",
    )

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        style: Style = "strided",
        width: int | None = None,
        stretch: Stretch = "bilinear",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check(style, stretch)
        self.dim, self.dim_out = dim, dim if dim_out is None else dim_out
        self.style: Style = style
        self.stretch: Stretch = stretch
        strided = style == "strided"
        if not strided:
            self.card = replace(self.card, refuses={**self.card.refuses, "key_mask": NO_MASKS})
        width = (max(1, dim // 4) if strided else 1) if width is None else width
        if not strided and width not in (1, self.dim_out):
            raise ValueError(f'width={width}: style="maxpool" weighs {self.dim_out} channels by 1 or by as many')
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        options: dict[str, Any] = {"bias": not strided, "relu": not strided, **factory}
        down: dict[str, Any] = {"stride": 2 if strided else 1, "bias": not strided, **factory}
        self.main, self.whole = (ConvNorm(dim, self.dim_out, 1, **options) for _ in range(2))
        self.downs = nn.ModuleList(
            ConvNorm(c, width, k, **down) for c, k in zip((dim, width, width), KERNELS, strict=True)
        )
        self.levels = nn.ModuleList(ConvNorm(width, width, k, **options) for k in KERNELS)
        outs = (self.dim_out, width, width) if strided else ()
        self.ups = nn.ModuleList(ConvNorm(width, out, 4, up=True, **factory) for out in outs)

    def reset_parameters(self) -> None:
        """As segmentation_models.pytorch: uniform by the fan-in of a ReLU, biases 0; the paper does not say."""
        for part in self.modules():
            if isinstance(part, ConvNorm):
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
        """Weigh a map; see :class:`regard.map_layers.MapLayer`."""
        x = hide_pixels(x, key_mask)
        whole = self.whole(pool_pixels(x, key_mask)[:, :, None, None], _one_pixel(key_mask))
        y = self.main(x, key_mask) * self._pyramid(x, key_mask) + whole
        return y.relu() if self.style == "strided" else y

    def _pyramid(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """a: down three scales, and up again from the coarsest."""
        strided, scales = self.style == "strided", [x]
        masks = [mask, *coarser(mask, len(self.downs))]
        for down, smaller in zip(self.downs, masks[1:], strict=True):
            scales.append(down(scales[-1] if strided else halved_map(scales[-1]), smaller))
        told = self.levels[2](scales[3], masks[3])
        for i in (2, 1):
            told = self.levels[i - 1](scales[i], masks[i]) + self._up(i, told, scales, masks)
            told = told.relu() if strided else told
        return self._up(0, told, scales, masks)

    def _up(self, i: int, told: Tensor, scales: list[Tensor], masks: list[Tensor | None]) -> Tensor:
        """What was told at one scale, at the size of the next finer one."""
        if self.style == "strided":
            return self.ups[i](told, masks[i], scales[i])
        return stretched(told, scales[i], self.stretch)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, dim_out={self.dim_out}, style={self.style!r}"


class GlobalAttentionUpsample(nn.Module):
    """High-level features at the size of lower ones, which they gate; see the head of this file.

    Args:
        low_dim, high_dim: channels of the two maps; the output has those of low in "strided", of high in "maxpool".
        style: "strided" or "maxpool".
        same_size: "strided" for maps of the same size, a 1 x 1 convolution for the transposed one.
        stretch: how "maxpool" upsamples.

    Raises:
        ValueError: an unknown style, or in training a single map, whose whole has no batch statistics.

    Example:
        >>> gau = GlobalAttentionUpsample(low_dim=12, high_dim=16)
        >>> gau(torch.randn(2, 12, 9, 10), torch.randn(2, 16, 5, 5)).shape
        torch.Size([2, 12, 9, 10])
    """

    def __init__(
        self,
        low_dim: int,
        high_dim: int,
        style: Style = "strided",
        *,
        same_size: bool = False,
        stretch: Stretch = "bilinear",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check(style, stretch)
        strided = style == "strided"
        if same_size and not strided:
            raise ValueError('same_size=True, but style="maxpool" brings high to the size of low whatever it is')
        self.style: Style = style
        self.stretch: Stretch = stretch
        self.same_size, self.dim_out = same_size, low_dim if strided else high_dim
        options: dict[str, Any] = {"bias": not strided, "device": device, "dtype": dtype}
        self.low = ConvNorm(low_dim, self.dim_out, 3, relu=not strided, **options)
        self.gate = ConvNorm(high_dim, self.dim_out, 1, relu=strided, **options)
        size = 1 if same_size else 4
        self.up = ConvNorm(high_dim, low_dim, size, up=not same_size, relu=False, **options) if strided else None

    def reset_parameters(self) -> None:
        """As :class:`PyramidAttention`."""
        for part in (self.low, self.gate, self.up):
            if part is not None:
                part.reset_parameters()

    def forward(
        self,
        low: Float[Tensor, "B C H W"],
        high: Float[Tensor, "B D h w"],
        *,
        low_mask: Bool[Tensor, "B H W"] | None = None,
        high_mask: Bool[Tensor, "B h w"] | None = None,
    ) -> Float[Tensor, "B d H W"]:
        """Upsample and gate.

        Args:
            low: a map of many pixels.
            high: of half its sides, rounded up, or of the same with ``same_size``; any size in "maxpool".
            low_mask, high_mask: True for pixels that count; "strided" only.

        Raises:
            ValueError: sizes that do not fit.
            UnsupportedError: masks for "maxpool".
        """
        if self.up is None:
            if low_mask is not None or high_mask is not None:
                raise UnsupportedError(f"the upsample takes no masks: {NO_MASKS}")
            raised = stretched(high, low, self.stretch)
        else:
            fits = [side if self.same_size else -(-side // 2) for side in low.shape[2:]]
            if list(high.shape[2:]) != fits:
                raise ValueError(
                    f"low has shape {tuple(low.shape)} and high {tuple(high.shape)}: with same_size={self.same_size} "
                    f'high must have sides {tuple(fits)}; style="maxpool" takes any'
                )
            low, high = hide_pixels(low, low_mask), hide_pixels(high, high_mask)
            raised = self.up(high, low_mask, low)
        gate = self.gate(pool_pixels(high, high_mask)[:, :, None, None], _one_pixel(high_mask))
        gated = raised + self.low(low, low_mask) * (gate.sigmoid() if self.up is None else gate)
        return gated if self.up is None else gated.relu()
