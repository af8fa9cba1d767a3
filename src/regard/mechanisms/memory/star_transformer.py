"""Star-Transformer: words in a ring see their neighbours and a relay, and the relay sees every word.

Guo et al. 2019, arXiv:1902.09113, section 3. From embeddings e, nodes start as h = e and the relay as s = mean of e.
Each of T rounds, with weights of its own, updates both::

    h_i = norm(relu(MHA(h_i; [h_{i-1}, h_i, h_{i+1}, e_i, s])))
    s   = norm(relu(MHA(s;   [s, h_1 ... h_N])))

MHA is scaled dot-product attention of H heads between projections with biases; the keys of a round share one projection
and the values another. The nodes form a ring: the first and the last are neighbours.

The authors' code (fastNLP) differs, by options that its weights need: ``norm="pre"`` has h normalised before it is
projected (e and s are not), leaky ReLU, and no norm after either update; ``ring="zero"`` has neighbours beyond either
end with a key and a value of 0, which keep their share of the softmax. Padding is no neighbour, and is not in the mean.

Time O(T N C (C + H)), memory O(N C) a round.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from regard.attention import attend
from regard.layers import head_width
from regard.ops.dropout import drop
from regard.ops.masks import admit_one_sequence, hide, positions
from regard.ops.packing import Documents
from regard.ops.ring import Neighbours
from regard.registry import Card, Layer, Sample, register

Norm = Literal["post", "pre"]
Ring = Literal["wrap", "zero"]


def ring_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N Dv"],
    k_more: Float[Tensor, "B H N_and_1 D"],
    v_more: Float[Tensor, "B H N_and_1 Dv"],
    neighbours: Neighbours,
    *,
    attn_drop: float = 0.0,
    generator: Generator | None = None,
) -> Float[Tensor, "B H N Dv"]:
    """Each node sees five keys in one softmax with scale 1/sqrt(D): before, itself, after, its embedding, the relay.

    Args:
        q, k, v: of the nodes.
        k_more, v_more: of the N embeddings and, last, of the relay.
        neighbours: who stands before and after.
        attn_drop, generator: dropout on the weights, and what draws it.

    Example:
        >>> q = k = v = torch.randn(1, 2, 6, 4); more = torch.randn(1, 2, 7, 4)
        >>> ring_attention(q, k, v, more, more, Neighbours.of(torch.ones(1, 6, dtype=torch.bool))).shape
        torch.Size([1, 2, 6, 4])
    """
    keys, values = (
        (neighbours.stand_before(t), t, neighbours.stand_after(t), *_apart(more))
        for t, more in ((k, k_more), (v, v_more))
    )
    scores = torch.stack([(q * key).sum(-1) for key in keys], -1) * q.shape[-1] ** -0.5
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype)
    weights = drop(weights, attn_drop, generator)
    out = torch.zeros_like(v)
    for weight, value in zip(weights.unbind(-1), values, strict=True):
        out = torch.addcmul(out, weight[..., None], value)
    return out


def _apart(more: Tensor) -> tuple[Tensor, Tensor]:
    """The embeddings, and the relay."""
    return more[:, :, :-1], more[:, :, -1:]


class Attention(nn.Module):
    """The four projections of one update.

    Args:
        dim, num_heads, head_dim: C, H and D.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int, **factory: Any) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, num_heads * head_dim, **factory) for _ in range(3))
        self.out_proj = nn.Linear(num_heads * head_dim, dim, **factory)

    def keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of x (B, N, C), heads first."""
        return self._heads(self.k_proj(x)), self._heads(self.v_proj(x))

    def queries(self, x: Tensor) -> Tensor:
        """Queries of x (B, N, C), heads first."""
        return self._heads(self.q_proj(x))

    def join(self, out: Tensor) -> Tensor:
        """(B, H, N, D) -> (B, N, C)."""
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class Round(nn.Module):
    """One update of all nodes, and one of the relay.

    Args:
        dim, num_heads, head_dim: C, H and D.
        norm, norm_eps: as for :class:`StarTransformer`.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int, norm: Norm, norm_eps: float, **factory: Any) -> None:
        super().__init__()
        self.ring = Attention(dim, num_heads, head_dim, **factory)
        self.star = Attention(dim, num_heads, head_dim, **factory)
        self.node_norm = nn.LayerNorm(dim, norm_eps, **factory)
        self.relay_norm = nn.LayerNorm(dim, norm_eps, **factory) if norm == "post" else None

    def forward(
        self,
        e: Tensor,
        nodes: Tensor,
        relay: Tensor,
        neighbours: Neighbours,
        real: Tensor | None,
        attn_drop: float,
        generator: Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """The next nodes (B, N, C), 0 where nothing is real, and the next relay (B, 1, C)."""
        asking = self.node_norm(nodes) if self.relay_norm is None else nodes
        q, (k, v), (k_more, v_more) = (
            self.ring.queries(asking),
            self.ring.keys(asking),
            self.ring.keys(torch.cat((e, relay), 1)),
        )
        out = ring_attention(q, k, v, k_more, v_more, neighbours, attn_drop=attn_drop, generator=generator)
        nodes = self.ring.join(out)
        nodes = F.leaky_relu(nodes) if self.relay_norm is None else self.node_norm(F.relu(nodes))
        nodes = hide(nodes, real)
        q, (k, v) = self.star.queries(relay), self.star.keys(torch.cat((relay, nodes), 1))
        seen = None if real is None else torch.cat((real.new_ones(len(real), 1), real), 1)
        relay = self.star.join(attend(q, k, v, key_mask=seen, dropout_p=attn_drop, generator=generator))
        return nodes, F.leaky_relu(relay) if self.relay_norm is None else self.relay_norm(F.relu(relay))


@register(
    "star_transformer",
    samples=[
        Sample(dim=12, num_heads=3, num_rounds=2, attn_drop=0.1),
        Sample(dim=12, num_heads=3, head_dim=5, num_rounds=1, norm="pre", ring="zero", num_positions=24),
    ],
)
class StarTransformer(Layer):
    """The whole encoder of T rounds as one layer; see the head of this file.

    Args:
        dim, num_heads: C and H.
        num_rounds: T. With one round the relay is the mean of the embeddings, and its only update is read by nobody
            but ``encode``.
        head_dim: D, by default C / H.
        norm: "post" (the paper) or "pre" (the authors' code).
        ring: "wrap" (the paper) or "zero" (the authors' code).
        num_positions: learned positions for so many real tokens, added to the embeddings; None: none.
        embed_drop: dropout on the embeddings.
        attn_drop: dropout on the weights.
        norm_eps: of the norms.

    Raises:
        ValueError: sizes that do not fit, unknown forms, or more tokens than positions.
        UnsupportedError: a context.
    """

    card = Card(
        title="Star-Transformer",
        paper="arXiv:1902.09113",
        year=2019,
        family="memory",
        data="sequence",
        smooth=True,
        stochastic=("dropout",),
        refuses={"causal": "the relay reads the whole sequence, and every word reads the relay"},
        cost="N",
        summary="A ring of words and one relay between all of them: a light sentence encoder for small data.",
        formula="h_i sees h_{i-1}, h_i, h_{i+1}, e_i and s; s sees s and all h",
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_rounds: int = 2,
        head_dim: int | None = None,
        norm: Norm = "post",
        ring: Ring = "wrap",
        num_positions: int | None = None,
        *,
        embed_drop: float = 0.0,
        attn_drop: float = 0.0,
        norm_eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if norm not in ("post", "pre") or ring not in ("wrap", "zero"):
            raise ValueError(f'norm={norm!r} is "post" or "pre", and ring={ring!r} is "wrap" or "zero"')
        if num_rounds < 1:
            raise ValueError(f"num_rounds={num_rounds}: without a round nobody sees anybody")
        head_dim = head_width(dim, num_heads, head_dim)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.dim, self.num_heads, self.head_dim, self.attn_drop = dim, num_heads, head_dim, attn_drop
        self.ring: Ring = ring
        self.rounds = nn.ModuleList(
            Round(dim, num_heads, head_dim, norm, norm_eps, **factory) for _ in range(num_rounds)
        )
        self.positions = None if num_positions is None else nn.Embedding(num_positions, dim, **factory)
        self.embed_drop = nn.Dropout(embed_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform matrices and biases 0; positions N(0, 1), norms the identity."""
        for part in self.rounds.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)
            elif isinstance(part, nn.LayerNorm):
                part.reset_parameters()
        if self.positions is not None:
            self.positions.reset_parameters()

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
        """The nodes after the last round.

        Args:
            x: embeddings, (B, N, C).
            context: refused; it stands here as in every layer.
            key_mask, query_mask: Bool (B, N), True for real words; one serves as both, and a node needs both.
            segments: Int (B, N), one id a packed document, which has a ring and a relay of its own.
            generator: draws the dropout on the weights.
            return_aux: also return what else there is to tell: nothing.

        Returns:
            y (B, N, C), 0 where there is no node; with ``return_aux`` (y, {}).

        Raises:
            ValueError, TypeError: shapes or masks that do not fit.
            UnsupportedError: a context.
        """
        name = "star_transformer"
        x, key_mask, query_mask = admit_one_sequence(name, x, self.dim, context, key_mask, query_mask, segments)
        real = None if key_mask is None or query_mask is None else key_mask & query_mask
        documents = None
        if segments is not None:
            documents = Documents.of(segments)
            x, real = documents.unpack(x[:, None])[:, 0], documents.mask(real)
        nodes, relay = self._encode(x, real, generator)
        # the last update of the relay stays in the graph: distributed training wants a gradient of each, here zero
        nodes = nodes + 0.0 * relay[:, None]
        y = nodes if documents is None else documents.pack(nodes[:, None])[:, 0]
        return (y, {}) if return_aux else y

    def encode(
        self, x: Tensor, key_mask: Tensor | None = None, *, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The nodes (B, N, C) and the relay (B, C), which stands for the whole sequence.

        Args:
            x: embeddings, (B, N, C).
            key_mask: Bool (B, N), True for real words.
            generator: draws the dropout on the weights.
        """
        x, real, _ = admit_one_sequence("star_transformer", x, self.dim, None, key_mask, None, None)
        return self._encode(x, real, generator)

    def _encode(self, x: Tensor, real: Tensor | None, generator: Generator | None) -> tuple[Tensor, Tensor]:
        everyone = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if real is None else real
        e = hide(self._embed(x, real), real)
        relay = e.sum(1, keepdim=True) / everyone.sum(1).clamp(min=1)[:, None, None]
        neighbours = Neighbours.of(everyone, closed=self.ring == "wrap")
        return self.run(e, relay, neighbours, real, generator=generator)

    def _embed(self, x: Tensor, real: Tensor | None) -> Tensor:
        if self.positions is not None:
            if x.shape[1] > self.positions.num_embeddings:
                raise ValueError(f"{x.shape[1]} tokens, but there are num_positions={self.positions.num_embeddings}")
            x = x + self.positions(positions(x, real))
        return self.embed_drop(x)

    def run(
        self,
        e: Tensor,
        relay: Tensor,
        neighbours: Neighbours,
        real: Tensor | None,
        *,
        generator: Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """All rounds from embeddings (B, N, C) and a first relay (B, 1, C); what is not real becomes 0 in each.

        Returns:
            The nodes (B, N, C) and the relay (B, C).
        """
        nodes = e
        for update in self.rounds:
            nodes, relay = update(e, nodes, relay, neighbours, real, self.attn_drop * self.training, generator)
        return nodes, relay[:, 0]

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}, head_dim={self.head_dim}, ring={self.ring!r}"
