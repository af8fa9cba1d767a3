"""Convolution, batch norm and perhaps a ReLU, where masked pixels are not seen afterwards nor enter a statistic."""

from typing import Any

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.ops.batch_norm import MapBatchNorm
from regard.ops.single_values import refuse_single_values


def cut(x: Float[Tensor, "B C h w"], height: int, width: int) -> Float[Tensor, "B C height width"]:
    """The first rows and columns of a map, by a negative padding: of a slice, graphs ask whether it leaves all.

    Example:
        >>> import torch
        >>> cut(torch.arange(6.0).view(1, 1, 2, 3), 1, 2).flatten().tolist()
        [0.0, 1.0]
    """
    return F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]))


class ConvNorm(nn.Module):
    """A convolution, a batch norm and perhaps a ReLU; masked pixels come out as 0 and enter no statistic.

    Args:
        dim, dim_out: channels in and out.
        kernel_size: k; at stride 1 the size stays.
        stride: 2 halves the sides, rounded up.
        up: instead a transposed convolution of 4 x 4 that doubles the sides.
        bias: of the convolution.
        relu: whether one follows.

    Example:
        >>> import torch
        >>> ConvNorm(3, 8, 5, stride=2)(torch.randn(2, 3, 7, 6)).shape
        torch.Size([2, 8, 4, 3])
        >>> ConvNorm(3, 8, 4, up=True)(torch.randn(2, 3, 7, 6)).shape
        torch.Size([2, 8, 14, 12])
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        kernel_size: int,
        *,
        stride: int = 1,
        up: bool = False,
        bias: bool = False,
        relu: bool = True,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.conv: nn.Conv2d | nn.ConvTranspose2d
        if up:
            self.conv = nn.ConvTranspose2d(dim, dim_out, 4, stride=2, padding=1, bias=bias, **factory)
        else:
            self.conv = nn.Conv2d(dim, dim_out, kernel_size, stride, kernel_size // 2, bias=bias, **factory)
        self.norm, self.relu = MapBatchNorm(dim_out, **factory), relu
        self.reset_parameters()

    def forward(
        self, x: Float[Tensor, "B C *grid"], mask: Bool[Tensor, "B *other"] | None = None, like: Tensor | None = None
    ) -> Float[Tensor, "B d *other"]:
        """Of x, 0 where masked; ``mask``: of what comes out; ``like``: a map to whose size that is cut."""
        y = self.conv(x)
        y = y if like is None else cut(y, like.shape[2], like.shape[3])
        refuse_single_values(y, self.norm)
        y = self.norm(y, mask)
        y = y.relu() if self.relu else y
        return y if mask is None else y.masked_fill(~mask[:, None], 0.0)

    def reset_parameters(self) -> None:
        """Uniform by the fan-in of a ReLU, bias 0, norm 1."""
        nn.init.kaiming_uniform_(self.conv.weight, nonlinearity="relu")
        self.norm.reset_parameters()
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)
