"""CBAM: a map is multiplied by a gate for each channel, then by a gate for each pixel; or the first alone (SE).

Woo et al. 2018, arXiv:1807.06521, eqs. 1 to 3. With p the pools over all pixels, each B x C, and one small MLP::

    channel:   z = sum over p of W2 relu(W1 p(x) + b1) + b2                        x <- x * sigmoid(z)
    spatial:   s = BN(conv_k([max over channels of x ; mean over channels of x]))  x <- x * sigmoid(s)

There is no residual: in a ResNet the gates stand on the branch, before it is added. As the authors' code, and unlike
the paper's text, the maximum comes before the mean (turn the two input channels of the convolution around for weights
of the other order), the MLP has biases, once for each pool, and a batch norm follows the convolution.

Squeeze-and-excitation, Hu et al. 2017, arXiv:1709.01507, is the first gate alone, of means. Masked pixels are in no
pool and 0 to the convolution. For N pixels, time is O(N C + C^2 / r).
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.map_layers import MapLayer, hide_pixels
from regard.ops.batch_norm import MapBatchNorm
from regard.ops.pixel_pools import POOLS, Pool, pool_pixels
from regard.registry import Card, Sample, register

Gate = Literal["channel", "spatial"]


def channel_logits(
    x: Float[Tensor, "B C H W"],
    first: tuple[Float[Tensor, "h C"], Float[Tensor, " h"] | None],
    second: tuple[Float[Tensor, "C h"], Float[Tensor, " C"] | None],
    *,
    pools: Sequence[Pool] = ("avg", "max"),
    key_mask: Bool[Tensor, "B H W"] | None = None,
) -> Float[Tensor, "B C"]:
    """z of the channel gate; see the head of this file.

    Args:
        x: a map.
        first, second: weight and bias of the two layers of the MLP.
        pools: what the MLP sees of each channel.
        key_mask: True for pixels that count.

    Example:
        >>> x = torch.ones(1, 2, 3, 3)
        >>> channel_logits(x, (torch.eye(2), None), (torch.eye(2), torch.ones(2))).tolist()
        [[4.0, 4.0]]
    """
    pooled = torch.stack([pool_pixels(x, key_mask, pool) for pool in pools])
    return F.linear(F.linear(pooled, *first).relu(), *second).sum(0)


def channel_summary(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 2 H W"]:
    """What the spatial gate sees of each pixel: the maximum of its channels, then their mean.

    Example:
        >>> channel_summary(torch.tensor([1.0, 5.0, 3.0]).view(1, 3, 1, 1)).flatten().tolist()
        [5.0, 3.0]
    """
    return torch.stack((x.max(1).values, x.mean(1)), 1)


class ChannelGate(nn.Module):
    """The parameters of :func:`channel_logits`.

    Args:
        dim: C.
        reduction: r; the MLP has C // r hidden units, one at least.
        pools: what it sees.
        bias: whether its layers have biases.
    """

    def __init__(
        self,
        dim: int,
        reduction: int = 16,
        pools: Sequence[Pool] = ("avg", "max"),
        *,
        bias: bool = True,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.pools, width = tuple(pools), max(1, dim // reduction)
        self.first, self.second = nn.Linear(dim, width, bias, **factory), nn.Linear(width, dim, bias, **factory)

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Logits (B, C)."""
        layers = ((layer.weight, layer.bias) for layer in (self.first, self.second))
        return channel_logits(x, *layers, pools=self.pools, key_mask=key_mask)


