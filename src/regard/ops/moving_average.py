"""Buffers that follow what the batches of a training say."""

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor

from regard.ops.recomputation import repeated


@torch.no_grad()
def follow(
    average: Float[Tensor, "*S"],
    found: Float[Tensor, "B *S"],
    decay: float,
    real: Bool[Tensor, " B"] | None = None,
) -> None:
    """average <- decay average + (1 - decay) (the mean of what was found), in place.

    With ``torch.distributed`` initialised the mean is that over all processes. A forward pass that is repeated in the
    backward pass to save memory changes nothing, and neither does a batch without a real member.

    Args:
        average: a buffer.
        found: one of it for each member of the batch.
        decay: of the moving average.
        real: which members count.

    Example:
        >>> average = torch.ones(2)
        >>> follow(average, torch.tensor([[3.0, 5.0], [700.0, 700.0]]), 0.5, torch.tensor([True, False]))
        >>> average
        tensor([2., 3.])
    """
    if repeated():
        return
    counts = torch.ones(found.shape[0], device=found.device, dtype=found.dtype) if real is None else real.to(found)
    total = torch.cat((counts @ found.flatten(1), counts.sum()[None]))
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
    mean = (total[:-1] / total[-1].clamp(min=1)).view(average.shape).to(average.dtype)
    average.copy_(torch.where(total[-1] > 0, average.lerp(mean, 1 - decay), average))
