"""What an alignment tells pairs of residues: the mean outer product of two columns.

Jumper et al. 2021, supplementary Algorithm 10. With a = mask * L(LN m), b likewise, of c channels::

    y_ij = (W vec(sum_s a_si (x) b_sj) + bias) / (1e-3 + sum_s mask_si mask_sj)

The bias stands inside the division, as in the authors' code and for their weights: a pair of residues that no sequence
has both of gets 1000 times the bias. O(S R^2 c^2 + R^2 c^2 c_z) time; the R^2 c^2 products exist a few rows at a time
(but in a compiled graph, which serves every length).
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.ops.chunks import in_chunks
from regard.ops.projection import Projection

AT_ONCE = 1 << 22
"""Products that exist at the same time: 16 MB in float32."""


class OuterProductMean(nn.Module):
    """From the alignment to the pairs; see the head of this file.

    Args:
        dim, pair_dim: c_m and c_z.
        width: c.

    Example:
        >>> OuterProductMean(12, 8, width=4)(torch.randn(1, 5, 7, 12)).shape
        torch.Size([1, 7, 7, 8])
    """

    def __init__(
        self,
        dim: int,
        pair_dim: int,
        width: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if min(dim, pair_dim, width) < 1:
            raise ValueError(f"dim={dim}, pair_dim={pair_dim}, width={width}: sizes must be positive")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm = nn.LayerNorm(dim, **factory)
        self.left, self.right = (Projection(dim, width, **factory) for _ in range(2))
        self.out = Projection(width * width, pair_dim, "zero", **factory)  # from (left, right), left slowest

    def forward(
        self, msa: Float[Tensor, "B S R C"], msa_mask: Bool[Tensor, "B S R"] | None = None
    ) -> Float[Tensor, "B R R E"]:
        """The update of the pairs.

        Args:
            msa: m.
            msa_mask: True for residues that take part.
        """
        x = self.norm(msa)
        left, right = self.left(x), self.right(x)
        if msa_mask is not None:
            left, right = (side.masked_fill(~msa_mask[..., None], 0.0) for side in (left, right))
        columns = left.permute(0, 2, 3, 1)  # (B, R, c, S)
        others = right.flatten(2)  # (B, S, R c)
        size = max(1, AT_ONCE // (others[..., 0, :].numel() * left.shape[-1]))
        total = in_chunks(partial(self._rows, others), size, 1, columns)
        if msa_mask is None:
            return total / (1e-3 + msa.shape[1])
        seen = msa_mask.to(torch.promote_types(total.dtype, torch.float32))
        return (total / (1e-3 + seen.mT @ seen)[..., None]).to(total.dtype)

    def _rows(self, others: Tensor, columns: Tensor) -> Tensor:
        """Some columns of the left side (B, I, c, S) meet all of the right one (B, S, R c): (B, I, R, c_z)."""
        outer = (columns.flatten(1, 2) @ others).unflatten(1, columns.shape[1:3]).unflatten(3, (-1, columns.shape[2]))
        return self.out(outer.transpose(2, 3).flatten(3))
