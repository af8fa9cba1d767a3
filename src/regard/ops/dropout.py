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


def drop_shared(x: Tensor, p: float, dim: int, generator: Generator | None = None) -> Tensor:
    """Dropout by which all rows along an axis lose the same numbers.

    Example:
        >>> dropped = drop_shared(torch.ones(1, 3, 8), 0.5, 1)
        >>> bool((dropped == dropped[:, :1]).all())
        True
    """
    return x * drop(torch.ones_like(x.narrow(dim, 0, 1)), p, generator) if p else x
