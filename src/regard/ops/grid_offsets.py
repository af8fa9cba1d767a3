"""Scores that know offsets on an image, as features: relative attention in windows becomes one plain product.

Query i adds to q_i . k_j a number for the row and one for the column of key j, counted from its own: r_i[y_j - y_i] and
c_i[x_j - x_i]. Along an axis it sees a window of P places, all with different remainders modulo P, so a key can say its
place by a 1 among P features, and the query has there what it thinks of the one place with this remainder::

    q'_i = [q_i, r_i[...], c_i[...]]     k'_j = [k_j, e(y_j mod P), e(x_j mod P)]     q'_i . k'_j = the whole score

Any engine computes that without a word about offsets, forward and backward, at (D + 2 P) / D of the price of q . k.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class AxisWindows(NamedTuple):
    """What the queries see along one axis.

    Attributes:
        start: the first place that each query sees; it may lie outside of the image, as the last one may.
        span: P, how many places.
        side: the places of the image are 0 ... side - 1.
    """

    start: Int[Tensor, " n"]
    span: int
    side: int

    @property
    def places(self) -> Int[Tensor, "n P"]:
        """The place with each remainder modulo P that a query sees.

        Example:
            >>> AxisWindows(torch.tensor([-1, 0, 1]), 3, 3).places.tolist()
            [[0, 1, -1], [0, 1, 2], [3, 1, 2]]
        """
        start = self.start[:, None]
        return start + (torch.arange(self.span, device=start.device) - start) % self.span

    @property
    def steps(self) -> Int[Tensor, "n P"]:
        """``places``, counted from the first place of the window: 0 ... P - 1 in some order."""
        return self.places - self.start[:, None]

    @property
    def outside(self) -> Bool[Tensor, "n P"]:
        """Which of ``places`` are none of the image's."""
        places = self.places
        return (places < 0) | (places >= self.side)


def by_remainder(
    scores: Float[Tensor, "B H Y X R"], entry: Int[Tensor, "n P"], axis: int
) -> Float[Tensor, "B H Y X P"]:
    """The scores of a relative table in the order of remainders.

    Args:
        scores: of each query with the R entries of the table.
        entry: that of each remainder, for queries at each of the Y places (axis 0) or X places (axis 1).
        axis: 0 for rows, 1 for columns.
    """
    index = entry[:, None] if axis == 0 else entry[None]
    return scores.gather(-1, index.expand(*scores.shape[:-1], entry.shape[-1]))


def with_offsets(
    q: Float[Tensor, "B H Y X D"],
    k: Float[Tensor, "B H My Mx D"],
    rows: Float[Tensor, "B H Y X Py"],
    columns: Float[Tensor, "B H Y X Px"],
) -> tuple[Float[Tensor, "B H Y X Dw"], Float[Tensor, "B H My Mx Dw"]]:
    """q' and k', wider by P_y + P_x features; ``rows`` and ``columns`` come from :func:`by_remainder`.

    Example:
        >>> zeros, scores = torch.zeros(1, 1, 1, 2, 1), torch.tensor([[5.0, 7.0], [6.0, 8.0]]).view(1, 1, 1, 2, 2)
        >>> q, k = with_offsets(zeros, zeros, torch.ones(1, 1, 1, 2, 1), scores)
        >>> (q.flatten(2, 3) @ k.flatten(2, 3).mT).tolist()
        [[[[6.0, 8.0], [7.0, 9.0]]]]
    """
    sides = k.shape[2:4]
    says_row, says_column = (
        (torch.arange(side, device=k.device)[:, None] % span == torch.arange(span, device=k.device)).to(k.dtype)
        for side, span in zip(sides, (rows.shape[-1], columns.shape[-1]), strict=True)
    )
    lead = (*k.shape[:2], *sides, -1)
    return (
        torch.cat((q, rows, columns), -1),
        torch.cat((k, says_row[:, None].expand(lead), says_column.expand(lead)), -1),
    )


def outside_lse(
    rows: Float[Tensor, "... #Y #X Py"],
    columns: Float[Tensor, "... #Y #X Px"],
    windows: tuple[AxisWindows, AxisWindows],
) -> Float[Tensor, "... Y X"]:
    """log sum exp(r_i + c_i) over the places of each window outside of the image; where there are none hardly finite.

    Such keys are 0, so only their offsets score. They are the rows outside with every column, and the rows inside with
    the columns outside: sums over rows and columns, and never over their products.
    """
    wide = torch.promote_types(rows.dtype, torch.float32)
    rows, columns = rows.to(wide), columns.to(wide)
    row_outside, column_outside = windows[0].outside[:, None], windows[1].outside
    beyond = _lse(rows, row_outside) + columns.logsumexp(-1)
    beside = _lse(rows, ~row_outside) + _lse(columns, column_outside)
    return torch.stack(torch.broadcast_tensors(beyond, beside)).logsumexp(0)


def _lse(scores: Tensor, counts: Tensor) -> Tensor:
    """Of those that count; a quarter of the least number stands for -inf, whose gradients would be NaN."""
    return scores.masked_fill(~counts, torch.finfo(scores.dtype).min / 4).logsumexp(-1)
