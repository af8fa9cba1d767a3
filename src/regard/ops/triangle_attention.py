"""Triangle attention: the edges that leave a node, or those that reach it, attend to each other.

Jumper et al. 2021, supplementary Algorithms 13 and 14. With z' = LN(z) and one bias b = w . z' a head for every pair::

    starting node:  edge ij asks the edges ik,  logit = q_ij . k_ik / sqrt(c) + b_jk
    ending node:    edge ij asks the edges kj,  logit = q_ij . k_kj / sqrt(c) + b_ki

that is the starting node on z^T, turned back. O(R^3 h c) time; the logits, R^3 h numbers, never exist: the one map of
biases, R^2 h, is shared by all rows, and memory is O(R^2 (C + h c)), forward and backward.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.ops.chunks import in_chunks
from regard.ops.gated_attention import GatedAttention
from regard.ops.msa_attention import pair_bias
from regard.ops.projection import Projection


class TriangleAttention(nn.Module):
    """Attention among the edges of a node; see the head of this file.

    Args:
        dim: C of the pairs.
        num_heads, head_dim: h and c.
        ending: around the node where edges end (Algorithm 14).
        value_dim, gated: as in :class:`regard.ops.gated_attention.GatedAttention`.

    Example:
        >>> TriangleAttention(12, num_heads=3, head_dim=4, ending=True)(torch.randn(1, 7, 7, 12)).shape
        torch.Size([1, 7, 7, 12])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int,
        *,
        ending: bool = False,
        value_dim: int | None = None,
        gated: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.ending = ending
        self.norm = nn.LayerNorm(dim, **factory)
        self.bias = Projection(dim, num_heads, "normal", bias=False, **factory)
        self.attention = GatedAttention(dim, num_heads, head_dim, value_dim=value_dim, gated=gated, **factory)

    def forward(
        self,
        pair: Float[Tensor, "B R R C"],
        pair_mask: Bool[Tensor, "B R R"] | None = None,
        *,
        chunk_size: int | None = None,
    ) -> Float[Tensor, "B R R C"]:
        """The update of the pairs; ``chunk_size`` nodes at a time.

        Args:
            pair: z.
            pair_mask: True for edges that take part as keys.
            chunk_size: nodes at a time; None: all.
        """
        if self.ending:
            pair = pair.transpose(1, 2)
            pair_mask = None if pair_mask is None else pair_mask.mT
        pair = self.norm(pair)
        bias = pair_bias(self.bias, pair)
        update = in_chunks(partial(self._nodes, bias), chunk_size, 1, pair, pair_mask)
        return update.transpose(1, 2) if self.ending else update

    def _nodes(self, bias: Tensor, pair: Tensor, mask: Tensor | None) -> Tensor:
        return self.attention(pair, bias=bias, key_mask=mask)

    def extra_repr(self) -> str:
        return f"ending={self.ending}"
