"""Triangle multiplication: an edge is updated from the two other edges of every triangle that it belongs to.

Jumper et al. 2021, supplementary Algorithms 11 and 12. With x = LN(z) and c channels::

    a = mask * L(x) * sigmoid(L(x)),  b likewise
    outgoing:  y_ij = sum_k a_ik b_jk
    incoming:  y_ij = sum_k a_ki b_kj
    update_ij = sigmoid(L(x))_ij * L(LN(y))_ij

One matrix product of R x R a channel: O(R^3 c) time, O(R^2 c) memory.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.ops.projection import Projection


class TriangleMultiplication(nn.Module):
    """The product of two edges of each triangle; see the head of this file.

    Args:
        dim: C of the pairs.
        width: c.
        incoming: along edges that reach the two nodes (Algorithm 12).

    Example:
        >>> TriangleMultiplication(12, width=8)(torch.randn(1, 7, 7, 12)).shape
        torch.Size([1, 7, 7, 12])
    """

    def __init__(
        self,
        dim: int,
        width: int,
        *,
        incoming: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if min(dim, width) < 1:
            raise ValueError(f"dim={dim}, width={width}: sizes must be positive")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.incoming = incoming
        self.norm, self.out_norm = nn.LayerNorm(dim, **factory), nn.LayerNorm(width, **factory)
        # a, then b; for incoming edges b, then a: the published weights call these left and right
        self.sides = Projection(dim, 2 * width, "linear", **factory)
        self.side_gates = Projection(dim, 2 * width, "gate", **factory)
        self.gate = Projection(dim, dim, "gate", **factory)
        self.out = Projection(width, dim, "zero", **factory)

    def forward(
        self, pair: Float[Tensor, "B R R C"], pair_mask: Bool[Tensor, "B R R"] | None = None
    ) -> Float[Tensor, "B R R C"]:
        """The update of the pairs.

        Args:
            pair: z.
            pair_mask: True for edges that take part.
        """
        x = self.norm(pair)
        update = self.out(self.out_norm(self._product(x, pair_mask).permute(0, 2, 3, 1)))
        return update * self.gate(x).sigmoid()

    def _product(self, x: Tensor, mask: Tensor | None) -> Float[Tensor, "B D R R"]:
        """y, channels first."""
        left, right = self._side(x, mask, 0), self._side(x, mask, 1)
        return right.mT @ left if self.incoming else left @ right.mT

    def _side(self, x: Tensor, mask: Tensor | None, number: int) -> Float[Tensor, "B D R R"]:
        """Left (0) or right (1), channels first; one at a time, as each is made from twice as many channels."""
        parts = self.sides, self.side_gates
        weight = torch.cat([part.weight.chunk(2)[number] for part in parts])
        bias = torch.cat([part.bias.chunk(2)[number] for part in parts])
        both = torch.baddbmm(bias[:, None], weight.expand(x.shape[0], -1, -1), x.flatten(1, 2).mT)
        side = F.glu(both, dim=1).unflatten(2, x.shape[1:3])
        return side if mask is None else side.masked_fill(~mask[:, None], 0.0)

    def extra_repr(self) -> str:
        return f"incoming={self.incoming}"
