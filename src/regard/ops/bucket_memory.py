"""Decoding with buckets: the next tokens ask the last few of their own bucket among all tokens so far."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regard.attention import attend

AT_ONCE = 64
"""New tokens whose meetings are looked up together: one flag for each round and each token so far."""


class BucketMemory(NamedTuple):
    """All tokens so far.

    Attributes:
        key: (B, H, M, D).
        value: (B, H, M, Dv).
        bucket: (B, H, R, M), where each fell in each round.
    """

    key: Float[Tensor, "B H M D"]
    value: Float[Tensor, "B H M Dv"]
    bucket: Int[Tensor, "B H R M"]

    @classmethod
    def start(
        cls,
        batch: int,
        heads: int,
        rounds: int,
        head_dim: int,
        value_dim: int,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> "BucketMemory":
        """Nothing so far."""
        key, value = (
            torch.zeros(batch, heads, 0, width, device=device, dtype=dtype) for width in (head_dim, value_dim)
        )
        return cls(key, value, torch.zeros(batch, heads, rounds, 0, device=device, dtype=torch.long))

    def append(self, key: Tensor, value: Tensor, bucket: Tensor) -> "BucketMemory":
        """A new memory that ends with these tokens."""
        return BucketMemory(
            torch.cat((self.key, key.to(self.key.dtype)), 2),
            torch.cat((self.value, value.to(self.value.dtype)), 2),
            torch.cat((self.bucket, bucket), 3),
        )

    def truncate(self, length: int) -> "BucketMemory":
        """The memory as it was after ``length`` tokens."""
        return BucketMemory(self.key[:, :, :length], self.value[:, :, :length], self.bucket[..., :length])


def continue_buckets(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N Dv"],
    buckets: Int[Tensor, "B H R N"],
    memory: BucketMemory,
    most: int,
    attn_drop: float = 0.0,
) -> tuple[Float[Tensor, "B H N Dv"], BucketMemory]:
    """softmax(q_i . k_j) over the last ``most`` earlier tokens of i's bucket in each round: -> (out, the new memory).

    One met in several rounds counts each time; who meets nobody gets its own value.

    Example:
        >>> q = k = v = torch.randn(1, 2, 5, 4)
        >>> one, nothing = torch.zeros(1, 2, 1, 5, dtype=torch.long), BucketMemory.start(1, 2, 1, 4, 4)
        >>> out, memory = continue_buckets(q, k, v, one, nothing, 2)
        >>> bool((out[:, :, :2] == v[:, :, :1]).all()), memory.key.shape
        (True, torch.Size([1, 2, 5, 4]))
    """
    outs: list[Tensor] = []
    for new_q, new_k, new_v, new in zip(
        *(t.split(AT_ONCE, 2) for t in (q, k, v)), buckets.split(AT_ONCE, 3), strict=True
    ):
        before = memory.key.shape[2]
        memory = memory.append(new_k, new_v, new)
        i = before + torch.arange(new_q.shape[2], device=q.device)
        same = memory.bucket[:, :, :, None] == new[..., None]
        same &= torch.arange(memory.key.shape[2], device=q.device) < i[:, None]
        nearer = same.flip(-1).cumsum(-1).flip(-1)  # of the same bucket from here on
        times = (same & (nearer <= most)).sum(2)
        keys, values = memory.key.to(q.dtype), memory.value.to(q.dtype)
        out = attend(new_q, keys, values, attn_mask=times.to(q.dtype).log(), scale=1.0, dropout_p=attn_drop)
        outs.append(torch.where((times > 0).any(-1, keepdim=True), out, new_v))
    return torch.cat(outs, 2), memory
