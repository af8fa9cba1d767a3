"""Sparsemax: the nearest point of the simplex, which puts exactly 0 on what scores low.

Martins and Astudillo 2016, arXiv:1602.02068, eq. 2: argmin ||p - z||^2 over all p >= 0 that sum to 1, which is
max(z - tau, 0) for the tau that lets it sum to 1.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def sparsemax_where(
    scores: Float[Tensor, "*B M"], allowed: Bool[Tensor, "*#B M"] | None = None
) -> Float[Tensor, "*B M"]:
    """Sparsemax over the keys that may be seen, in float32 at least; a row without any is 0.

    Example:
        >>> sparsemax_where(torch.tensor([[3.0, 2.5, 0.0], [3.0, 0.0, 0.0]])).tolist()
        [[0.75, 0.25, 0.0], [1.0, 0.0, 0.0]]
    """
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if allowed is not None:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    scores = scores - scores.amax(-1, keepdim=True).detach()
    ranked = scores.detach().sort(-1, descending=True).values
    rank = torch.arange(1, scores.shape[-1] + 1, device=scores.device)
    inside = (1 + rank * ranked > ranked.cumsum(-1)).sum(-1, keepdim=True)
    support = scores.detach() >= ranked.take_along_dim((inside - 1).clamp(min=0), -1)
    threshold = ((scores * support).sum(-1, keepdim=True) - 1) / support.sum(-1, keepdim=True).clamp(min=1)
    shares = (scores - threshold).relu() * support
    return shares if allowed is None else shares * allowed.any(-1, keepdim=True)
