"""Causal attention within clusters: each token asks the last w tokens of its own cluster, itself included.

Tokens are sorted by cluster and position; there, those are the w places up to a token's own, as far as they belong to
its cluster. Which they are is settled by the token and by earlier ones: nothing later can change it. Decoding carries
the last w keys and values of each cluster.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from regard.attention import attend
from regard.ops.clusters import take_rows
from regard.patterns import Segments, Window


class ClusterWindow(NamedTuple):
    """The last W keys and values of each cluster, the newest in the last slot.

    Attributes:
        key: (B, H, K, W, D).
        value: (B, H, K, W, Dv).
        length: (B, H, K), slots in use.
    """

    key: Float[Tensor, "B H K W D"]
    value: Float[Tensor, "B H K W Dv"]
    length: Int[Tensor, "B H K"]

    @classmethod
    def start(
        cls, batch: int, heads: int, clusters: int, window: int, head_dim: int, value_dim: int, **factory: Any
    ) -> "ClusterWindow":
        """Windows that have seen nothing."""
        key, value = (torch.zeros(batch, heads, clusters, window, width, **factory) for width in (head_dim, value_dim))
        return cls(key, value, torch.zeros(batch, heads, clusters, dtype=torch.long, device=factory.get("device")))


def cluster_window_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N Dv"],
    groups: Int[Tensor, "B H N"],
    clusters: int,
    window: int,
    *,
    scale: float | None = None,
    attn_drop: float = 0.0,
    generator: Generator | None = None,
) -> Float[Tensor, "B H N Dv"]:
    """softmax(scale q_i . k_j) v_j over the last ``window`` tokens j <= i of i's cluster.

    Args:
        q, k, v: queries, keys and values of the same tokens, heads first.
        groups: the cluster of each token; one of ``clusters`` has none, asks nobody and is asked by nobody.
        clusters: K.
        window: w.
        scale: 1 / sqrt(D) by default.
        attn_drop, generator: dropout on the weights, and what draws it.

    Example:
        >>> q = k = v = torch.randn(1, 2, 6, 4)
        >>> out = cluster_window_attention(q, k, v, torch.tensor([[[0, 1, 0, 1, 2, 1]]]).expand(1, 2, 6), 2, 3)
        >>> bool((out[:, :, 0] == v[:, :, 0]).all()), bool(out[:, :, 4].any())
        (True, False)
    """
    order = groups.argsort(dim=-1, stable=True)
    place = groups.gather(-1, order).flatten(0, 1)
    q, k, v = (take_rows(t, order).flatten(0, 1)[:, None] for t in (q, k, v))  # each head is a sequence by itself
    pattern = Window(window - 1, 0) & Segments(place)
    options: dict[str, Any] = {"scale": scale, "dropout_p": attn_drop, "generator": generator}
    out = attend(q, k, v, pattern, key_mask=place < clusters, **options)
    return take_rows(out.squeeze(1).unflatten(0, groups.shape[:2]), order.argsort(-1))


def continue_clusters(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N Dv"],
    groups: Int[Tensor, "B H N"],
    memory: ClusterWindow,
    *,
    scale: float | None = None,
    attn_drop: float = 0.0,
) -> tuple[Float[Tensor, "B H N Dv"], ClusterWindow]:
    """The next N tokens: -> (out, the new memory); arguments as in :func:`cluster_window_attention`.

    A single token reads and rewrites the window of its cluster only; more are appended to all that is remembered.
    """
    clusters, window = memory.key.shape[2:4]
    if q.shape[2] == 1:
        return _one(q, k, v, groups, memory, scale=scale, attn_drop=attn_drop)
    step = torch.arange(window, device=q.device)
    old = torch.arange(clusters, device=q.device)[:, None].where(step >= window - memory.length[..., None], clusters)
    keys, values = (
        torch.cat((t.flatten(2, 3).to(new.dtype), new), 2) for t, new in ((memory.key, k), (memory.value, v))
    )
    everyone = torch.cat((old.flatten(2), groups), -1)
    queries = torch.cat((torch.zeros_like(keys[:, :, : clusters * window]), q), 2)
    out = cluster_window_attention(queries, keys, values, everyone, clusters, window, scale=scale, attn_drop=attn_drop)
    out = out[:, :, -q.shape[2] :]
    count = everyone.new_zeros(*everyone.shape[:2], clusters + 1).scatter_add(-1, everyone, torch.ones_like(everyone))
    last = count.cumsum(-1)[..., :-1, None] - window + step
    index = everyone.argsort(dim=-1, stable=True).gather(-1, last.clamp(min=0).flatten(2)).view_as(last)
    key, value = (take_rows(t, index).to(kept.dtype) for t, kept in ((keys, memory.key), (values, memory.value)))
    return out, ClusterWindow(key, value, count[..., :-1].clamp(max=window))


def _one(
    q: Tensor, k: Tensor, v: Tensor, groups: Tensor, memory: ClusterWindow, *, scale: float | None, attn_drop: float
) -> tuple[Tensor, ClusterWindow]:
    key, value = _rolled(memory.key, k, groups), _rolled(memory.value, v, groups)
    window = key.shape[2]
    length = (memory.length.gather(-1, groups) + 1).clamp(max=window)
    real = torch.arange(window, device=q.device) >= window - length[..., None]
    out = attend(q, key.to(q.dtype), value.to(q.dtype), attn_mask=real, scale=scale, dropout_p=attn_drop)
    index = groups[..., None, None]
    keys, values = (
        old.scatter(2, index.expand(-1, -1, -1, *new.shape[2:]), new[:, :, None])
        for old, new in ((memory.key, key), (memory.value, value))
    )
    return out, ClusterWindow(keys, values, memory.length.scatter(-1, groups, length))


def _rolled(kept: Tensor, new: Tensor, groups: Tensor) -> Tensor:
    """The window of the token's cluster (B, H, W, D), without its oldest slot and with the new one."""
    index = groups[..., None, None].expand(-1, -1, -1, *kept.shape[3:])
    return torch.cat((kept.gather(2, index).squeeze(2)[:, :, 1:], new.to(kept.dtype)), 2)
