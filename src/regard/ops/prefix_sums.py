"""Sums over any stretch of a sequence, fractions of tokens included, as differences of prefix sums."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

CHUNK = 64
"""Tokens whose prefix sums are one product of matrices on the CPU, where torch's own sum along tokens is slow."""


def prefix_sums(u: Float[Tensor, "B H M D"]) -> Float[Tensor, "B H M+1 D"]:
    """0, u_0, u_0 + u_1 and so on; no sum depends on later tokens, not even by rounding.

    Example:
        >>> prefix_sums(torch.arange(1.0, 4.0).reshape(1, 1, 3, 1)).flatten().tolist()
        [0.0, 1.0, 3.0, 6.0]
    """
    m = u.shape[-2]
    if u.device.type != "cpu" or torch.compiler.is_compiling():
        return F.pad(u.cumsum(-2), (0, 0, 1, 0))
    chunks = F.pad(u, (0, 0, 0, -m % CHUNK)).unflatten(2, (-1, CHUNK))
    inside = u.new_ones(CHUNK, CHUNK).tril() @ chunks
    ends = inside[..., -1, :].cumsum(2)
    sums = inside + F.pad(ends, (0, 0, 1, -1))[..., None, :]
    return F.pad(sums.flatten(2, 3)[:, :, :m], (0, 0, 1, 0))


def read_between(sums: Float[Tensor, "B H P D"], place: Float[Tensor, "B H N"]) -> Float[Tensor, "B H N D"]:
    """The rows at these places, between two of them by linear interpolation.

    A place on a row has gradient 0: it is where the slope changes.

    Example:
        >>> sums = torch.tensor([0.0, 1.0, 3.0, 6.0]).reshape(1, 1, 4, 1)
        >>> read_between(sums, torch.tensor([[[2.0, 2.5]]])).flatten().tolist()
        [3.0, 4.5]
    """
    before, after = place.detach().floor(), place.detach().ceil()
    share = (place - before)[..., None]
    head = torch.arange(place.shape[0] * place.shape[1], device=place.device).view(*place.shape[:2], 1) * sums.shape[2]
    rows = sums.reshape(-1, sums.shape[-1])  # whole rows are copied, and their gradients added, faster than numbers
    low, high = (rows.index_select(0, (head + at.long()).flatten()).view(*place.shape, -1) for at in (before, after))
    return low + share * (high - low)
