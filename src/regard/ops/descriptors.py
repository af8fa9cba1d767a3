"""Keys and values gathered into D descriptors before any query comes, and handed out again: attention at linear cost.

Shen et al. 2018, "Efficient Attention", arXiv:1812.01243, eq. 4, and Chen et al. 2018, "A^2-Nets", arXiv:1810.11579,
eq. 5, whose words gather and distribute are. With rho the normalisation of each side, both are::

    rho_q(q) (rho_k(k)^T v)        time O((N + M) D Dv) a head, memory O((N + M) (D + Dv) + D Dv)

    "softmax"    rho_q over the D features of each query, rho_k over the M keys for each feature
    "scaling"    q k^T v / M, which is attention by unnormalised dot products
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

Normalisation = Literal["softmax", "scaling"]


def gather(
    k: Float[Tensor, "B H M D"],
    v: Float[Tensor, "B H M Dv"],
    normalisation: Normalisation = "softmax",
    key_mask: Bool[Tensor, "B M"] | None = None,
) -> Float[Tensor, "B H D Dv"]:
    """rho_k(k)^T v: a descriptor for each feature, the mean of all values by the weights that it gives them.

    Args:
        k: keys, heads first.
        v: values, finite also where masked.
        normalisation: "softmax" or "scaling".
        key_mask: True for keys that take part; M is their number, and without any the descriptors are 0.

    Returns:
        Computed and kept in float32 for short floats: a softmax over 10^5 keys is too small for them.

    Example:
        >>> gather(torch.zeros(1, 1, 4, 1), torch.arange(4.0).reshape(1, 1, 4, 1)).item()
        1.5
    """
    hidden = None if key_mask is None else ~key_mask[:, None, None]
    wide = torch.promote_types(k.dtype, torch.float32)
    with torch.autocast(k.device.type, enabled=False):
        weights = k.mT.to(wide)  # side by side for each feature, as they are where pixels are
        if normalisation == "softmax":
            weights = F.softmax(weights if hidden is None else weights.masked_fill(hidden, torch.finfo(wide).min), -1)
        weights = weights if hidden is None else weights.masked_fill(hidden, 0.0)
        descriptors = weights @ v.to(wide)
        if normalisation == "softmax":
            return descriptors
        count = k.shape[-2] if key_mask is None else key_mask.sum(-1).clamp(min=1)[:, None, None, None]
        return descriptors / count


def distribute(
    q: Float[Tensor, "B H N D"], descriptors: Float[Tensor, "B H D Dv"], normalisation: Normalisation = "softmax"
) -> Float[Tensor, "B H N Dv"]:
    """rho_q(q) descriptors: each query's own mixture of them.

    Example:
        >>> distribute(torch.zeros(1, 1, 1, 2), torch.tensor([[[[2.0], [4.0]]]])).item()
        3.0
    """
    shares = q.mT
    if normalisation == "softmax":
        shares = F.softmax(shares, -2, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
    return (descriptors.mT.to(q.dtype) @ shares).mT
