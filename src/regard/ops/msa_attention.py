"""Attention within an alignment: along its sequences, along its columns, and by one query for a whole column.

Jumper et al. 2021, supplementary Algorithms 7, 8 and 19, on S aligned sequences of R residues. All return an update.
"""

from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.ops.chunks import in_chunks
from regard.ops.gated_attention import GatedAttention, GlobalAttention
from regard.ops.projection import Projection


class MsaRowAttention(nn.Module):
    """Each sequence attends over its residues; one bias from the pairs is shared by all (Algorithm 7).

    logit_sij = q_si . k_sj / sqrt(c) + w . LN(z)_ij, w (c_z) a head, N(0, 1 / c_z). O(S R^2 h c); the bias is R^2 h
    numbers.

    Args:
        dim, pair_dim: c_m and c_z.
        num_heads, head_dim: h and c.
        value_dim, gated: as in :class:`regard.ops.gated_attention.GatedAttention`.

    Example:
        >>> MsaRowAttention(12, 8, num_heads=3, head_dim=4)(torch.randn(1, 5, 7, 12), torch.randn(1, 7, 7, 8)).shape
        torch.Size([1, 5, 7, 12])
    """

    def __init__(
        self,
        dim: int,
        pair_dim: int,
        num_heads: int,
        head_dim: int,
        *,
        value_dim: int | None = None,
        gated: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm, self.pair_norm = nn.LayerNorm(dim, **factory), nn.LayerNorm(pair_dim, **factory)
        self.attention = GatedAttention(dim, num_heads, head_dim, value_dim=value_dim, gated=gated, **factory)
        self.bias = Projection(pair_dim, num_heads, "normal", bias=False, **factory)

    def forward(
        self,
        msa: Float[Tensor, "B S R C"],
        pair: Float[Tensor, "B R R E"],
        msa_mask: Bool[Tensor, "B S R"] | None = None,
        *,
        chunk_size: int | None = None,
    ) -> Float[Tensor, "B S R C"]:
        """The update of the alignment; ``chunk_size`` sequences at a time."""
        bias = pair_bias(self.bias, self.pair_norm(pair))
        return in_chunks(partial(self._rows, bias), chunk_size, 1, msa, msa_mask)

    def _rows(self, bias: Tensor, msa: Tensor, mask: Tensor | None) -> Tensor:
        return self.attention(self.norm(msa), bias=bias, key_mask=mask)


def pair_bias(projection: nn.Linear, pair: Float[Tensor, "B R R C"]) -> Float[Tensor, "B 1 H R R"]:
    """One number a head for every normalised pair: what all rows of an attention share.

    Example:
        >>> pair_bias(nn.Linear(8, 2), torch.randn(1, 5, 5, 8)).shape
        torch.Size([1, 1, 2, 5, 5])
    """
    return projection(pair).permute(0, 3, 1, 2).contiguous()[:, None]


class MsaColumnAttention(nn.Module):
    """Each residue attends over the sequences, within its column (Algorithm 8). O(R S^2 h c).

    Args:
        dim: c_m.
        num_heads, head_dim: h and c.
        value_dim, gated: as in :class:`regard.ops.gated_attention.GatedAttention`.

    Example:
        >>> MsaColumnAttention(12, num_heads=3, head_dim=4)(torch.randn(1, 5, 7, 12)).shape
        torch.Size([1, 5, 7, 12])
    """

    of_columns: ClassVar[type[GatedAttention] | type[GlobalAttention]] = GatedAttention

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int,
        *,
        value_dim: int | None = None,
        gated: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm = nn.LayerNorm(dim, **factory)
        self.attention = self.of_columns(dim, num_heads, head_dim, value_dim=value_dim, gated=gated, **factory)

    def forward(
        self,
        msa: Float[Tensor, "B S R C"],
        msa_mask: Bool[Tensor, "B S R"] | None = None,
        *,
        chunk_size: int | None = None,
    ) -> Float[Tensor, "B S R C"]:
        """The update of the alignment; ``chunk_size`` columns at a time."""
        return in_chunks(self._columns, chunk_size, 2, msa, msa_mask)

    def _columns(self, msa: Tensor, mask: Tensor | None) -> Tensor:
        mask = None if mask is None else mask.mT
        return self.attention(self.norm(msa.transpose(1, 2)), key_mask=mask).transpose(1, 2)


class MsaGlobalColumnAttention(MsaColumnAttention):
    """The mean of a column asks it, for thousands of sequences (Algorithm 19). O(S R h c).

    Args:
        dim: c_m.
        num_heads, head_dim: h and c.
        value_dim, gated: as in :class:`regard.ops.gated_attention.GlobalAttention`.

    Example:
        >>> MsaGlobalColumnAttention(12, num_heads=3, head_dim=4)(torch.randn(1, 5, 7, 12)).shape
        torch.Size([1, 5, 7, 12])
    """

    of_columns = GlobalAttention
