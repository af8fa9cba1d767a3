"""Normalisation of maps whose masked pixels enter no statistic, by name."""

from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.ops.batch_norm import MapBatchNorm

MapNorm = Literal["batch", "group", "instance", "layer"]


class MapGroupNorm(nn.GroupNorm):
    """torch's GroupNorm on maps (B, C, *grid), where pixels that a mask leaves out enter no statistic.

    Example:
        >>> norm, keep = MapGroupNorm(1, 1, affine=False), torch.tensor([[True, True, False]])
        >>> norm(torch.tensor([[[1.0, 3.0, 900.0]]]), keep)[0, 0, :2].round().tolist()
        [-1.0, 1.0]
    """

    def forward(
        self, input: Float[Tensor, "B C *grid"], mask: Bool[Tensor, "B *grid"] | None = None
    ) -> Float[Tensor, "B C *grid"]:
        """Normalise each group of channels; ``mask``: True for pixels that count, the others become anything finite."""
        if mask is None:
            return super().forward(input)
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        x = wide.flatten(2).unflatten(1, (self.num_groups, -1))
        real = mask.flatten(1)[:, None, None]
        count = (real.sum((1, 2, 3), keepdim=True) * x.shape[2]).clamp(min=1)
        mean = x.masked_fill(~real, 0.0).sum((2, 3), keepdim=True) / count
        centred = (x - mean).masked_fill(~real, 0.0)
        variance = centred.square().sum((2, 3), keepdim=True) / count
        y = (centred * torch.rsqrt(variance + self.eps)).flatten(1, 2)
        y = y if not self.affine else torch.addcmul(self.bias[:, None], y, self.weight[:, None])
        return y.to(input.dtype).unflatten(-1, input.shape[2:])


class ChannelNorm(nn.LayerNorm):
    """torch's LayerNorm over the channels of each pixel of a map (B, C, *grid): no pixel meets another.

    Example:
        >>> ChannelNorm(2)(torch.tensor([[[1.0, 5.0], [3.0, 5.0]]])).round().tolist()
        [[[-1.0, 0.0], [1.0, 0.0]]]
    """

    def forward(
        self, input: Float[Tensor, "B C *grid"], mask: Bool[Tensor, "B *grid"] | None = None
    ) -> Float[Tensor, "B C *grid"]:
        """Normalise each pixel; ``mask`` changes nothing."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


def map_norm(name: MapNorm, channels: int, groups: int | None = None, **factory: Any) -> nn.Module:
    """A norm of maps that takes (x, mask).

    Args:
        name: "batch", "group", "instance" (as many groups as channels) or "layer" (over channels).
        channels: C.
        groups: of "group" only.
        factory: device and dtype.

    Raises:
        ValueError: an unknown name, groups without "group", or the other way round.

    Example:
        >>> type(map_norm("instance", 6)).__name__
        'MapGroupNorm'
    """
    if name not in get_args(MapNorm):
        raise ValueError(f"norm={name!r} is none of {', '.join(get_args(MapNorm))}")
    if (name == "group") != (groups is not None):
        raise ValueError(f'norm={name!r} with norm_groups={groups}: "group" needs their number, the others have none')
    if name == "batch":
        return MapBatchNorm(channels, **factory)
    if name == "layer":
        return ChannelNorm(channels, **factory)
    return MapGroupNorm(groups or channels, channels, **factory)
