"""Rotary positions: queries and keys turned by their position, so that scores depend on distances only.

Su et al. 2021, arXiv:2104.09864, eq. 34, with feature i paired to feature i + D / 2 (the layout of Llama and GPT-NeoX;
the paper pairs neighbours, which is the same up to a permutation of the features of both).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def rotate(
    x: Float[Tensor, "B H N D"], positions: Int[Tensor, "#B N"], base: float = 10000.0
) -> Float[Tensor, "B H N D"]:
    """Turn the pair (x_i, x_{i + D/2}) by the angle position / base^(2i / D), computed in float32 at least.

    Example:
        >>> rotate(torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[0]]))
        tensor([[[[1., 0.]]]])
    """
    half = x.shape[-1] // 2
    dtype = torch.promote_types(x.dtype, torch.float32)
    speed = base ** -(torch.arange(half, device=x.device, dtype=dtype) / half)
    angle = (positions.to(dtype)[..., None] * speed)[:, None]
    cos, sin = angle.cos(), angle.sin()
    left, right = x.to(dtype).split(half, -1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1).to(x.dtype)


class Rotary(nn.Module):
    """:func:`rotate` with a fixed base, as ``MultiHead(rotary=base)`` uses it; any module called alike can replace it.

    Args:
        base: the slowest pair turns once in about 2 pi base tokens.
    """

    def __init__(self, base: float = 10000.0) -> None:
        super().__init__()
        if base <= 0:
            raise ValueError(f"rotary={base}: the base must be positive, 10000 in the paper")
        self.base = base

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, H, N, D) turned by positions (B or 1, N)."""
        return rotate(x, positions, self.base)

    def extra_repr(self) -> str:
        return f"base={self.base:g}"
