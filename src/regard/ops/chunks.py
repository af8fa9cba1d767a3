"""Rows a few at a time: the same numbers in less memory."""

from collections.abc import Callable
from itertools import repeat

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def in_chunks(function: Callable[..., Tensor], size: int | None, dim: int, *tensors: Tensor | None) -> Tensor:
    """function(*tensors), computed for ``size`` rows at a time; each row must depend on itself alone.

    What a chunk makes on its way is thrown away; where gradients are wanted it is computed a second time in the
    backward pass. A compiled graph, which serves every length, is not cut.

    Args:
        function: of the tensors.
        size: rows of a chunk; None: all of them.
        dim: the axis of the rows, in the tensors and in what the function makes of them.
        tensors: what is cut; None stays None.

    Raises:
        ValueError: a size below 1.

    Example:
        >>> x = torch.arange(6.0).reshape(1, 3, 2)
        >>> bool((in_chunks(lambda x: x.cumsum(-1), 2, 1, x) == x.cumsum(-1)).all())
        True
    """
    if size is not None and size < 1:
        raise ValueError(f"chunk_size={size}: a chunk has 1 row or more; None computes all rows at once")
    length = next(t.shape[dim] for t in tensors if t is not None)
    if size is None or torch.compiler.is_compiling() or length <= size:
        return function(*tensors)
    cut = [repeat(None) if t is None else t.split(size, dim) for t in tensors]
    found: list[Tensor] = []
    for rows in zip(*cut, strict=False):  # None goes on without end
        if torch.is_grad_enabled():
            found.append(checkpoint(function, *rows, use_reentrant=False, preserve_rng_state=False))
        else:
            found.append(function(*rows))
    return torch.cat(found, dim)