class SpatialGate(nn.Module):
    """A convolution over :func:`channel_summary`.

    Args:
        kernel_size: k, odd.
        norm: batch norm after the convolution.
    """

    def __init__(self, kernel_size: int = 7, *, norm: bool = True, **factory: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False, **factory)
        self.norm = MapBatchNorm(1, momentum=0.01, **factory) if norm else None

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Logits (B, 1, H, W)."""
        logits = self.conv(channel_summary(hide_pixels(x, key_mask)))
        return logits if self.norm is None else self.norm(logits, key_mask)


@register(
    "cbam",
    samples=[
        Sample(dim=8, reduction=4),
        Sample(dim=8, reduction=2, pools=("lp", "lse"), gates=("spatial", "channel"), kernel_size=3, norm=False),
        Sample(dim=8, reduction=2, pools=("avg",), gates=("channel",), mlp_bias=False, claims={"stochastic": ()}),
    ],
)
class CBAM(MapLayer):
    """A gate for each channel and one for each pixel; see the head of this file.

    Args:
        dim: C.
        reduction: r; the MLP has C // r hidden units, one at least.
        pools: what the MLP sees of each channel: "avg", "max", "lp" (length), "lse" (soft maximum).
        gates: which gates, in this order: ("channel",) leaves the spatial one out.
        kernel_size: k of the spatial gate, odd.
        mlp_bias, norm: biases of the MLP and batch norm of the spatial gate, which the paper's text has not.

    ``return_aux`` tells the gates, ``map/channel`` (B, C) and ``map/spatial`` (B, H, W).

    Raises:
        ValueError: unknown or no pools or gates, an even kernel, or sizes that are not positive.
    """

    card = Card(
        title="CBAM",
        paper="arXiv:1807.06521",
        year=2018,
        family="gates",
        data="map",
        stochastic=("batch_norm",),
        refuses={"causal": "each gate has seen the whole map"},
        cost="N",
        summary="Weighs channels, then pixels: a drop-in for any block of a convolutional network at hardly any cost.",
        formula="x sigmoid(sum_p MLP(p(x))), then x sigmoid(BN(conv([max_c x; mean_c x])))",
    )

    def __init__(
        self,
        dim: int,
        reduction: int = 16,
        pools: Sequence[Pool] = ("avg", "max"),
        gates: Sequence[Gate] = ("channel", "spatial"),
        kernel_size: int = 7,
        *,
        mlp_bias: bool = True,
        norm: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not pools or set(pools) - set(POOLS):
            raise ValueError(f"pools={pools!r}: name one or more of {', '.join(POOLS)}")
        if not gates or set(gates) - set(get_args(Gate)) or len(set(gates)) < len(gates):
            raise ValueError(f'gates={gates!r}: name "channel", "spatial" or both, each once')
        if min(dim, reduction) < 1:
            raise ValueError(f"dim={dim} and reduction={reduction} must be positive")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size}: only an odd one has a centre")
        self.dim, self.gates = dim, tuple(gates)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.channel = self.spatial = None
        if "channel" in gates:
            self.channel = ChannelGate(dim, reduction, pools, bias=mlp_bias, **factory)
        if "spatial" in gates:
            self.spatial = SpatialGate(kernel_size, norm=norm, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As in the authors' ResNet: all spatial gates start at 1/2, as the weight of their norm is 0; biases are 0."""
        for part in self.modules():
            if isinstance(part, nn.Linear):
                part.reset_parameters()
            elif isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(part, MapBatchNorm):
                part.reset_parameters()
                nn.init.zeros_(part.weight)
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
        """Both gates in turn; see :class:`regard.map_layers.MapLayer`."""
        told: dict[str, Tensor] = {}
        for name in self.gates:
            if name == "channel" and self.channel is not None:
                gate = told["map/channel"] = self.channel(x, key_mask).sigmoid()
                x = x * gate[:, :, None, None]
            elif self.spatial is not None:
                gate = self.spatial(x, key_mask).sigmoid()
                told["map/spatial"] = hide_pixels(gate, query_mask)[:, 0]
                x = x * gate
        return x, told

    def extra_repr(self) -> str:
        return f"dim={self.dim}, gates={self.gates}"


class SqueezeExcitation(CBAM):
    """x * sigmoid(W2 relu(W1 mean(x) + b1) + b2): channels alone, weighed by their means.

    Args:
        dim: C.
        reduction: r; C // r hidden units, one at least.
        bias: biases, which the original has and most copies in PyTorch have not.

    Example:
        >>> SqueezeExcitation(32)(torch.randn(2, 32, 5, 7)).shape
        torch.Size([2, 32, 5, 7])
    """

    card = Card(
        title="Squeeze-and-excitation",
        paper="arXiv:1709.01507",
        year=2017,
        family="gates",
        data="map",
        refuses=CBAM.card.refuses,
        cost="N",
        summary="Weighs the channels of a map by what it shows on the whole.",
        formula="x sigmoid(W2 relu(W1 mean(x) + b1) + b2)",
    )

    def __init__(
        self,
        dim: int,
        reduction: int = 16,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, reduction, ("avg",), ("channel",), mlp_bias=bias, device=device, dtype=dtype)
