"""The transition of AlphaFold: a perceptron at every place."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.ops.chunks import in_chunks
from regard.ops.projection import Projection


class Transition(nn.Module):
    """L(ReLU(L(LN x))) with ``factor`` times the channels inside (Jumper et al. 2021, Algorithms 9 and 15).

    It takes no mask, like the authors' code: each place is on its own.

    Args:
        dim: C.
        factor: n, of the inner width n C.

    Example:
        >>> Transition(12)(torch.randn(1, 5, 7, 12)).shape
        torch.Size([1, 5, 7, 12])
    """

    def __init__(
        self,
        dim: int,
        factor: float = 4,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        inner = round(factor * dim)
        if min(dim, inner) < 1:
            raise ValueError(f"dim={dim}, factor={factor}: sizes must be positive")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm = nn.LayerNorm(dim, **factory)
        self.inner = Projection(dim, inner, "relu", **factory)
        self.out = Projection(inner, dim, "zero", **factory)

    def forward(self, x: Float[Tensor, "B N M C"], *, chunk_size: int | None = None) -> Float[Tensor, "B N M C"]:
        """The update, ``chunk_size`` rows at a time."""
        return in_chunks(self._rows, chunk_size, 1, x)

    def _rows(self, x: Tensor) -> Tensor:
        return self.out(self.inner(self.norm(x)).relu())
