"""Weights over the keys that may be seen, for mechanisms that need their whole map; the others call ``attend``."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def visible(
    n: int, m: int, key_mask: Bool[Tensor, "B M"] | None = None, *, causal: bool = False, device: torch.device
) -> Bool[Tensor, "#B 1 #N M"] | None:
    """Which of m keys each of n queries may see; None: all of them.

    Args:
        n, m: the numbers of queries and keys.
        key_mask: True for real keys.
        causal: no later key; the last query stands at the last key.
        device: where to make it.

    Example:
        >>> visible(2, 3, causal=True, device=torch.device("cpu")).int().tolist()
        [[[[1, 1, 0], [1, 1, 1]]]]
    """
    allowed = None if key_mask is None else key_mask[:, None, None]
    if not causal:
        return allowed
    earlier = torch.arange(m, device=device) <= torch.arange(m - n, m, device=device)[:, None]
    return earlier[None, None] if allowed is None else earlier & allowed


def softmax_where(
    scores: Float[Tensor, "#B H N M"], allowed: Bool[Tensor, "#B #H #N M"] | None
) -> Float[Tensor, "B H N M"]:
    """softmax over the keys that may be seen, in float32 at least; a row without any is 0.

    Example:
        >>> softmax_where(torch.zeros(1, 1, 2, 2), torch.tensor([[[[True, True], [False, False]]]])).tolist()
        [[[[0.5, 0.5], [0.0, 0.0]]]]
    """
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if allowed is None:
        return scores.softmax(-1)
    hidden = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return hidden.softmax(-1) * allowed.any(-1, keepdim=True)
