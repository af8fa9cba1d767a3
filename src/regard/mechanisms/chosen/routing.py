"""Routing attention: tokens meet those that are nearest to the same centroid, beside heads with a local window.

Roy et al. 2020, arXiv:2003.05997, section 4.1; google-research/routing_transformer. Each routing head keeps K centroids
mu. Queries and keys are normalised to q^, k^ = LayerNorm without scale and bias, and for each centroid::

    S_k = the w queries with the largest q^_i . mu_k        T_k = the w keys with the largest k^_j . mu_k
    y_i = mean over the k with i in S_k of softmax_{j in T_k}(q^_i . k^_j / sqrt(D)) v_j

0 for a query that no cluster took: therefore a part of the heads, half of them by default, see a window of neighbours
instead. In training the centroids follow the tokens that have them as their nearest (:mod:`regard.ops.online_kmeans`),
and "loss/commitment" draws the tokens towards them: beta mean (x^ - mu)^2, for queries and for keys.

Causal, keys are queries (``share_qk``) and no token sees a later one. **That is a selection**: later tokens take places
in a cluster and push earlier ones out, so a model that generates token by token sees other tokens than it was trained
on. With ``strict=True`` a token belongs to its nearest centroid alone and asks the last w tokens of that cluster, which
nothing later can change; it also streams.

Departures from the authors' code: scores are divided by sqrt(D) (their factor is lost in the normalisation), the mean
is exact (theirs divides by the number + 0.01), counts are each head's own, padding takes no place in a cluster.

Time a head O(N K D + K w^2 D): with K = w = sqrt(N), O(N^1.5 D); memory O(N K + K w^2). Strict O(N w D).
"""

import dataclasses
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from regard.attention import attend
from regard.layers import head_width
from regard.memory import RollingWindow, check_memory
from regard.ops.cluster_window import ClusterWindow, cluster_window_attention, continue_clusters
from regard.ops.masks import check_mask, check_segments, check_tokens, check_values, hide
from regard.ops.online_kmeans import OnlineKMeans, nearest
from regard.ops.packing import Documents
from regard.ops.routed import meet, top_tokens
from regard.patterns import Window
from regard.registry import Card, Layer, Sample, UnsupportedError, register


