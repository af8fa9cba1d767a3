"""BAM: one gate for every pixel and channel of a map, joined from a gate of channels and a gate of pixels.

Park et al. 2018, arXiv:1807.06514, eqs. 1 to 5. With h = C / r hidden channels::

    Mc(x) = BN(W2 relu(BN(W1 mean(x) + b1)) + b2)                                   B x C
    Ms(x) = BN(w . {relu BN conv3x3, dilated} twice ( relu(BN(W x + b)) ) + b')     B x 1 x H x W
    y = x (1 + sigmoid(Mc(x) + Ms(x)))

It stands between the stages of a network, not in each block. The code that the authors released multiplies Mc and Ms
instead of adding them and has no norm at the end of either; their checkpoints need ``combine="product"`` and
``last_norm=False``. Masked pixels are in no mean and no statistic, and 0 to every convolution. For N pixels, time is
O(N C h + N h^2).
"""

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from regard.map_layers import MapLayer, hide_pixels
from regard.ops.batch_norm import MapBatchNorm
from regard.ops.pixel_pools import pool_pixels
from regard.ops.single_values import refuse_single_values
from regard.registry import Card, Sample, register

Combine = Literal["sum", "product"]


def joint_gate(
    channel: Float[Tensor, "B C"], spatial: Float[Tensor, "B 1 H W"], combine: Combine = "sum"
) -> Float[Tensor, "B C H W"]:
    """1 + sigmoid(Mc + Ms), or of their product.

    Example:
        >>> joint_gate(torch.zeros(1, 2), torch.zeros(1, 1, 1, 1)).flatten().tolist()
        [1.5, 1.5]
    """
    channel = channel[:, :, None, None]
    return 1 + (channel * spatial if combine == "product" else channel + spatial).sigmoid()


class ChannelBranch(nn.Module):
    """Mc: an MLP on the means of the channels.

    Args:
        dim, width: C and h.
        last_norm: batch norm at the end.
    """

    def __init__(self, dim: int, width: int, *, last_norm: bool = True, **factory: Any) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(dim, width, **factory), nn.Linear(width, dim, **factory)
        self.norm = MapBatchNorm(width, **factory)
        self.last_norm = MapBatchNorm(dim, **factory) if last_norm else None

    def forward(self, x: Tensor, key_mask: Tensor | None) -> Tensor:
        """(B, C) from a map; maps without a real pixel enter no statistic."""
        real = None if key_mask is None else key_mask.flatten(1).any(1)
        hidden = self.first(pool_pixels(x, key_mask))
        refuse_single_values(hidden, self.norm)
        out = self.second(self.norm(hidden, real).relu())
        return out if self.last_norm is None else self.last_norm(out, real)


class SpatialBranch(nn.Module):
    """Ms: dilated convolutions of few channels.

    Args:
        dim, width: C and h.
        depth, dilation: how many 3 x 3 convolutions, and how far apart what they see lies.
        last_norm: batch norm at the end.
    """

    def __init__(
        self, dim: int, width: int, depth: int, dilation: int, *, last_norm: bool = True, **factory: Any
    ) -> None:
        super().__init__()
        self.reduce, self.norm = nn.Linear(dim, width, **factory), MapBatchNorm(width, **factory)
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, **factory) for _ in range(depth)
        )
        self.norms = nn.ModuleList(MapBatchNorm(width, **factory) for _ in range(depth))
        self.last = nn.Conv2d(width, 1, 1, **factory)
        self.last_norm = MapBatchNorm(1, **factory) if last_norm else None

    def forward(self, x: Tensor, key_mask: Tensor | None) -> Tensor:
        """(B, 1, H, W) from a map."""
        narrow = self.reduce.weight @ x.flatten(2) + self.reduce.bias[:, None]  # channels first: no copy of x
        x = self.norm(narrow.unflatten(-1, x.shape[2:]), key_mask).relu()
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(hide_pixels(x, key_mask)), key_mask).relu()
        logits = self.last(x)
        return logits if self.last_norm is None else self.last_norm(logits, key_mask)


@register(
    "bam",
    samples=[
        Sample(dim=8, reduction=4, dilation=2),
        Sample(dim=8, reduction=2, depth=1, combine="product", last_norm=False),
    ],
)
class BAM(MapLayer):
    """Both branches side by side; see the head of this file.

    Args:
        dim: C.
        reduction: r; h = C // r, one at least.
        dilation, depth: of the 3 x 3 convolutions.
        combine: "sum" or "product" of the two branches.
        last_norm: batch norm at the end of both.

    ``return_aux`` tells the branches, ``map/channel`` (B, C) and ``map/spatial`` (B, H, W), before the sigmoid.

    Raises:
        ValueError: an unknown ``combine`` or sizes that are not positive; a single map in training, whose statistics
            mean nothing.
    """

    card = Card(
        title="Bottleneck attention module",
        paper="arXiv:1807.06514",
        year=2018,
        family="gates",
        data="map",
        stochastic=("batch_norm",),
        refuses={"causal": "each gate has seen the whole map"},
        cost="N",
        summary="Weighs channels and pixels with one joint gate, between the stages of a convolutional network.",
        formula="x (1 + sigmoid(Mc(x) + Ms(x)))",
    )

    def __init__(
        self,
        dim: int,
        reduction: int = 16,
        dilation: int = 4,
        depth: int = 2,
        *,
        combine: Combine = "sum",
        last_norm: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if combine not in get_args(Combine):
            raise ValueError(f'combine={combine!r} is neither "sum" nor "product"')
        if min(dim, reduction, dilation, depth + 1) < 1:
            raise ValueError(f"dim={dim}, reduction={reduction}, dilation={dilation}, depth={depth}: no such sizes")
        self.dim, width = dim, max(1, dim // reduction)
        self.combine: Combine = combine
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.channel = ChannelBranch(dim, width, last_norm=last_norm, **factory)
        self.spatial = SpatialBranch(dim, width, depth, dilation, last_norm=last_norm, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As in the authors' ResNet: convolutions normal by their fan-out, all biases 0, norms 1."""
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            elif part is self.spatial.reduce:  # a convolution of one pixel
                nn.init.kaiming_normal_(self.spatial.reduce.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(part, (nn.Linear, MapBatchNorm)):
                part.reset_parameters()
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)

    def respond(
        self,
        x: Tensor,
        source: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weigh a map; see :class:`regard.map_layers.MapLayer`."""
        channel, spatial = self.channel(x, key_mask), self.spatial(x, key_mask)
        told = {"map/channel": channel, "map/spatial": hide_pixels(spatial, query_mask)[:, 0]}
        return x * joint_gate(channel, spatial, self.combine), told

    def extra_repr(self) -> str:
        return f"dim={self.dim}, combine={self.combine!r}"
