"""A sequence in segments, each of which sees a bounded past: the recurrence of Transformer-XL, all segments at once.

What a segment carries to the next one is made of the inputs of the same layer, so no segment has to wait for another:
the places that each of them sees are windows of one long row.
"""

from typing import NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor


class Segments(NamedTuple):
    """S segments of n tokens; each sees itself, m places before it and c slots before these.

    Attributes:
        number: S.
        length: n.
        memory: m.
        slots: c.
    """

    number: int
    length: int
    memory: int
    slots: int

    @property
    def span(self) -> int:
        """The places that a segment sees."""
        return self.slots + self.memory + self.length

    def cut(self, x: Shaped[Tensor, "B H T D"]) -> Shaped[Tensor, "R H n D"]:
        """The segments as the rows of a batch, R = B S."""
        return x.unflatten(2, (self.number, self.length)).movedim(2, 1).flatten(0, 1)

    def surrounded(
        self,
        slots: Shaped[Tensor, "B H Tc D"] | None,
        before: Shaped[Tensor, "B H Tm D"],
        own: Shaped[Tensor, "B H T D"],
        slots_each: int = 1,
    ) -> Shaped[Tensor, "R H L D"]:
        """What each segment sees, oldest first.

        Args:
            slots: c slots from before the first token, then ``slots_each`` a segment; None where c = 0.
            before: m places from before the first token, then the S n tokens as memory.
            own: the S n tokens.
            slots_each: the slots that a segment adds.
        """
        parts: list[Tensor] = []
        if slots is not None:
            parts += windows(slots, self.slots, slots_each, self.number)
        parts += windows(before, self.memory, self.length, self.number)
        parts += windows(own, self.length, self.length, self.number)
        return torch.cat(parts, 3).flatten(0, 1)


def windows(x: Shaped[Tensor, "B H T D"], size: int, step: int, count: int) -> list[Tensor]:
    """Places s step ... s step + size - 1 for each of ``count`` windows s, in parts (B, count, H, _, D) to be joined.

    Example:
        >>> x = torch.arange(7.0).reshape(1, 1, 7, 1)
        >>> torch.cat(windows(x, 3, 2, 2), 3)[0, :, 0, :, 0].tolist()
        [[0.0, 1.0, 2.0], [2.0, 3.0, 4.0]]
    """
    parts: list[Tensor] = []
    for start in range(0, size, step):
        steps = x[:, :, start : start + step * count].unflatten(2, (count, step))
        parts.append(steps[..., : min(step, size - start), :].movedim(2, 1))
    return parts
