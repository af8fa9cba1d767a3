"""Dropout whose draws come from a generator, which torch's own does not take."""

import torch
from torch import Generator, Tensor


def drop(x: Tensor, p: float, generator: Generator | None = None) -> Tensor:
    """Each number is 0 with probability p, the others grow by 1 / (1 - p); applied as given, in evaluation too.

    Example:
        >>> drop(torch.ones(2), 0.0)
        tensor([1., 1.])
    """
    if not p:
        return x
    keep = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - p, generator=generator)
    return x * keep / (1 - p)
