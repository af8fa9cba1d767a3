"""A few learned summaries of a map: mixtures of its channels, and the means of its parts."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.ops.batch_norm import MapBatchNorm

PARTS = (1, 2, 3, 6)
"""An image is cut into so many parts along each axis: 50 centres in all."""


class Mixtures(nn.Module):
    """relu(norm(W x)) for each pixel: K channels of C.

    Args:
        dim, width: C and K.
    """

    def __init__(self, dim: int, width: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, width, bias=False, device=device, dtype=dtype)
        self.norm = MapBatchNorm(width, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """As torch does."""
        self.linear.reset_parameters()
        self.norm.reset_parameters()

    def forward(
        self, x: Float[Tensor, "B C *grid"], mask: Bool[Tensor, "B *grid"] | None = None
    ) -> Float[Tensor, "B K *grid"]:
        """Mix; ``mask``: True for pixels that count in the norm."""
        return self.norm(self.linear(x.movedim(1, -1)).movedim(-1, 1), mask).relu()


class Centres(nn.Module):
    """The means of an image over grids of 1, 2 x 2, 3 x 3 and 6 x 6 parts, each grid through mixtures of its own.

    Args:
        dim: C.
    """

    def __init__(self, dim: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.grids = nn.ModuleList(Mixtures(dim, dim, device=device, dtype=dtype) for _ in PARTS)

    def reset_parameters(self) -> None:
        """As torch does."""
        for grid in self.grids:
            grid.reset_parameters()  # pyright: ignore[reportCallIssue]

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 50 C"]:
        """Grid after grid, each in row-major order."""
        pooled = (F.adaptive_avg_pool2d(x, parts) for parts in PARTS)
        return torch.cat([grid(part).flatten(2) for grid, part in zip(self.grids, pooled, strict=True)], -1).mT