def normalised(x: Float[Tensor, "B H N D"]) -> Float[Tensor, "B H N D"]:
    """Mean 0 and variance 1 over the features: a layer norm without scale and bias."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class RoutingMemory(NamedTuple):
    """What a strict layer carries along.

    Attributes:
        local: the window of the local heads.
        routed: the windows of the clusters.
    """

    local: RollingWindow
    routed: ClusterWindow


_HERE: dict[str, Any] = {"cross": False}
_STRICT: dict[str, Any] = {"causal": "strict", "cross": False, "streaming": True}


@register(
    "routing",
    samples=[
        Sample(dim=12, num_heads=3, local_heads=0, clusters=3, window=5, attn_drop=0.1),
        Sample(dim=12, num_heads=3, clusters=2, window=4, local_window=2, claims=_HERE),
        Sample(dim=12, num_heads=3, clusters=3, window=5, causal=True, claims=_HERE),
        Sample(dim=12, num_heads=3, clusters=3, window=3, local_window=4, causal=True, strict=True, claims=_STRICT),
        Sample(
            dim=12,
            num_heads=2,
            head_dim=5,
            local_heads=0,
            clusters=3,
            window=5,
            causal=True,
            share_qk=False,
            claims=_HERE,
        ),
    ],
)
class Routing(Layer):
    """Projections without biases around routing heads and, before them, local heads; see the head of this file.

    Args:
        dim, num_heads: C and H.
        head_dim: D, the default is C / H.
        clusters: K; K w near the length leaves few tokens out.
        window: w, tokens in a cluster.
        local_heads: heads that see neighbours instead, half of all by default; with 0 the layer takes a context.
        local_window: neighbours on each side, w by default.
        causal: no token sees a later one, though later ones decide which others it meets ("selection").
        strict: causal for good: the last w tokens of one's own cluster.
        share_qk: keys are the queries of the routing heads; by default if causal.
        decay: of the centroids' moving averages.
        commitment: beta, the weight of "loss/commitment".
        attn_drop, proj_drop: dropout on the weights and on the output.

    Raises:
        ValueError: sizes that do not fit, or options that contradict each other.
        UnsupportedError: a context where there are local heads or keys that are queries; streaming unless strict.
    """

    card = Card(
        title="Routing Transformer",
        paper="arXiv:2003.05997",
        year=2020,
        family="chosen",
        data="sequence",
        causal="selection",
        cross=True,
        stochastic=("dropout", "ema"),
        refuses={"num_kv_heads": "every head has centroids for its own keys"},
        cost="N^1.5",
        summary="Learned clusters bring similar tokens together, for long sequences; causal only by selection unless "
        "strict=True.",
        formula="mean over the clusters of i of softmax_{j in the cluster}(LN(q_i) . LN(k_j) / sqrt(D)) v_j",
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int | None = None,
        clusters: int = 16,
        window: int = 128,
        local_heads: int | None = None,
        local_window: int | None = None,
        *,
        causal: bool = False,
        strict: bool = False,
        share_qk: bool | None = None,
        decay: float = 0.999,
        commitment: float = 1e-4,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        head_dim = head_width(dim, num_heads, head_dim)
        local = num_heads // 2 if local_heads is None else local_heads
        local_window = window if local_window is None else local_window
        if min(clusters, window, local_window) < 1 or not 0 <= local <= num_heads:
            sizes = f"clusters={clusters}, window={window}, local_window={local_window}, local_heads={local_heads}"
            raise ValueError(f"{sizes}: sizes are at least 1, and at most num_heads={num_heads} heads are local")
        share_qk = causal if share_qk is None else share_qk
        if strict and not (causal and share_qk):
            raise ValueError("strict=True needs causal=True, and keys that are queries: leave share_qk out")
        self.dim, self.num_heads, self.head_dim, self.local_heads = dim, num_heads, head_dim, local
        self.window, self.local_window, self.commitment = window, local_window, commitment
        self.causal, self.strict, self.share_qk, self.attn_drop = causal, strict, share_qk, attn_drop
        self.pattern = Window(local_window, 0 if causal else local_window)
        changes = _STRICT if strict else {"cross": not (local or share_qk or causal)}
        self.card = dataclasses.replace(self.card, **changes)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        keys = local if share_qk else num_heads
        self.q_proj = nn.Linear(dim, num_heads * head_dim, bias=False, **factory)
        self.k_proj = nn.Linear(dim, keys * head_dim, bias=False, **factory) if keys else None
        self.v_proj = nn.Linear(dim, num_heads * head_dim, bias=False, **factory)
        self.out_proj = nn.Linear(num_heads * head_dim, dim, bias=False, **factory)
        self.proj_drop = nn.Dropout(proj_drop)
        self.kmeans = OnlineKMeans(num_heads - local, clusters, head_dim, decay, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform matrices, and random centroids that have seen nothing."""
        for parameter in self.parameters():
            nn.init.xavier_uniform_(parameter)
        self.kmeans.reset_parameters()

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        segments: Tensor | None = None,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Attend from x to itself, or to a context; in training the centroids learn from it.

        Args:
            x: (B, N, C).
            context: (B, M, C), for a layer without local heads whose keys are not its queries.
            key_mask: Bool (B, M), True for real tokens of what is asked.
            query_mask: Bool (B, N), True for real queries; each mask is the default for the other within one sequence.
            segments: Int (B, N), one id a packed document, which then sees only itself.
            generator: draws the dropout.
            return_aux: also return "loss/commitment", to be added to the loss.

        Returns:
            y (B, N, C), 0 for masked queries; with ``return_aux`` (y, dict).

        Raises:
            ValueError, TypeError: shapes or masks that do not fit.
            UnsupportedError: a context that this layer cannot have.
        """
        x, source, key_mask, query_mask = self._admit(x, context, key_mask, query_mask, segments)
        q, k, v = self._project(x, source)
        out, loss = self._attend(q, k, v, key_mask, query_mask, segments, generator, learn=self.training)
        y = hide(self._join(out), query_mask)
        return (y, {"loss/commitment": loss}) if return_aux else y

    def weigh(
        self,
        x: Tensor,
        values: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        segments: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """What the attention of x makes of other values, before the output projection.

        Args:
            x, context, key_mask, query_mask, segments, generator: as in ``forward``.
            values: (B or 1, H or 1, M, Dv), one for each token that is asked.

        Returns:
            (B, H, N, Dv), 0 for masked queries.
        """
        x, source, key_mask, query_mask = self._admit(x, context, key_mask, query_mask, segments)
        check_values(values, len(x), self.num_heads, source.shape[1])
        q, k, v = self._project(x, source)
        values = values.to(v.dtype).expand(len(x), self.num_heads, -1, -1)
        return self._attend(q, k, values, key_mask, query_mask, segments, generator, learn=False)[0]

    def memory(self, batch: int, *, device: Any = None, dtype: Any = None, static: int | None = None) -> RoutingMemory:
        """Empty windows, of the neighbours and of each cluster; of constant size, so ``static`` reserves nothing."""
        if not self.strict:
            raise UnsupportedError("routing streams only with strict=True: here later tokens decide who meets whom")
        weight, width, routed = self.q_proj.weight, self.head_dim, self.num_heads - self.local_heads
        place = {"device": device or weight.device, "dtype": dtype or weight.dtype}
        return RoutingMemory(
            RollingWindow.start(batch, self.local_heads, self.local_window, width, width, **place),
            ClusterWindow.start(batch, routed, self.kmeans.means.shape[1], self.window, width, width, **place),
        )

    def stream(self, x: Tensor, memory: RoutingMemory) -> tuple[Tensor, RoutingMemory]:
        """Continue with one token or many: -> (y, the new memory)."""
        check_tokens(x, self.dim)
        check_memory(memory, self.memory(len(x), device="meta"), x)
        q, k, v = self._project(x, x)
        here, routed, drop = self.local_heads, normalised(q[:, self.local_heads :]), self.attn_drop * self.training
        keys, values, real, rolled = memory.local.append(k[:, :here], v[:, :here])
        near = attend(q[:, :here], keys.to(q.dtype), values.to(q.dtype), self.pattern, key_mask=real, dropout_p=drop)
        groups = nearest(self.kmeans.affinity(routed), None)
        far, grown = continue_clusters(routed, routed, v[:, here:], groups, memory.routed, attn_drop=drop)
        return self._join(torch.cat((near, far), 1)), RoutingMemory(rolled, grown)

    def _admit(
        self,
        x: Tensor,
        context: Tensor | None,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        segments: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """What asks and what is asked, with padding set to 0, and the masks of keys and of queries."""
        check_tokens(x, self.dim)
        if context is not None:
            if not self.card.cross:
                reason = "its local heads know neighbours only" if self.local_heads else "it needs one order of tokens"
                raise UnsupportedError(f"this routing layer takes no context: {reason}")
            if segments is not None:
                raise UnsupportedError("segments divide one sequence: they are for self-attention, without context")
            check_tokens(context, self.dim, "context")
            if len(context) != len(x):
                raise ValueError(f"x and context hold {len(x)} and {len(context)} sequences, the numbers must be equal")
        source = x if context is None else context
        check_mask(key_mask, len(source), source.shape[1])
        check_mask(query_mask, len(x), x.shape[1], "query_mask")
        check_segments(segments, len(x), x.shape[1])
        if context is None:
            key_mask, query_mask = (a if b is None else b for a, b in ((query_mask, key_mask), (key_mask, query_mask)))
        return hide(x, query_mask), hide(source, key_mask), key_mask, query_mask

    def _project(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, heads first; with ``share_qk`` the routing heads have their queries as keys."""
        q, v = self._heads(self.q_proj(x)), self._heads(self.v_proj(source))
        own = [] if self.k_proj is None else [self._heads(self.k_proj(source))]
        shared = [q[:, self.local_heads :]] if self.share_qk else []
        return q, torch.cat((*own, *shared), 1), v

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        segments: Tensor | None,
        generator: Generator | None,
        *,
        learn: bool,
    ) -> tuple[Tensor, Tensor]:
        """What all heads see (B, H, N, Dv), and the weighted loss."""
        documents = None
        if segments is not None:
            documents = Documents.of(segments)
            q, k, v = documents.unpack(q), documents.unpack(k), documents.unpack(v)
            key_mask, query_mask = documents.mask(key_mask), documents.mask(query_mask)
        here = self.local_heads
        out, loss = self._route(q[:, here:], k[:, here:], v[:, here:], key_mask, query_mask, generator, learn)
        if here:
            drop: dict[str, Any] = {"dropout_p": self.attn_drop * self.training, "generator": generator}
            near = attend(q[:, :here], k[:, :here], v[:, :here], self.pattern, key_mask=key_mask, **drop)
            out = torch.cat((near, out), 1)
        if query_mask is not None:
            out = out.masked_fill(~query_mask[:, None, :, None], 0.0)
        return (out if documents is None else documents.pack(out)), loss

    def _route(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
        learn: bool,
    ) -> tuple[Tensor, Tensor]:
        """The routing heads."""
        if learn:
            self.kmeans.move()
        q = normalised(q)
        k = q if self.share_qk else normalised(k)
        sides = [(q, query_mask)] if self.share_qk and key_mask is query_mask else [(q, query_mask), (k, key_mask)]
        near = [self.kmeans.affinity(x) for x, _ in sides]
        groups = [nearest(a, mask) for a, (_, mask) in zip(near, sides, strict=True)]
        loss = self.kmeans.distance(q, groups[0]) + self.kmeans.distance(k, groups[-1])
        if learn:
            self.kmeans.add(torch.cat([x.detach() for x, _ in sides], 2), torch.cat(groups, 2))
        options: dict[str, Any] = {"attn_drop": self.attn_drop * self.training, "generator": generator}
        if self.strict:
            out = cluster_window_attention(q, k, v, groups[-1], near[0].shape[-1], self.window, **options)
        else:
            index = [top_tokens(a, self.window, mask) for a, (_, mask) in zip(near, sides, strict=True)]
            out = meet(q, k, v, index[0], index[-1], causal=self.causal, key_mask=key_mask, **options)
        return out, self.commitment * loss

    def _join(self, out: Tensor) -> Tensor:
        return self.proj_drop(self.out_proj(out.transpose(1, 2).flatten(2)))

    def extra_repr(self) -> str:
        sizes = f"dim={self.dim}, num_heads={self.num_heads}, local_heads={self.local_heads}, window={self.window}"
        return f"{sizes}, causal={self.causal}, strict={self.strict}, share_qk={self.share_qk}"
