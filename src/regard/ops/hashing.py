"""Buckets of similar vectors: angular hashing by random rotations.

Andoni et al. 2015, arXiv:1509.02897; in products of factors as in google/trax.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

TOKENS_AT_ONCE = 512
"""Hashed in one go."""


def lsh_buckets(
    x: Float[Tensor, "B H N D"],
    rotations: Sequence[Float[Tensor, "#B H D R _"]],
    sizes: Sequence[Int[Tensor, " #B"]] | None = None,
) -> Int[Tensor, "B H R N"]:
    """argmax [x P; -x P] for each round, and for several factors the number b_1 + f_1 b_2 + f_1 f_2 b_3 and so on.

    Args:
        x: what is hashed; it gets no gradient.
        rotations: P for each factor f, with f / 2 columns; drawn anew for each sequence or shared.
        sizes: f / 2 for each sequence, where not all columns are in use; 0: this factor has none.

    Example:
        >>> x = torch.tensor([[[[3.0, 1.0], [-3.0, 1.0], [1.0, -2.0]]]])
        >>> lsh_buckets(x, [torch.eye(2)[None, None, :, None]]).tolist()
        [[[[0, 2, 3]]]]
    """
    precise = torch.promote_types(x.dtype, torch.float32)
    tables = [table.to(precise) for table in rotations]
    # in pieces that stay in the cache, but in one graph for every length
    pieces = [x] if torch.compiler.is_compiling() else x.split(TOKENS_AT_ONCE, 2)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return torch.cat([_hash(piece.to(precise), tables, sizes) for piece in pieces], -1)


def _hash(x: Tensor, tables: Sequence[Tensor], sizes: Sequence[Tensor] | None) -> Tensor:
    found, step = torch.tensor([0, 1], device=x.device)
    for factor, table in enumerate(tables):
        if len(table) == 1:  # shared by all sequences: not copied for each
            turned = torch.einsum("bhnd,hdrc->bhrnc", x, table[0])
        else:
            turned = torch.einsum("bhnd,bhdrc->bhrnc", x, table)
        length, half = turned.abs(), torch.full_like(step, table.shape[-1])
        if sizes is not None:
            half = sizes[factor][:, None, None, None]
            length.mul_((torch.arange(table.shape[-1], device=x.device) < half[..., None]).to(x.dtype))
        axis = length.max(-1).indices
        behind = turned.gather(-1, axis[..., None]).squeeze(-1) < 0
        found = found + step * (axis + half * behind)
        step = step * (2 * half).clamp(min=1)
    return found
