"""Which queries attend, by their sharpness: the sharpest of all, or, causally, those sharper than most before them.

Zhou et al. 2020, arXiv:2012.07436, algorithm 1, lets the u = min(n, c ceil(ln n)) sharpest of n queries attend. That
needs all of them. :func:`sharp_so_far` decides query after query: number i attends if its M is above mean + z deviation
of the first i, where a normal variable would be with probability c ceil(ln i) / i, and if no more than
c ceil(ln i)^2 of the first i attend with it.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.ops.sharpness import log_count, most


class Attending(NamedTuple):
    """The queries that attend.

    Attributes:
        row: (B, H, u), their places; some may be there only to fill up.
        real: (B, H, u), False for those.
    """

    row: Int[Tensor, "B H u"]
    real: Bool[Tensor, "B H u"]


class Sharp(NamedTuple):
    """What strict choice remembers of the queries so far: sums of M and of M^2, and how many attended; (B, H)."""

    total: Float[Tensor, "B H"]
    squares: Float[Tensor, "B H"]
    attended: Int[Tensor, "B H"]

    @classmethod
    def start(cls, batch: int, heads: int, device: Any = None) -> "Sharp":
        """Nothing so far."""
        zero = torch.zeros(batch, heads, device=device, dtype=torch.float64)
        return cls(zero, zero.clone(), zero.long())


def sharpest(m: Float[Tensor, "B H N"], real: Bool[Tensor, "B N"] | None, factor: int) -> Attending:
    """The min(n, c ceil(ln n)) queries of largest M among the n real ones."""
    width = min(m.shape[-1], factor * most(m.shape[-1]))
    if real is None:
        real = torch.ones_like(m[:, 0], dtype=torch.bool)
    top = m.masked_fill(~real[:, None], -torch.inf).topk(width, -1).indices
    n = real.sum(-1)
    limit = n.minimum(factor * log_count(n))
    return Attending(top, (torch.arange(width, device=m.device) < limit[:, None, None]).expand_as(top))


def sharp_so_far(
    m: Float[Tensor, "B H N"],
    place: Int[Tensor, "B N"],
    real: Bool[Tensor, "B N"] | None,
    factor: int,
    before: Sharp,
    longest: int,
) -> tuple[Attending, Sharp]:
    """The queries that attend by what came before them alone; see the head of this file.

    Args:
        m: their sharpness.
        place: how many real queries there are before each, those in ``before`` included.
        real: True for real queries.
        factor: c.
        before: what came before.
        longest: no place is as large.
    """
    m = m.double() if real is None else m.double().masked_fill(~real[:, None], 0.0)
    total, squares = before.total[..., None] + m.cumsum(-1), before.squares[..., None] + m.square().cumsum(-1)
    n = place[:, None] + 1
    share = factor * log_count(n) / n.double()
    mean = total / n
    deviation = (squares / n - mean.square()).clamp(min=0).sqrt()
    sharp = (share >= 1) | (m > mean - torch.special.ndtri(share.clamp(max=1)) * deviation)
    if real is not None:
        sharp = sharp & real[:, None]
    # attended_i = min(attended_(i - 1) + sharp_i, budget_i), without a loop
    count, first = sharp.long().cumsum(-1), before.attended[..., None]
    spare = (factor * log_count(n).square() - count).cummin(-1).values
    attended = count + spare.minimum(first)
    chosen = attended > torch.cat((first, attended[..., :-1]), -1)
    row = chosen.float().topk(min(m.shape[-1], factor * most(longest) ** 2), -1).indices
    after = Sharp(*(t[..., -1].clone() for t in (total, squares, attended)))
    return Attending(row, chosen.gather(-1, row)), after
