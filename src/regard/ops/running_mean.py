"""The mean of the values up to each token: causal attention with all weights alike, in linear time."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regard.memory import LinearState
from regard.ops.scan import causal_products


def running_mean(
    v: Float[Tensor, "B H N Dv"],
    before: LinearState,
    mask: Bool[Tensor, "B N"] | None = None,
    *,
    divide: bool = True,
) -> tuple[Float[Tensor, "B H N Dv"], LinearState]:
    """sum_{j <= i} v_j / i, the values in ``before`` included; 0 where there is none.

    Args:
        v: values, heads first.
        before: the sum and the number of earlier values: linear attention with one feature, 1.
        mask: True for values that count.
        divide: False: the sum itself.

    Returns:
        One row per token in the dtype of the sums, and the sums over all values so far.

    Example:
        >>> v = torch.tensor([[[[2.0], [4.0], [9.0]]]])
        >>> running_mean(v, LinearState.start(1, 1, 1, 1))[0].flatten().tolist()
        [2.0, 3.0, 5.0]
    """
    with torch.autocast(v.device.type, enabled=False):
        v = v.to(before.state.dtype)
        one = torch.ones_like(v[..., :1])
        weight = one if mask is None else one * mask[:, None, :, None]
        total, number, after = causal_products(one, weight, v, before)
        return (total / number.clamp(min=1)[..., None] if divide else total), after
