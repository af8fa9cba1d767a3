"""A linear layer on every pixel, a convolution of width 1, without a copy of the map in another layout."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


def pixelwise(linear: nn.Linear, x: Float[Tensor, "B C N"]) -> Float[Tensor, "B O N"]:
    """W x + b for each pixel: ``linear`` on the features in the middle, where N stand side by side.

    Example:
        >>> linear, x = nn.Linear(4, 3), torch.randn(2, 4, 5)
        >>> torch.allclose(pixelwise(linear, x), linear(x.mT).mT, atol=1e-6)
        True
    """
    if linear.bias is None:  # pyright: ignore[reportUnnecessaryComparison]
        return linear.weight @ x
    return torch.baddbmm(linear.bias[:, None], linear.weight.expand(x.shape[0], -1, -1), x)
