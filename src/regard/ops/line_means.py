"""A map told by the means of its rows and columns, or of the slices across each axis, and put together again."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def line_means(
    x: Float[Tensor, "B C *grid"], mask: Bool[Tensor, "B *grid"] | None = None
) -> tuple[Float[Tensor, "B C n"], Bool[Tensor, "B n"] | None]:
    """For every place on every axis the mean of all pixels there: n = n_1 + ... + n_A tokens, axis after axis.

    Args:
        x: a map: (B, C, H, W) has H row means, then W column means.
        mask: True for pixels that count.

    Returns:
        The means, 0 where nothing counts, and with a mask which of them are of anything. Short floats are summed in
        float32.

    Example:
        >>> x = torch.tensor([[[[1.0, 2.0, 6.0], [3.0, 4.0, 8.0]]]])
        >>> line_means(x)[0].flatten().tolist()
        [3.0, 5.0, 2.0, 3.0, 7.0]
    """
    real = torch.ones_like(x[:, :1], dtype=torch.bool) if mask is None else mask[:, None]
    count = _line_sums(real)
    means = _line_sums(x if mask is None else x.masked_fill(~real, 0.0)) / count.clamp(min=1)
    return means.to(x.dtype), None if mask is None else count[:, 0] > 0


def _line_sums(x: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    others = [[other for other in range(2, x.ndim) if other != axis] for axis in range(2, x.ndim)]
    return torch.cat([x.sum(axes, dtype=wide) if axes else x.to(wide) for axes in others], -1)


def outer_sum(tokens: Float[Tensor, "B C n"], sides: Sequence[int]) -> Float[Tensor, "B C *grid"]:
    """A map whose pixel is the sum of the tokens of its row and of its column, and so on for every axis.

    Args:
        tokens: n_1 + ... + n_A of them, axis after axis.
        sides: n_1, ..., n_A.

    Example:
        >>> outer_sum(torch.tensor([[[1.0, 2.0, 10.0, 20.0, 30.0]]]), (2, 3)).tolist()
        [[[[11.0, 21.0, 31.0], [12.0, 22.0, 32.0]]]]
    """
    parts = [
        part.unflatten(-1, [-1 if other == axis else 1 for other in range(len(sides))])
        for axis, part in enumerate(tokens.split(list(sides), -1))
    ]
    return list(accumulate(parts))[-1]
