"""The Evoformer of AlphaFold 2: an alignment and a map of residue pairs inform each other, and edges their triangles.

Jumper et al. 2021, Nature 596, "Highly accurate protein structure prediction with AlphaFold", supplementary Algorithms
6-15 and 18-19. With m (S x R x c_m), S aligned sequences of R residues, and z (R x R x c_z) a block is::

    m += row attention(m, bias from z)      z += outer product mean(m)
    m += column attention(m)                z += triangle multiplication(z), outgoing, then incoming
    m += transition(m)                      z += triangle attention(z), starting, then ending node
                                            z += transition(z)

the left column first. Each part says its formula in its own file: :mod:`regard.ops.msa_attention`,
:mod:`regard.ops.outer_product_mean`, :mod:`regard.ops.triangle_multiplication`, :mod:`regard.ops.triangle_attention`,
:mod:`regard.ops.transition`. Time O(S R^2 + R S^2 + R^3), memory O(S R + R^2): no logits ever exist as a whole.

Where text and code of the authors differ we compute what their published weights need: the bias of the outer product
mean is divided too, and transitions take no mask. A sequence or edge row whose keys are all masked attends uniformly.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from regard.ops.alignment_door import admit_alignment, hide_pairs
from regard.ops.dropout import drop_shared
from regard.ops.msa_attention import MsaColumnAttention, MsaGlobalColumnAttention, MsaRowAttention
from regard.ops.outer_product_mean import OuterProductMean
from regard.ops.projection import reset_all
from regard.ops.transition import Transition
from regard.ops.triangle_attention import TriangleAttention
from regard.ops.triangle_multiplication import TriangleMultiplication
from regard.registry import Card, Layer, Sample, register

__all__ = ["AlphaFold2", "Drops", "TriangleAttention", "TriangleMultiplication"]


class Drops(NamedTuple):
    """Dropout on each update; a draw is shared by all sequences, by all rows of pairs, or by all columns of pairs.

    Attributes:
        row, column, msa_transition: of updates of the alignment; shared by sequences, by residues, by sequences.
        outer, outgoing, incoming, starting, ending, pair_transition: of updates of the pairs; shared by rows, those
            of ``ending`` by columns.
    """

    row: float = 0.15
    column: float = 0.0
    msa_transition: float = 0.0
    outer: float = 0.0
    outgoing: float = 0.25
    incoming: float = 0.25
    starting: float = 0.25
    ending: float = 0.25
    pair_transition: float = 0.0


_COLUMNS = ("column", "ending")
"""Updates whose draw is shared along the second of the two axes."""


def _inputs() -> dict[str, Tensor]:
    make = torch.Generator().manual_seed(0)
    return {"msa": torch.randn(2, 5, 7, 10, generator=make), "pair": torch.randn(2, 7, 7, 8, generator=make)}


def _masked_inputs() -> dict[str, Tensor]:
    seen = torch.ones(2, 5, 7, dtype=torch.bool)
    seen[1, 3:], seen[1, :, 5:], seen[0, 1, 2] = False, False, False
    return {**_inputs(), "msa_mask": seen, "pair_mask": seen[:, 0, :, None] & seen[:, 0, None]}


_TINY: dict[str, Any] = {
    "dim": 10,
    "pair_dim": 8,
    "num_heads": 2,
    "head_dim": 4,
    "pair_heads": 2,
    "pair_head_dim": 4,
    "triangle_width": 6,
    "outer_width": 3,
    "factor": 2,
}


@register(
    "alphafold2",
    samples=[
        Sample(inputs=_inputs, **_TINY),
        Sample(inputs=_masked_inputs, global_columns=True, chunk_size=2, **_TINY),
        Sample(inputs=_masked_inputs, outer_first=True, msa_drop=0.3, pair_drop=0.0, **_TINY),
    ],
)
class AlphaFold2(Layer):
    """One block of the Evoformer; see the head of this file.

    Args:
        dim, pair_dim: c_m and c_z.
        num_heads, head_dim: of row and column attention.
        pair_heads, pair_head_dim: of triangle attention.
        triangle_width: c of triangle multiplication.
        outer_width: c of the outer product mean.
        factor: of the transitions.
        global_columns: one query a column, as for the thousands of sequences of the extra MSA (Algorithm 18).
        outer_first: the pairs hear from the alignment before all else, as in AlphaFold-Multimer 2.3.
        msa_drop: dropout on the update of row attention, one draw for all sequences.
        pair_drop: dropout on the triangle updates, one draw for all rows, at the ending node for all columns.
        drops: all rates, instead of ``msa_drop`` and ``pair_drop``.
        chunk_size: rows at a time in attention and transitions; slower, in less memory. None: all.

    Raises:
        ValueError: sizes below 1, or rates outside of [0, 1).

    Example:
        >>> block = AlphaFold2(16, 8, num_heads=2, head_dim=8, pair_heads=2, pair_head_dim=4)
        >>> msa, pair = block(torch.randn(1, 5, 9, 16), torch.randn(1, 9, 9, 8))
        >>> msa.shape, pair.shape
        (torch.Size([1, 5, 9, 16]), torch.Size([1, 9, 9, 8]))
    """

    card = Card(
        title="AlphaFold 2 (Evoformer)",
        paper="doi:10.1038/s41586-021-03819-2",
        year=2021,
        family="pairs",
        data="pair",
        smooth=True,
        stochastic=("dropout",),
        empty_rows="uniform",
        refuses={"causal": "every residue sees every other one"},
        cost="S R^2 + R S^2 + R^3",
        summary="An alignment of sequences beside a map of all pairs, which attends along triangles.",
        formula="z_ij += softmax_k(q_ij . k_ik / sqrt(c) + b_jk) v_ik",
    )

    def __init__(
        self,
        dim: int = 256,
        pair_dim: int = 128,
        num_heads: int = 8,
        head_dim: int = 32,
        *,
        pair_heads: int = 4,
        pair_head_dim: int = 32,
        triangle_width: int = 128,
        outer_width: int = 32,
        factor: int = 4,
        global_columns: bool = False,
        outer_first: bool = False,
        msa_drop: float = 0.15,
        pair_drop: float = 0.25,
        drops: Drops | None = None,
        chunk_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        of_pairs = dict.fromkeys(("outgoing", "incoming", "starting", "ending"), pair_drop)
        self.drops = drops or Drops(row=msa_drop, **of_pairs)
        if not all(0 <= rate < 1 for rate in self.drops):
            raise ValueError(f"{self.drops}: rates of dropout lie in [0, 1)")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size={chunk_size}: a chunk has 1 row or more; None computes all rows at once")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.dim, self.pair_dim, self.chunk_size = dim, pair_dim, chunk_size
        self.global_columns, self.outer_first = global_columns, outer_first
        self.row = MsaRowAttention(dim, pair_dim, num_heads, head_dim, **factory)
        if global_columns:
            self.global_column = MsaGlobalColumnAttention(dim, num_heads, head_dim, **factory)
        else:
            self.column = MsaColumnAttention(dim, num_heads, head_dim, **factory)
        self.msa_transition = Transition(dim, factor, **factory)
        self.outer = OuterProductMean(dim, pair_dim, outer_width, **factory)
        self.outgoing = TriangleMultiplication(pair_dim, triangle_width, **factory)
        self.incoming = TriangleMultiplication(pair_dim, triangle_width, incoming=True, **factory)
        self.starting = TriangleAttention(pair_dim, pair_heads, pair_head_dim, **factory)
        self.ending = TriangleAttention(pair_dim, pair_heads, pair_head_dim, ending=True, **factory)
        self.pair_transition = Transition(pair_dim, factor, **factory)

    def reset_parameters(self) -> None:
        """Every update starts at 0; see :class:`regard.ops.projection.Projection`."""
        reset_all(self)

    def forward(
        self,
        msa: Tensor,
        pair: Tensor,
        msa_mask: Tensor | None = None,
        pair_mask: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Update both.

        Args:
            msa: m, (B, S, R, c_m).
            pair: z, (B, R, R, c_z).
            msa_mask: Bool (B, S, R), True for residues that take part.
            pair_mask: Bool (B, R, R), True for pairs that take part.
            generator: draws the dropout.

        Returns:
            m and z, 0 where masked.

        Raises:
            ValueError, TypeError: shapes or masks that do not fit.
        """
        msa, pair = admit_alignment(msa, pair, msa_mask, pair_mask, self.dim, self.pair_dim)
        msa, pair = self.update(msa, pair, msa_mask, pair_mask, generator)
        return hide_pairs(msa, msa_mask), hide_pairs(pair, pair_mask)

    def update(
        self,
        msa: Float[Tensor, "B S R C"],
        pair: Float[Tensor, "B R R E"],
        msa_mask: Bool[Tensor, "B S R"] | None,
        pair_mask: Bool[Tensor, "B R R"] | None,
        generator: Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What :meth:`forward` does to admitted tensors; masked places hold finite numbers that mean nothing."""
        size = self.chunk_size
        column = self.global_column if self.global_columns else self.column
        if self.outer_first:
            pair = pair + self._dropped("outer", self.outer(msa, msa_mask), generator)
        msa = msa + self._dropped("row", self.row(msa, pair, msa_mask, chunk_size=size), generator)
        msa = msa + self._dropped("column", column(msa, msa_mask, chunk_size=size), generator)
        msa = msa + self._dropped("msa_transition", self.msa_transition(msa, chunk_size=size), generator)
        if not self.outer_first:
            pair = pair + self._dropped("outer", self.outer(msa, msa_mask), generator)
        pair = pair + self._dropped("outgoing", self.outgoing(pair, pair_mask), generator)
        pair = pair + self._dropped("incoming", self.incoming(pair, pair_mask), generator)
        pair = pair + self._dropped("starting", self.starting(pair, pair_mask, chunk_size=size), generator)
        pair = pair + self._dropped("ending", self.ending(pair, pair_mask, chunk_size=size), generator)
        pair = pair + self._dropped("pair_transition", self.pair_transition(pair, chunk_size=size), generator)
        return msa, pair

    def _dropped(self, name: str, update: Tensor, generator: Generator | None) -> Tensor:
        """The update, multiplied by one draw for all rows or columns."""
        rate = getattr(self.drops, name) * self.training
        return drop_shared(update, rate, 2 if name in _COLUMNS else 1, generator)

    def extra_repr(self) -> str:
        return f"outer_first={self.outer_first}, drops={tuple(self.drops)}, chunk_size={self.chunk_size}"
