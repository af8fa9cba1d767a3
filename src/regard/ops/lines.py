"""Grids (B, n_1, ..., n_A, C) as the lines along one of their axes, and the shifts that keep a grid causal.

The width is the last axis: its lines are rows, and attention within rows moves along columns.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor


def to_lines(x: Shaped[Tensor, "B *grid"], axis: int, features: int = 1) -> Shaped[Tensor, "L n *rest"]:
    """All lines along an axis, one a row of a batch; the other axes are folded into it.

    Args:
        x: a grid of vectors, or with ``features=0`` of single values, such as a mask.
        axis: which of the grid's axes, from 0.
        features: how many dimensions stand behind the grid.

    Example:
        >>> x = torch.arange(6).view(1, 2, 3)
        >>> to_lines(x, 0, features=0).tolist()
        [[0, 3], [1, 4], [2, 5]]
    """
    return x.movedim(axis + 1, x.ndim - features - 1).flatten(0, x.ndim - features - 2)


def from_lines(lines: Shaped[Tensor, "L n C"], shape: Sequence[int], axis: int) -> Shaped[Tensor, "B *grid C"]:
    """Undo :func:`to_lines`.

    Args:
        lines: along the axis.
        shape: (B, n_1, ..., n_A) of the grid.
        axis: which of the grid's axes, from 0.
    """
    rest = [size for place, size in enumerate(shape) if place != axis + 1]
    return lines.unflatten(0, rest).movedim(len(rest), axis + 1)


def shift(x: Shaped[Tensor, "B *grid C"], axis: int) -> Shaped[Tensor, "B *grid C"]:
    """Everything one place further along an axis: zeros come first, the last place is lost.

    Example:
        >>> shift(torch.arange(1.0, 5.0).view(1, 2, 2, 1), axis=0).flatten().tolist()
        [0.0, 0.0, 1.0, 2.0]
    """
    kept = x.narrow(axis + 1, 0, x.shape[axis + 1] - 1)
    return torch.cat((torch.zeros_like(x.narrow(axis + 1, 0, 1)), kept), axis + 1)
