"""Centroids that follow the tokens: k-means by moving averages, one table a head.

Roy et al. 2020, arXiv:2003.05997, section 4.1; the averages as in google-research's routing_transformer. With
hot_ik = 1 where centroid k has the largest product with token i::

    C_k <- decay C_k + (1 - decay) sum_i hot_ik         E_k <- decay E_k + (1 - decay) sum_i hot_ik x_i
    mu_k = E_k / C'_k                                   C'_k = n (C_k + 1e-5) / (n + K 1e-5), n = sum of all C_k

Their count mixes up heads and positions, and starts at 0 while E starts at mu, so that the first steps blow the
centroids up; here each head counts its own tokens, from 1.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.ops.recomputation import repeated

EPS = 1e-5
"""Added to the counts."""


class OnlineKMeans(nn.Module):
    """The buffers ``means``, ``sums`` and ``counts``, which are saved with the weights.

    A training step first moves ``means`` to where the sums of the steps before put them and then adds to the sums, so a
    forward pass that is repeated in the backward pass finds the means that it had; such a repetition adds nothing. With
    ``torch.distributed`` initialised, the sums are those over all processes. Keep the buffers in float32: a decay of
    0.999 is lost in shorter floats.

    Args:
        heads, clusters, width: H, K and D.
        decay: of the moving averages.
        device, dtype: of the buffers, float32 at least.
    """

    means: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(
        self, heads: int, clusters: int, width: int, decay: float = 0.999, *, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.decay = decay
        dtype = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        for name, shape in (("means", (heads, clusters, width)), ("sums", (heads, clusters, width))):
            self.register_buffer(name, torch.empty(shape, device=device, dtype=dtype))
        self.register_buffer("counts", torch.empty(heads, clusters, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Random directions of length sqrt(D), each as if it had seen one token."""
        self.means.copy_(F.layer_norm(torch.randn_like(self.means), self.means.shape[-1:]))
        self.sums.copy_(self.means)
        self.counts.fill_(1.0)

    @torch.no_grad()
    def move(self) -> None:
        """Put the means where the sums say, at the start of a training step."""
        if repeated():
            return
        total = self.counts.sum(-1, keepdim=True)
        count = total * (self.counts + EPS) / (total + self.counts.shape[-1] * EPS)
        self.means.copy_(self.sums / count[..., None])

    def affinity(self, x: Float[Tensor, "B H N D"]) -> Float[Tensor, "B H N K"]:
        """x . mu for every centroid, in float32 at least, without gradient."""
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return x.to(self.means.dtype) @ self.means.mT

    @torch.no_grad()
    def add(self, x: Float[Tensor, "B H N D"], groups: Int[Tensor, "B H N"]) -> None:
        """Let tokens join the sums of their clusters; those of cluster K join none."""
        if repeated():
            return
        heads, clusters, width = self.means.shape
        row = groups + torch.arange(heads, device=x.device)[:, None] * (clusters + 1)
        x = torch.cat((x, torch.ones_like(x[..., :1])), -1).to(self.means.dtype)
        new = x.new_zeros(heads * (clusters + 1), width + 1).index_add_(0, row.flatten(), x.flatten(0, 2))
        new = new.view(heads, clusters + 1, width + 1)[:, :-1].contiguous()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(new)
        self.sums.mul_(self.decay).add_(new[..., :-1], alpha=1 - self.decay)
        self.counts.mul_(self.decay).add_(new[..., -1], alpha=1 - self.decay)

    def distance(self, x: Float[Tensor, "B H N D"], groups: Int[Tensor, "B H N"]) -> Float[Tensor, ""]:
        """The mean of (x - mu)^2 over all numbers of tokens that have a cluster; only x gets a gradient."""
        heads, clusters, width = self.means.shape
        table = F.pad(self.means, (0, 0, 0, 1)).flatten(0, 1)
        row = groups + torch.arange(heads, device=x.device)[:, None] * (clusters + 1)
        gap = (x - table[row]).square().sum(-1).masked_fill(groups == clusters, 0.0)
        return gap.sum() / ((groups < clusters).sum() * width).clamp(min=1)

    def extra_repr(self) -> str:
        heads, clusters, width = self.means.shape
        return f"{heads} heads of {clusters} centroids of width {width}, decay={self.decay}"


def nearest(affinity: Float[Tensor, "B H N K"], mask: Bool[Tensor, "B N"] | None) -> Int[Tensor, "B H N"]:
    """The centroid with the largest product, K for tokens that are not real.

    Example:
        >>> nearest(torch.tensor([[[[1.0, 3.0], [2.0, 0.0]]]]), torch.tensor([[True, False]])).tolist()
        [[[1, 2]]]
    """
    found = affinity.max(-1).indices
    return found if mask is None else found.masked_fill(~mask[:, None], affinity.shape[-1])
