"""Packed documents: several in one row of a batch, told apart by ids, taken out into rows of their own and back."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor


class Documents(NamedTuple):
    """Where the B x N tokens of a packed batch go when each of its K documents gets a row of L places.

    Attributes:
        source: (K, L), the index in the flattened batch of the token at each place, 0 where there is none.
        taken: (K, L), True where there is a token.
        place: (B, N), the index in the flattened K x L places of each token.
    """

    source: Int[Tensor, "K L"]
    taken: Bool[Tensor, "K L"]
    place: Int[Tensor, "B N"]

    @classmethod
    def of(cls, segments: Int[Tensor, "B N"]) -> "Documents":
        """Tokens of one row with the same id are one document, wherever they stand; L is the longest one's length."""
        batch, length = segments.shape
        ids, label = segments.unique(return_inverse=True)
        rows = torch.arange(batch, device=segments.device)[:, None]
        _, label, lengths = (rows * len(ids) + label).flatten().unique(return_inverse=True, return_counts=True)
        tokens = torch.arange(batch * length, device=segments.device)
        order = label.argsort(stable=True)
        rank = torch.empty_like(tokens)
        rank[order] = tokens - (lengths.cumsum(0) - lengths)[label[order]]
        shape = (len(lengths), int(lengths.max()))
        place = label * shape[1] + rank
        source = torch.zeros(shape, device=segments.device, dtype=torch.long)
        source.view(-1)[place] = tokens
        taken = torch.zeros(shape, device=segments.device, dtype=torch.bool)
        taken.view(-1)[place] = True
        return cls(source, taken, place.view(batch, length))

    def unpack(self, x: Shaped[Tensor, "B H N D"]) -> Shaped[Tensor, "K H L D"]:
        """One row a document; places without a token hold some token, to be masked by :meth:`mask`."""
        return x.transpose(1, 2).flatten(0, 1)[self.source].transpose(1, 2)

    def mask(self, mask: Bool[Tensor, "B N"] | None) -> Bool[Tensor, "K L"]:
        """Which places hold a token that takes part."""
        return self.taken if mask is None else self.taken & mask.flatten()[self.source]

    def pack(self, x: Shaped[Tensor, "K H L D"]) -> Shaped[Tensor, "B H N D"]:
        """Every token back to where it came from."""
        return x.transpose(1, 2).flatten(0, 1)[self.place].transpose(1, 2)
