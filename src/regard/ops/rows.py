"""Sequences of which every row holds one document that starts at its first place: what a recurrence goes along."""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.ops.packing import Documents
from regard.ops.positions import put_back, real_first


class Rows(NamedTuple):
    """Documents in rows of their own, without padding before or inside them, and the way back.

    Attributes:
        x: (R, T, C).
        real: Bool (R, T), which tokens are asked; None: all of them.
        part: Bool (R, T'), which tokens took part where they came from; None: all of them.
        documents: where they came from, if they were packed.
    """

    x: Float[Tensor, "R T C"]
    real: Bool[Tensor, "R T"] | None
    part: Bool[Tensor, "R T"] | None
    documents: Documents | None

    @classmethod
    def of(
        cls,
        x: Float[Tensor, "B N C"],
        key_mask: Bool[Tensor, "B N"] | None,
        query_mask: Bool[Tensor, "B N"] | None,
        segments: Int[Tensor, "B N"] | None,
    ) -> "Rows":
        """From what a layer is given; both masks or none."""
        documents = None if segments is None else Documents.of(segments)
        if documents is not None:
            x = documents.unpack(x[:, None]).squeeze(1)
            key_mask, query_mask = documents.mask(key_mask), documents.mask(query_mask)
        if key_mask is None or query_mask is None:
            return cls(x, None, None, documents)
        part = key_mask | query_mask
        x, asked = (t.squeeze(1) for t in real_first(part, x[:, None], key_mask[:, None, :, None].to(x.dtype)))
        return cls(x, asked.squeeze(-1) > 0, part, documents)

    def back(self, out: Float[Tensor, "R T D"]) -> Float[Tensor, "B N D"]:
        """One row for each token, where it came from; 0 for padding.

        Example:
            >>> import torch
            >>> x = torch.arange(4.0).reshape(1, 4, 1)
            >>> rows = Rows.of(x, None, None, torch.tensor([[5, 3, 5, 3]]))
            >>> rows.x.flatten(1).tolist(), rows.back(rows.x).flatten().tolist()
            ([[1.0, 3.0], [0.0, 2.0]], [0.0, 1.0, 2.0, 3.0])
        """
        if self.part is not None:
            out = put_back(self.part, out[:, None]).squeeze(1)
        return out if self.documents is None else self.documents.pack(out[:, None]).squeeze(1)
