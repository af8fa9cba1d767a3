"""Sums over pairs of relu(u_i + v_j), without the pairs."""

import torch
from jaxtyping import Float
from torch import Tensor

from regard.ops.prefix_sums import prefix_sums


def relu_sums(
    u: Float[Tensor, "B N"], v: Float[Tensor, "B M"], values: Float[Tensor, "B M D"]
) -> Float[Tensor, "B N D"]:
    """sum_j relu(u_i + v_j) values_j, in time O((N + M) (D + log M)) and memory O((N + M) D).

    This is exact: relu(u + v) is u + v for every v > -u, and 0 for the others. With v in descending order those are
    the first c(i) of them, so the sum is u_i P(c(i)) + Q(c(i)), P and Q the prefix sums of values and of v values.

    Returns:
        In the dtype of the values; short floats are summed in float32.

    Example:
        >>> u, v = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 3.0, -5.0]])
        >>> relu_sums(u, v, torch.tensor([[[1.0], [10.0], [100.0]]])).flatten().tolist()
        [41.0, 10.0]
    """
    wide = torch.promote_types(values.dtype, torch.float32)
    with torch.autocast(values.device.type, enabled=False):
        u, (v, order) = u.to(wide), v.to(wide).sort(-1, descending=True)
        sorted_values = _rows(values.to(wide), order)
        sums = prefix_sums(torch.cat((sorted_values, v[..., None] * sorted_values), -1)[:, None])[:, 0]
        taken = torch.searchsorted(-v.detach(), u.detach().contiguous())  # how many v lie above -u
        plain, weighted = _rows(sums, taken).chunk(2, -1)
        return torch.addcmul(weighted, u[..., None], plain).to(values.dtype)


def _rows(x: Float[Tensor, "B M D"], index: Tensor) -> Float[Tensor, "B N D"]:
    """x[b, index[b]]; whole rows are copied, and their gradients added, faster than numbers."""
    start = torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, (start + index).flatten()).unflatten(0, (x.shape[0], -1))
