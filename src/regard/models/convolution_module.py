"""The convolution module of the Conformer: what attention over all frames does not see at once, the near ones.

Gulati et al. 2020, arXiv:2005.08100, section 2.2, figure 2::

    y = x + dropout(W_2 silu(norm(depthwise(glu(W_1 layer_norm(x))))))

The norm after the depthwise convolution is a LayerNorm instead of the paper's BatchNorm, so that neither padding nor a
neighbour in the batch changes anything, and streamed frames are normalised as whole recordings are.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.ops.masks import check_mask, check_tokens, hide


class ConvolutionModule(nn.Module):
    """x (B, N, C) and what a convolution over near places makes of it; zeros stand beyond both ends.

    Args:
        dim: C.
        kernel: places that a result reads: as many to each side, or with ``causal`` itself and those before it.
        causal: nothing reads a later place, so that it can be streamed.
        dropout: on the result.

    Raises:
        ValueError: a kernel that has no middle.

    Example:
        >>> ConvolutionModule(8, 5)(torch.randn(2, 7, 8)).shape
        torch.Size([2, 7, 8])
    """

    def __init__(
        self,
        dim: int,
        kernel: int = 15,
        *,
        causal: bool = False,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if kernel < 1 or not (causal or kernel % 2):
            raise ValueError(f"kernel={kernel}: it must be positive, and odd unless it is causal")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.dim, self.kernel, self.causal = dim, kernel, causal
        self.norm = nn.LayerNorm(dim, **factory)
        self.enter = nn.Linear(dim, 2 * dim, **factory)
        self.depthwise = nn.Conv1d(dim, dim, kernel, groups=dim, **factory)
        self.inner_norm = nn.LayerNorm(dim, **factory)
        self.leave = nn.Linear(dim, dim, **factory)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B N C"], key_mask: Bool[Tensor, "B N"] | None = None) -> Float[Tensor, "B N C"]:
        """Whole sequences; masked places, True being real, are read as zeros."""
        check_tokens(x, self.dim)
        check_mask(key_mask, x.shape[0], x.shape[1])
        before = self.kernel - 1 if self.causal else self.kernel // 2
        gated = hide(self._gate(x), key_mask)
        return x + self._answer(F.pad(gated, (0, 0, before, self.kernel - 1 - before)))

    def memory(self, batch: int) -> Float[Tensor, "B k C"]:
        """Of sequences of which nothing has been seen: the zeros before them."""
        return self.leave.weight.new_zeros(batch, self.kernel - 1, self.dim)

    def stream(
        self, x: Float[Tensor, "B N C"], memory: Float[Tensor, "B k C"]
    ) -> tuple[Float[Tensor, "B N C"], Float[Tensor, "B k C"]]:
        """The next places, and the gated ones that those after them will read."""
        gated = torch.cat((memory, self._gate(x)), 1)
        return x + self._answer(gated), gated[:, x.shape[1] :].clone()

    def _gate(self, x: Tensor) -> Tensor:
        return F.glu(self.enter(self.norm(x)), -1)

    def _answer(self, gated: Tensor) -> Tensor:
        if gated.shape[1] < self.kernel:
            return gated[:, :0]
        near = self.depthwise(gated.transpose(1, 2)).transpose(1, 2)
        return self.drop(self.leave(F.silu(self.inner_norm(near))))
