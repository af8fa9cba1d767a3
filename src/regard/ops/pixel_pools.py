"""One number for each channel of a map: its mean, maximum, length or soft maximum over the pixels that count."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

Pool = Literal["avg", "max", "lp", "lse"]

POOLS = ("avg", "max", "lp", "lse")


def pool_pixels(
    x: Float[Tensor, "B C *grid"], mask: Bool[Tensor, "B *grid"] | None = None, pool: Pool = "avg"
) -> Float[Tensor, "B C"]:
    """What a channel amounts to over a whole map.

    Args:
        x: a map of any number of axes.
        mask: True for pixels that count.
        pool: "avg", "max", "lp" = sqrt(sum x^2), or "lse" = ln sum e^x; the last two are of sums, not of means.

    Returns:
        One number a channel, 0 where no pixel counts. Short floats are summed in float32.

    Example:
        >>> x = torch.tensor([[[3.0, 4.0, 100.0]]])
        >>> [pool_pixels(x, torch.tensor([[True, True, False]]), pool).item() for pool in ("avg", "max", "lp")]
        [3.5, 4.0, 5.0]
    """
    axes, wide = tuple(range(2, x.ndim)), torch.promote_types(x.dtype, torch.float32)
    if mask is not None:
        absent = torch.finfo(x.dtype).min if pool in ("max", "lse") else 0.0
        x = x.masked_fill(~mask[:, None], absent)
    if pool == "max":
        out = _largest(x)
    elif pool == "lp":
        out = torch.linalg.vector_norm(x, dim=axes, dtype=wide)
    elif pool == "lse":
        out = x.to(wide).logsumexp(axes)
    elif mask is None:
        out = x.mean(axes, dtype=wide)
    else:
        out = x.sum(axes, dtype=wide) / mask.flatten(1).sum(1).clamp(min=1)[:, None]
    out = out.to(x.dtype)
    return out if mask is None else out.masked_fill(~mask.flatten(1).any(1)[:, None], 0.0)


def _largest(x: Float[Tensor, "B C *grid"]) -> Float[Tensor, "B C"]:
    """Maxima by their places: the gradient of ``amax``, which compares every pixel once more, costs ten times that."""
    if x.ndim == 4 and not x.is_cuda:  # there one thread would read a whole channel
        return F.adaptive_max_pool2d(x, 1).flatten(1)
    return x.flatten(2).max(-1).values
