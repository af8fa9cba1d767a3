"""The one formula that joins attentions over disjoint sets of keys."""

import functools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def merge(
    outs: Sequence[Float[Tensor, "..."]], lses: Sequence[Float[Tensor, "..."]]
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Join partial attentions over disjoint keys into the attention over all of them, exactly.

    out = sum_p exp(lse_p - lse) out_p, lse = log sum_p exp(lse_p). Differentiable in everything. Parts broadcast
    against each other, so a sink (a key of value 0) is a part with out 0 and lse = its logit.

    Args:
        outs: (..., N, Dv), one for each part.
        lses: (..., N), the log of each part's sum of exponentials; -inf where the part is absent.

    Returns:
        out in the dtype of the first part, and lse; 0, -inf and gradient 0 for a row that is absent everywhere.

    Raises:
        ValueError: no parts, or not as many outs as lses.

    Example:
        >>> import regard
        >>> q, k, v = torch.randn(3, 1, 2, 9, 4)
        >>> halves = [regard.attend(q, k[..., s, :], v[..., s, :], return_lse=True) for s in (slice(4), slice(4, 9))]
        >>> out, lse = regard.merge(*zip(*halves))
        >>> torch.allclose(out, regard.attend(q, k, v), atol=1e-6)
        True
    """
    if not outs or len(outs) != len(lses):
        raise ValueError(f"merge joins as many outs as lses, at least one: there are {len(outs)} and {len(lses)}")
    logits = torch.stack(torch.broadcast_tensors(*lses))
    largest = logits.detach().amax(0)
    largest = largest.masked_fill(largest == -torch.inf, 0.0)
    weights = torch.exp(logits - largest)
    total = weights.sum(0)
    empty = total == 0
    total = total.masked_fill(empty, 1.0)
    shares = (weights / total)[..., None]
    # what an absent part holds is nobody's business
    parts = (share * torch.where(share == 0, 0.0, out) for share, out in zip(shares, outs, strict=True))
    out = functools.reduce(torch.add, parts)
    lse = (largest + total.log()).masked_fill(empty, -torch.inf)
    return out.to(outs[0].dtype), lse
