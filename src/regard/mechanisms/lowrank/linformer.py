"""Linformer: attend to a few learned mixtures of the keys instead of to every key.

Wang et al. 2020, arXiv:2006.04768, eq. 7. With tables E, F of R rows over at most L tokens::

    y = softmax(q (E k)^T / sqrt(D)) (F v)

The paper mixes after the projections, the authors' code before them, which is the same without biases: E (x W + b) =
(E x) W + (E 1) b, and their code adds b itself. The layer here mixes first too, wherever one table serves all heads: R
rows are then projected instead of M. A mixture has seen the whole sequence, hence nothing causal; a masked key has no
column in the tables.

Time O(R (N + M) D) a head, memory O(R D), and N D for the queries.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.attention import attend
from regard.layers import MultiHead
from regard.ops.masks import hide
from regard.ops.positions import real_first
from regard.registry import Card, Core, Sample, register

Share = Literal["none", "heads", "kv"]


def mix(
    table: Float[Tensor, "#H R L"], x: Float[Tensor, "B H M D"], key_mask: Bool[Tensor, "B M"] | None = None
) -> Float[Tensor, "B H R D"]:
    """The mixtures table x, the columns of the table taken by the rank of each real token.

    Args:
        table: R rows over at most L >= M tokens, one a head or one for all.
        x: keys or values, heads first.
        key_mask: True for real tokens. The others have no column, so padding on either side changes nothing.

    Example:
        >>> x = torch.tensor([[[[9.0], [1.0], [2.0]]]])
        >>> mix(torch.ones(1, 1, 4), x, torch.tensor([[False, True, True]])).item()
        3.0
    """
    if key_mask is not None:
        (x,) = real_first(key_mask, x.masked_fill(~key_mask[:, None, :, None], 0.0))
    return table[..., : x.shape[-2]] @ x


def linformer_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H M D"],
    v: Float[Tensor, "B H M Dv"],
    e: Float[Tensor, "#H R L"],
    f: Float[Tensor, "#H R L"],
    *,
    key_mask: Bool[Tensor, "B M"] | None = None,
    attn_drop: float = 0.0,
) -> Float[Tensor, "B H N Dv"]:
    """softmax(q (e k)^T / sqrt(D)) (f v).

    Args:
        q, k, v: queries, keys and values, heads first.
        e, f: mixing tables, see :func:`mix`.
        key_mask: True for real keys.
        attn_drop: dropout on the weights over mixtures, applied as given.

    Returns:
        One row per query; 0 where a sequence has no real key.

    Example:
        >>> q = k = v = torch.randn(1, 2, 5, 4); e = torch.randn(1, 3, 8)
        >>> linformer_attention(q, k, v, e, e).shape
        torch.Size([1, 2, 5, 4])
    """
    return attend_to_mixtures(q, mix(e, k, key_mask), mix(f, v, key_mask), attn_drop=attn_drop)


def attend_to_mixtures(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B G R D"],
    v: Float[Tensor, "B G R Dv"],
    *,
    attn_drop: float = 0.0,
    generator: Generator | None = None,
) -> Float[Tensor, "B H N Dv"]:
    """softmax(q k^T / sqrt(D)) v over mixtures that are there already; H is a multiple of G."""
    return attend(q, k, v, dropout_p=attn_drop, enable_gqa=True, generator=generator)


class MixFirst(MultiHead):
    """The layer around a :class:`Linformer`: it mixes tokens and projects the mixtures, where that is the same.

    It is where one table serves all heads and nothing else happens to single keys: no rotary positions, no norm of
    keys, no packed documents. Elsewhere all tokens are projected.
    """

    core: "Linformer"

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
        """Attend; arguments, result and errors are those of :class:`regard.layers.MultiHead`."""
        masks: dict[str, Tensor | None] = {"key_mask": key_mask, "query_mask": query_mask, "segments": segments}
        if segments is not None or len(self.core.e) > 1 or self.rotary is not None or self.k_norm is not None:
            return super().forward(x, context, **masks, generator=generator, return_aux=return_aux)
        x, source, key_mask, query_mask = self._admit(x, context, **masks)
        e, f = self.core.tables(source.shape[1])
        tokens = source[:, None]
        mixed = mix(e, tokens, key_mask)
        k = self._project_mixtures(self.k_proj, mixed, e, tokens, key_mask)
        v = self._project_mixtures(self.v_proj, mixed if f is e else mix(f, tokens, key_mask), f, tokens, key_mask)
        q = self.q_proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        drop = self.core.attn_drop * self.training
        y = hide(self._join(attend_to_mixtures(q, k, v, attn_drop=drop, generator=generator)), query_mask)
        return (y, {}) if return_aux else y

    def _project_mixtures(
        self, linear: nn.Linear, mixed: Tensor, table: Tensor, tokens: Tensor, key_mask: Tensor | None
    ) -> Tensor:
        """table (tokens W + b) as (table tokens) W + (table 1) b: (B, G, R, D)."""
        rows = F.linear(mixed, linear.weight)
        if linear.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
            rows = rows + mix(table, torch.ones_like(tokens[..., :1]), key_mask) * linear.bias
        return rows.squeeze(1).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


@register(
    "linformer",
    samples=[
        Sample(dim=12, num_heads=3, max_length=24, rank=4),
        Sample(dim=12, num_heads=3, max_length=24, rank=4, share="kv", num_kv_heads=1, attn_drop=0.1),
        Sample(dim=12, num_heads=3, max_length=24, rank=4, share="none", qkv_bias=False),
    ],
)
class Linformer(Core):
    """Owns the mixing tables of :func:`linformer_attention`; one instance in all layers shares them layerwise.

    Args:
        num_heads, head_dim: shape of the queries.
        max_length: the longest key sequence L.
        rank: the number of mixtures R (the paper's k); quality and cost grow with it.
        share: "none" = tables per head, "heads" = one e and one f for all heads, "kv" = f is e.
        attn_drop: dropout on the weights over mixtures, in training.

    Raises:
        ValueError: more keys than ``max_length``, or other heads than it was made for.
    """

    card = Card(
        title="Linformer",
        paper="arXiv:2006.04768",
        year=2020,
        family="lowrank",
        data="sequence",
        cross=True,
        gqa=True,
        smooth=True,
        stochastic=("dropout",),
        refuses={"causal": "every mixture has seen the future"},
        cost="N r",
        summary="Keys and values are compressed to a few learned mixtures: cheap encoders of a fixed largest length.",
        formula="softmax(q (E k)^T / sqrt(D)) (F v), E and F learned, R x M",
    )
    layer = MixFirst

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        max_length: int,
        rank: int = 128,
        share: Share = "heads",
        *,
        attn_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if share not in ("none", "heads", "kv"):
            raise ValueError(f'share={share!r} is none of "none", "heads" and "kv"')
        if min(max_length, rank) < 1:
            raise ValueError(f"max_length={max_length}, rank={rank}: sizes must be positive")
        self.num_heads, self.head_dim = num_heads, head_dim
        self.max_length, self.attn_drop = max_length, attn_drop
        shape = (num_heads if share == "none" else 1, rank, max_length)
        self.e = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.f = None if share == "kv" else nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform with gain 1/sqrt(2), each matrix by itself: of the whole table the fan would be wrong."""
        for table in self.parameters():
            for matrix in table:
                nn.init.xavier_uniform_(matrix, gain=2**-0.5)

    def tables(self, length: int) -> tuple[Tensor, Tensor]:
        """e and f, for this many keys.

        Raises:
            ValueError: more than there are columns for.
        """
        if length > self.max_length:
            raise ValueError(f"{length} keys, but this Linformer was built with max_length={self.max_length}")
        return self.e, self.e if self.f is None else self.f

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
        """Attend; shapes as in :func:`linformer_attention` (``query_mask`` is idle: queries enter no mixture)."""
        if q.shape[1::2] != (self.num_heads, self.head_dim):
            raise ValueError(
                f"q has shape {tuple(q.shape)}, but this Linformer was built for {self.num_heads} heads of "
                f"{self.head_dim}: (batch, {self.num_heads}, length, {self.head_dim})"
            )
        e, f = self.tables(k.shape[-2])
        if len(e) > k.shape[1]:  # a table for each query head
            k, v = (t.repeat_interleave(self.num_heads // k.shape[1], 1) for t in (k, v))
        drop = self.attn_drop * self.training
        return attend_to_mixtures(q, mix(e, k, key_mask), mix(f, v, key_mask), attn_drop=drop, generator=generator)

    def extra_repr(self) -> str:
        _, rank, length = self.e.shape
        share = "none" if len(self.e) > 1 else "kv" if self.f is None else "heads"
        return f"num_heads={self.num_heads}, max_length={length}, rank={rank}, share={share!r}"
