"""SMYRF: balanced clusters of queries and keys by an asymmetric hash, for models that were trained with softmax.

Daras et al. 2020, arXiv:2010.05315, section 3 and algorithm 1; giannisdaras/smyrf. Queries and keys are lifted to
vectors of one length, whose distance falls with q . k (XBOX+)::

    q~ = [q, 0, sqrt(MQ^2 + MK^2 - |q|^2)]        k~ = [k, sqrt(MQ^2 + MK^2 - |k|^2), 0]

MQ and MK the largest lengths. In each of R rounds both are sorted by their projection on a random direction, the lists
are cut into equally many clusters, and the queries of a cluster attend to its keys; with the logsumexp s_r(i) of round
r the rounds are joined as parts of one softmax, in which a key met in several rounds counts each time::

    y_i = sum_r softmax_r(s_r(i)) softmax_{j in the cluster of round r}(q_i . k_j / sqrt(D)) v_j

Departures from the authors' code: scores are divided by sqrt(D) (theirs by a number that is 1 unless given); its random
shift and the rounding width r have no effect there and are left out; any length, and padding takes no part. With no
more tokens than fit into one cluster the result is softmax attention.

Time a head O(R N (D + log N + c D)), memory O(R N D); the weights are never stored as a whole.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from regard.attention import attend, merge
from regard.ops.balanced_clusters import Clusters, asymmetric_hashes, count_clusters, cut
from regard.ops.clusters import take_rows
from regard.ops.masks import hide_rows
from regard.registry import Card, Core, Sample, register


def smyrf_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H M D"],
    v: Float[Tensor, "B H M Dv"],
    queries: Clusters,
    keys: Clusters,
    *,
    scale: float | None = None,
    attn_drop: float = 0.0,
    generator: Generator | None = None,
) -> Float[Tensor, "B H N Dv"]:
    """One softmax over what each query meets in its clusters of all rounds; see the head of this file.

    Args:
        q, k, v: queries, keys and values, heads first.
        queries, keys: who is in which cluster; only filled slots of ``keys`` are seen.
        scale: 1 / sqrt(D) by default.
        attn_drop, generator: dropout on the weights, and what draws it.

    Returns:
        One row per query, 0 where it meets no key.

    Example:
        >>> q, k, v = (torch.randn(1, 2, n, 4) for n in (6, 9, 9))
        >>> hashes = asymmetric_hashes(q, k, torch.randn(6, 3))
        >>> sides = zip(hashes, (6, 9), (2, 3), strict=True)
        >>> two = [cut(h.argsort(-1), torch.tensor([n]), torch.tensor([3]), 3, c) for h, n, c in sides]
        >>> smyrf_attention(q, k, v, *two).shape
        torch.Size([1, 2, 6, 4])
    """
    lists = queries.token.shape[1:4]
    seen = keys.filled.expand(-1, *lists, -1).flatten(1, 3)[..., None, :]
    asking, asked, values = (take_rows(t, side.token).flatten(1, 3) for t, side in ((q, queries), (k, keys), (v, keys)))
    options: dict[str, Any] = {"scale": scale, "dropout_p": attn_drop, "generator": generator, "attn_mask": seen}
    out, lse = attend(asking, asked, values, **options, return_lse=True)
    out, lse = out.unflatten(1, lists).flatten(3, 4), lse.unflatten(1, lists).flatten(3, 4)
    # a row of slots for each list, from which every token takes its own
    own = take_rows(out.flatten(1, 2), queries.place.flatten(1, 2)).unflatten(1, lists[:2])
    return merge(own.unbind(2), lse.gather(-1, queries.place).unbind(2))[0]


@register(
    "smyrf",
    samples=[
        Sample(dim=12, num_heads=3, num_hashes=2, cluster_size=4),
        Sample(dim=12, num_heads=3, num_hashes=3, cluster_size=5, query_cluster_size=3, attn_drop=0.1),
        Sample(dim=12, num_heads=2, num_hashes=1, cluster_size=64, scale=0.3),
    ],
)
class Smyrf(Core):
    """Hashes, sorts and calls :func:`smyrf_attention`; the buffer ``directions`` is saved with the weights.

    Directions are drawn at every training step, or whenever a ``generator`` is passed; otherwise the saved ones serve.

    Args:
        head_dim: D.
        num_hashes: R, rounds.
        cluster_size: keys in a cluster, at most.
        query_cluster_size: queries in a cluster, as many as keys by default.
        scale: of the scores, 1 / sqrt(D) by default.
        attn_drop: dropout on the weights, in training.
        device, dtype: of the directions.

    Raises:
        ValueError: sizes below 1.
    """

    card = Card(
        title="SMYRF",
        paper="arXiv:2010.05315",
        year=2020,
        family="chosen",
        data="sequence",
        cross=True,
        stochastic=("dropout", "resample"),
        refuses={"causal": "a cluster mixes tokens of all times"},
        cost="R N c",
        summary="Approximates a trained softmax model without retraining it, in balanced clusters; bidirectional.",
        formula="softmax over the keys that fall into i's cluster in any of R rounds of q_i . k_j / sqrt(D)",
    )

    directions: Tensor

    def __init__(
        self,
        head_dim: int,
        num_hashes: int = 4,
        cluster_size: int = 64,
        query_cluster_size: int | None = None,
        *,
        scale: float | None = None,
        attn_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        query_cluster_size = cluster_size if query_cluster_size is None else query_cluster_size
        if min(num_hashes, cluster_size, query_cluster_size) < 1:
            sizes = f"num_hashes={num_hashes}, cluster_size={cluster_size}, query_cluster_size={query_cluster_size}"
            raise ValueError(f"{sizes}: all of them are at least 1")
        self.cluster_size, self.query_cluster_size = cluster_size, query_cluster_size
        self.scale, self.attn_drop = scale, attn_drop
        self.register_buffer("directions", torch.empty(head_dim + 2, num_hashes, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the directions."""
        self.directions.normal_()

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """Attend; shapes as in :func:`smyrf_attention`.

        Args:
            key_mask: Bool (B, M), True for real keys.
            query_mask: Bool (B, N), True for real queries; the others are in no cluster and give 0.
            generator: draws the directions, then the dropout.
        """
        directions = self.directions
        if self.training or generator is not None:
            directions = torch.randn_like(directions, generator=generator)
        hashes = asymmetric_hashes(q, k, directions, query_mask, key_mask)
        queries, keys = self.clusters(*hashes, query_mask, key_mask)
        options: dict[str, Any] = {"scale": self.scale, "attn_drop": self.attn_drop * self.training}
        out = smyrf_attention(q, k, v, queries, keys, **options, generator=generator)
        return hide_rows(out, query_mask)

    def clusters(
        self,
        q_hashes: Float[Tensor, "B H R N"],
        k_hashes: Float[Tensor, "B H R M"],
        query_mask: Bool[Tensor, "B N"] | None = None,
        key_mask: Bool[Tensor, "B M"] | None = None,
    ) -> tuple[Clusters, Clusters]:
        """The clusters of queries and of keys, as many of the one as of the other, in the order of their hashes."""
        sizes = (self.query_cluster_size, self.cluster_size)
        (n, m), batch = (h.shape[-1] for h in (q_hashes, k_hashes)), q_hashes.shape[0]
        real = [
            torch.full((batch,), length, device=q_hashes.device) if mask is None else mask.sum(-1)
            for length, mask in ((n, query_mask), (m, key_mask))
        ]
        count = count_clusters(*zip(real, sizes, strict=True))
        most = max((n + sizes[0] - 1) // sizes[0], (m + sizes[1] - 1) // sizes[1])
        orders = [h.argsort(dim=-1, stable=True) for h in (q_hashes, k_hashes)]
        queries, keys = (cut(o, r, count, most, size) for o, r, size in zip(orders, real, sizes, strict=True))
        return queries, keys

    def extra_repr(self) -> str:
        sizes = f"cluster_size={self.cluster_size}, query_cluster_size={self.query_cluster_size}"
        return f"num_hashes={self.directions.shape[1]}, {sizes}, attn_drop={self.attn_drop}"
