"""Neighbours among the real tokens of a sequence, in a ring or in a row."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.ops.positions import take_rows


class Neighbours(NamedTuple):
    """Who stands before and after each node.

    Attributes:
        before, after: places among the N nodes.
        first, last: True for nodes whose neighbour on that side is missing; None where the ring is closed.
    """

    before: Int[Tensor, "B N"]
    after: Int[Tensor, "B N"]
    first: Bool[Tensor, "B N"] | None = None
    last: Bool[Tensor, "B N"] | None = None

    @classmethod
    def of(cls, real: Bool[Tensor, "B N"], closed: bool = True) -> "Neighbours":
        """Those of the real nodes among themselves, in their order; what the others have means nothing.

        Example:
            >>> Neighbours.of(torch.tensor([[False, True, True, False, True]])).after
            tensor([[2, 2, 4, 4, 1]])
        """
        order = real.logical_not().to(torch.uint8).argsort(dim=-1, stable=True)
        count, rank = real.sum(-1, keepdim=True).clamp(min=1), (real.cumsum(-1) - 1).clamp(min=0)
        before, after = (order.gather(-1, (rank + step) % count) for step in (-1, 1))
        return cls(before, after) if closed else cls(before, after, rank == 0, rank == count - 1)

    def stand_before(self, t: Float[Tensor, "B H N D"]) -> Float[Tensor, "B H N D"]:
        """The rows before each node, 0 where there is none."""
        return _taken(t, self.before, self.first)

    def stand_after(self, t: Float[Tensor, "B H N D"]) -> Float[Tensor, "B H N D"]:
        """The rows after each node, 0 where there is none."""
        return _taken(t, self.after, self.last)


def _taken(t: Tensor, places: Tensor, missing: Tensor | None) -> Tensor:
    found = take_rows(t, places)
    return found if missing is None else found.masked_fill(missing[:, None, :, None], 0.0)
