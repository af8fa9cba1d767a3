"""Clustered attention: similar queries share one softmax, and each refines it over the few keys that matter.

Vyas et al. 2020, arXiv:2007.04825, eq. 3 to 6 (clustered) and 7 to 10 (improved). Queries are hashed to signs of random
projections, and the codes clustered by k-means in Hamming distance; with qc the mean of the queries in cluster c::

    A_c = softmax(qc K^T / sqrt(D))                   y_i = A_c V                for every query i of cluster c
    T_c = the k keys with the largest qc . k_j        m_c = sum of A_cj over T_c
    improved: y_i = m_c softmax_T(q_i . k_j / sqrt(D)) V_T + sum of A_cj v_j over the keys outside T_c

No gradient flows through the choice of clusters and of keys; it flows through all else, the mass m_c included, which
the authors' backward pass leaves out.

Departures: k-means starts from queries at equal distances, not at random ones, counted among real tokens, so padding
changes nothing; with as many clusters as queries each is a cluster of its own (queries of one code still share) and the
result is softmax attention. A cluster that loses all its queries keeps its centroid, where the authors draw a random
code. Planes are drawn at every training step, as in their code; in evaluation the saved ones serve.

Time a head O(N bits D + iterations N C bits + C M D + N k D), memory O(C M + N k).
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from regard.attention import attend
from regard.ops.clusters import cluster_chunks, cluster_means, of_member, take_rows
from regard.ops.dropout import drop
from regard.ops.hamming import hamming_kmeans, sign_codes, spread_evenly
from regard.registry import Card, Core, Sample, register

CHUNK = 16
"""Queries of a cluster that meet its keys together: longer chunks multiply faster, but more of them stay half empty."""


def clustered_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H M D"],
    v: Float[Tensor, "B H M Dv"],
    groups: Int[Tensor, "B H N"],
    clusters: int,
    *,
    topk: int | None = None,
    scale: float | None = None,
    key_mask: Bool[Tensor, "B M"] | None = None,
    attn_drop: float = 0.0,
    generator: Generator | None = None,
) -> Float[Tensor, "B H N Dv"]:
    """The attention of each cluster's mean query, for its members; see the head of this file.

    Args:
        q, k, v: queries, keys and values, heads first.
        groups: the cluster of each query; one of ``clusters`` or more has none and gets 0.
        clusters: C.
        topk: keys over which each query forms its own weights; None: it takes over those of the cluster.
        scale: of the scores, 1 / sqrt(D) by default.
        key_mask: True for real keys.
        attn_drop, generator: dropout on the weights, and what draws it.

    Returns:
        One row per query, 0 where a sequence has no real key.

    Example:
        >>> q, k, v = (torch.randn(1, 2, n, 4) for n in (6, 9, 9))
        >>> clustered_attention(q, k, v, torch.arange(6).expand(1, 2, 6) // 2, 3, topk=4).shape
        torch.Size([1, 2, 6, 4])
    """
    dtype = v.dtype
    if scale is None:
        scale = 1 / math.sqrt(q.shape[-1])
    with torch.autocast(q.device.type, enabled=False):
        wide = torch.promote_types(q.dtype, torch.float32)
        q, k, v = q.to(wide), k.to(wide), v.to(wide)
        groups = groups.clamp(max=clusters)
        means = cluster_means(q, groups, clusters)
        if topk is None:
            out = attend(means, k, v, key_mask=key_mask, scale=scale, dropout_p=attn_drop, generator=generator)
            return of_member(out, groups).to(dtype)
        scores = scale * means @ k.mT
        if key_mask is not None:
            scores = scores.masked_fill(~key_mask[:, None, None], torch.finfo(wide).min)
        chosen = scores.topk(min(topk, k.shape[2]), sorted=False).indices
        weights = scores.softmax(-1)
        if key_mask is not None:
            weights = weights.masked_fill(~key_mask[:, None, None], 0.0)
        mass = weights.gather(-1, chosen).sum(-1, keepdim=True)
        rest = drop(weights.scatter(-1, chosen, 0.0), attn_drop, generator) @ v
        own = _over_chosen(q, k, v, groups, chosen, scale, key_mask, attn_drop, generator)
        return (of_member(rest, groups) + of_member(mass, groups) * own).to(dtype)


def _over_chosen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    groups: Tensor,
    chosen: Tensor,
    scale: float,
    key_mask: Tensor | None,
    attn_drop: float,
    generator: Generator | None,
) -> Float[Tensor, "B H N Dv"]:
    """softmax(scale q_i . k_j) v_j over the keys chosen by i's cluster."""
    chunks = cluster_chunks(groups, chosen.shape[2], CHUNK)
    chosen = take_rows(chosen, chunks.cluster)
    scores = scale * take_rows(q, chunks.token) @ take_rows(k, chosen).mT
    if key_mask is not None:
        real = key_mask[:, None].expand(-1, k.shape[1], -1).gather(-1, chosen.flatten(2)).view_as(chosen)
        scores = scores.masked_fill(~real[..., None, :], torch.finfo(scores.dtype).min)
    weights = drop(scores.softmax(-1), attn_drop, generator)
    return take_rows((weights @ take_rows(v, chosen)).flatten(2, 3), chunks.place)


@register(
    "clustered",
    samples=[
        Sample(dim=12, num_heads=3, clusters=4, topk=3, bits=8, iterations=3),
        Sample(dim=12, num_heads=3, clusters=3, topk=None, bits=8, iterations=3, hash_bias=False, attn_drop=0.1),
        Sample(dim=12, num_heads=2, clusters=40, topk=64, scale=0.3, attn_drop=0.1),
    ],
)
class Clustered(Core):
    """Clusters the queries and calls :func:`clustered_attention`; the buffer ``planes`` is saved with the weights.

    Planes are drawn at every training step, or whenever a ``generator`` is passed; otherwise the saved ones serve.

    Args:
        head_dim: D.
        clusters: C, 100 to 250 for some thousands of tokens.
        topk: k, keys over which each query forms weights of its own ("improved"); None: all take over their cluster's.
        bits: planes, the length of a code.
        iterations: rounds of k-means.
        hash_bias: planes have thresholds, so that near means near in distance; False: in angle.
        scale: of the scores, 1 / sqrt(D) by default.
        attn_drop: dropout on the weights, in training.
        device, dtype: of the planes.

    Raises:
        ValueError: sizes below 1, or a scale that is not positive.
    """

    card = Card(
        title="Clustered attention",
        paper="arXiv:2007.04825",
        year=2020,
        family="chosen",
        data="sequence",
        cross=True,
        stochastic=("dropout", "resample"),
        refuses={"causal": "queries of all positions share one softmax over the keys"},
        cost="N C",
        summary="Approximates a trained softmax model on long inputs without retraining it; bidirectional.",
        formula="m_c softmax(q_i K_T^T / sqrt(D)) V_T + the rest of softmax(qc K^T / sqrt(D)) V, qc the cluster's mean",
    )

    planes: Tensor

    def __init__(
        self,
        head_dim: int,
        clusters: int = 100,
        topk: int | None = 32,
        *,
        bits: int = 63,
        iterations: int = 10,
        hash_bias: bool = True,
        scale: float | None = None,
        attn_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if min(clusters, bits, iterations, 1 if topk is None else topk) < 1:
            sizes = f"clusters={clusters}, topk={topk}, bits={bits}, iterations={iterations}"
            raise ValueError(f"{sizes}: all of them are at least 1, topk may be None")
        if scale is not None and scale <= 0:
            raise ValueError(
                f"scale={scale}: the keys with the largest products are those of the largest weights only "
                "if the scale is positive"
            )
        self.clusters, self.topk, self.iterations, self.hash_bias = clusters, topk, iterations, hash_bias
        self.scale, self.attn_drop = scale, attn_drop
        self.register_buffer("planes", torch.empty(bits, head_dim + 1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the planes."""
        self.planes.copy_(self._draw(None))

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
        """Attend; shapes as in :func:`clustered_attention`.

        Args:
            key_mask: Bool (B, M), True for real keys.
            query_mask: Bool (B, N), True for real queries; the others are in no cluster and give 0.
            generator: draws the planes, then the dropout.
        """
        planes = self._draw(generator) if self.training or generator is not None else self.planes
        groups = self.groups(q, planes, query_mask)
        return clustered_attention(
            q,
            k,
            v,
            groups,
            self.clusters,
            topk=self.topk,
            scale=self.scale,
            key_mask=key_mask,
            attn_drop=self.attn_drop * self.training,
            generator=generator,
        )

    def groups(self, q: Tensor, planes: Tensor, query_mask: Tensor | None, start: Tensor | None = None) -> Tensor:
        """The cluster of each query (B, H, N), C for those that are not real.

        Args:
            q: (B, H, N, D).
            planes: (bits, D + 1), as ``self.planes``.
            query_mask: Bool (B, N), True for real queries.
            start: (B or 1, C) places of the queries that k-means starts from; at equal distances by default.
        """
        batch, heads, n, _ = q.shape
        real = torch.ones(batch, n, dtype=torch.bool, device=q.device) if query_mask is None else query_mask
        codes = sign_codes(q, planes)
        start = spread_evenly(real, self.clusters) if start is None else start.expand(batch, -1)
        first = take_rows(codes, start[:, None].expand(-1, heads, -1))
        return hamming_kmeans(codes, first, self.iterations, real)

    def _draw(self, generator: Generator | None) -> Tensor:
        planes = torch.randn_like(self.planes, generator=generator)
        if not self.hash_bias:
            planes[:, -1] = 0.0
        return planes

    def extra_repr(self) -> str:
        return f"{self.clusters} clusters, topk={self.topk}, bits={len(self.planes)}, iterations={self.iterations}"
