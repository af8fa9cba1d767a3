"""The two memories of a Compressive Transformer: recent states as they were, and slots made of older ones.

Both are first in, first out, oldest first, and of fixed size from the start; a mask says which places hold something.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


class CompressiveMemory(NamedTuple):
    """What a layer has kept of all segments so far.

    Attributes:
        compressed: (B, n_cm, C), the slots.
        memory: (B, n_m, C), the states before the running segment.
        real: (B, n_cm + n_m), which of these places hold something. All False in a row forgets what it has seen: a new
            document begins.
        segment: (B, s, C), the states of the running segment, s < n_s.
        usage: (B, n_s), the attention that the oldest states got in the running segment; (B, 0) where nobody asks.
    """

    compressed: Float[Tensor, "B n_cm C"]
    memory: Float[Tensor, "B n_m C"]
    real: Bool[Tensor, "B n_cm+n_m"]
    segment: Float[Tensor, "B s C"]
    usage: Float[Tensor, "B used"]

    @classmethod
    def start(
        cls, batch: int, slots: int, memory: int, dim: int, *, used: int = 0, full: bool = False, **factory: Any
    ) -> "CompressiveMemory":
        """Zeros, of which nothing counts; with ``full`` all of them do, as states and slots that are 0."""
        sizes = ((slots, dim), (memory, dim), (0, dim))
        compressed, states, segment = (torch.zeros(batch, *size, **factory) for size in sizes)
        real = torch.full((batch, slots + memory), full, device=factory.get("device"))
        return cls(compressed, states, real, segment, torch.zeros(batch, used, **factory))

    def states(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B L C"]:
        """All that the next tokens see, themselves last."""
        return torch.cat((self.compressed, self.memory, self.segment, x), 1)

    def seen(self, real: Bool[Tensor, "B N"]) -> Bool[Tensor, "B L"]:
        """Which of the :meth:`states` there are, when these of the next tokens are real."""
        return torch.cat((F.pad(self.real, (0, self.segment.shape[1]), value=True), real), 1)

    def oldest(self, count: int) -> tuple[Float[Tensor, "B n C"], Bool[Tensor, "B n"]]:
        """The first states in the memory, and which of them are real."""
        slots = self.compressed.shape[1]
        return self.memory[:, :count], self.real[:, slots : slots + count]

    def closed(
        self, real: Bool[Tensor, "B n"], slots: Float[Tensor, "B g C"], found: Bool[Tensor, "B g"]
    ) -> "CompressiveMemory":
        """The segment, with its mask, has entered the memory, and new slots take the place of the oldest ones."""
        n, g, c = self.segment.shape[1], slots.shape[1], self.compressed.shape[1]
        kept = torch.cat((self.real[:, :c], found), 1)[:, g:]
        held = torch.cat((self.real[:, c:], real), 1)[:, n:]
        # copies: views would keep what was dropped alive
        return CompressiveMemory(
            torch.cat((self.compressed, slots), 1)[:, g:].clone(),
            torch.cat((self.memory, self.segment), 1)[:, n:].clone(),
            torch.cat((kept, held), 1),
            self.segment[:, :0].clone(),
            torch.zeros_like(self.usage),
        )
