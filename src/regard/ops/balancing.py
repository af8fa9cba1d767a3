"""Sinkhorn balancing: rows and columns of a matrix are scaled in turns until both sum to 1."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

NOTHING = -1e30
"""The logarithm of 0: finite, so that no difference of two of them is NaN."""


def balance(
    logits: Float[Tensor, "*B n m"],
    iterations: int,
    allowed: Bool[Tensor, "#*B #n #m"] | None = None,
    *,
    causal: bool = False,
) -> Float[Tensor, "*B n m"]:
    """exp(logits) after so many row steps, each followed by a column step; in logarithms, in float32 at least.

    Args:
        logits: any numbers.
        iterations: pairs of steps. The columns come last, so that their sums are exact.
        allowed: True for entries that take part; the others are 0.
        causal: a row depends on no later row: its column step counts the rows up to it. Such a matrix has columns whose
            first entry is 1, and rows that sum to anything.

    Example:
        >>> balance(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), 50).sum(-1).round(decimals=4).tolist()
        [1.0, 1.0]
    """
    r = logits.to(torch.promote_types(logits.dtype, torch.float32))
    hidden = None if allowed is None else ~allowed
    r = r if hidden is None else r.masked_fill(hidden, NOTHING)
    for _ in range(iterations):
        r = r - r.logsumexp(-1, keepdim=True)
        r = r if hidden is None else r.masked_fill(hidden, NOTHING)
        r = r - (r.logcumsumexp(-2) if causal else r.logsumexp(-2, keepdim=True))
        r = r if hidden is None else r.masked_fill(hidden, NOTHING)
    return r.exp()
