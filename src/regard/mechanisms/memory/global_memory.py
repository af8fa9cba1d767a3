"""Global memory: a few tokens that read everything and that everybody reads, beside any sparse attention.

GMAT (Gupta and Berant 2020, arXiv:2006.03274) and ETC (Ainslie et al. 2020, arXiv:2004.08483, section 3). The first G
tokens are global, the other N long. In one softmax each, with scale 1/sqrt(D),

- a global token sees all global and all long tokens;
- a long token sees all global tokens, and the long ones that ``pattern`` allows.

GMAT: the projections are shared, the pattern is blocks. ETC: ``separate`` projections of queries, keys and values for
both kinds, the pattern is a window, and keys carry relative labels: q . (k + a[label]), one vector a for each label and
head. With the largest distance K the labels are clip(j - i, -K, K) + K within a kind; between kinds 2 K + 1 if the long
token belongs to the global one, else 2 K + 2.

The memory stands among the tokens, so any stack of layers carries it along, and it is read off the first G outputs:
``MemoryTokens`` puts learned ones in front. The global tokens are the first G real ones, and blocks count from the one
behind them, so padding changes nothing. Time O(G (G + 2 N) + pairs of the pattern), memory O(G + N), a head and a
feature; with owners of the long tokens, memory O(G N) a head.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from regard.attention import attend, merge
from regard.layers import head_width
from regard.ops.masks import admit_one_sequence, check_values, hide, hide_rows
from regard.ops.packing import Documents
from regard.ops.positions import take_rows
from regard.patterns import Blocks, Full, Pattern, Segments, Window
from regard.registry import Card, Layer, Sample, UnsupportedError, register
from regard.scores import Dot, Relative


class Structure(NamedTuple):
    """What is known of a document beyond the order of its tokens; None where nothing is.

    Attributes:
        owner: the global token that each long token belongs to, -1 for none.
        global_to_global, global_to_long, long_to_global: True for the pairs that may meet.
        segments: ids of long tokens; those of different ids do not meet.
    """

    owner: Int[Tensor, "B N"] | None = None
    global_to_global: Bool[Tensor, "B G G"] | None = None
    global_to_long: Bool[Tensor, "B G N"] | None = None
    long_to_global: Bool[Tensor, "B N G"] | None = None
    segments: Int[Tensor, "B N"] | None = None


def global_memory_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B H T D"],
    v: Float[Tensor, "B H T Dv"],
    num_global: int,
    pattern: Pattern,
    *,
    labels: Float[Tensor, "H R D"] | None = None,
    structure: Structure | None = None,
    key_mask: Bool[Tensor, "B T"] | None = None,
    attn_drop: float = 0.0,
    generator: Generator | None = None,
) -> Float[Tensor, "B H T Dv"]:
    """Attend among T = G + N tokens, the global ones first; see the head of this file.

    Args:
        q, k, v: queries, keys and values, heads first.
        num_global: G.
        pattern: which long tokens meet; position 0 is the first long token.
        labels: a, R = 2 K + 3 vectors for each head.
        structure: owners of the long tokens, and pairs that must not meet.
        key_mask: True for real keys.
        attn_drop, generator: dropout on the weights, and what draws it.

    Returns:
        One row per query, 0 where it sees nobody.

    Example:
        >>> q = k = v = torch.randn(1, 2, 9, 4)
        >>> global_memory_attention(q, k, v, 2, Window(1)).shape
        torch.Size([1, 2, 9, 4])
    """
    given = structure or Structure()
    (qg, ql), (kg, kl), (vg, vl) = ((t[:, :, :num_global], t[:, :, num_global:]) for t in (q, k, v))
    real_g, real_l = (None, None) if key_mask is None else (key_mask[:, :num_global], key_mask[:, num_global:])
    belongs = None  # Bool (B, G, N)
    if labels is not None and given.owner is not None:
        belongs = given.owner[:, None] == torch.arange(kg.shape[2], device=q.device)[:, None]
    near = pattern if given.segments is None else pattern & Segments(given.segments)
    options: dict[str, Any] = {"dropout_p": attn_drop, "generator": generator}
    global_parts = (
        _within(qg, kg, vg, Full(), labels, given.global_to_global, key_mask=real_g, **options),
        _across(qg, kl, vl, labels, belongs, given.global_to_long, key_mask=real_l, **options),
    )
    long_parts = (
        _within(ql, kl, vl, near, labels, None, key_mask=real_l, **options),
        _across(
            ql,
            kg,
            vg,
            labels,
            None if belongs is None else belongs.mT,
            given.long_to_global,
            key_mask=real_g,
            **options,
        ),
    )
    return torch.cat([merge(*zip(*parts, strict=True))[0] for parts in (global_parts, long_parts)], 2)


def _within(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, labels: Tensor | None, allowed: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor]:
    """Among tokens of one kind, whose labels are clipped distances."""
    score = None
    if labels is not None:
        distances = labels[:, :-2]
        score = Dot(q * q.shape[-1] ** -0.5, distances.to(q.dtype), Relative(distances.shape[1] // 2))
    mask = None if allowed is None else allowed[:, None]
    return attend(q, k, v, pattern, attn_mask=mask, score=score, return_lse=True, **options)


def _across(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    labels: Tensor | None,
    belongs: Tensor | None,
    allowed: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """From tokens of one kind to all of the other, whose labels say whether the two belong together."""
    mask = None if allowed is None else allowed[:, None]
    if labels is None:
        return attend(q, k, v, attn_mask=mask, return_lse=True, **options)
    together, apart = (q @ labels[:, -2:].to(q.dtype).mT * q.shape[-1] ** -0.5).unbind(-1)
    if belongs is None:  # the same for all keys of a query: it shifts the sum of exponentials and no weight among them
        out, lse = attend(q, k, v, attn_mask=mask, return_lse=True, **options)
        return out, lse + apart.to(lse.dtype)
    bias = torch.where(belongs[:, None], together[..., None], apart[..., None])
    bias = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
    return attend(q, k, v, attn_mask=bias, return_lse=True, **options)


class BySide(nn.Module):
    """One projection for the first tokens and another one for the rest.

    Args:
        num_first: how many tokens are the first.
        dim, width: of the input and the output.
        bias: on both.
    """

    def __init__(self, num_first: int, dim: int, width: int, **options: Any) -> None:
        super().__init__()
        self.num_first = num_first
        self.first, self.rest = nn.Linear(dim, width, **options), nn.Linear(dim, width, **options)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, width)."""
        return torch.cat((self.first(x[:, : self.num_first]), self.rest(x[:, self.num_first :])), 1)


class MemoryTokens(nn.Module):
    """Learned tokens in front of a sequence: what the first layer of a network finds in its memory.

    Args:
        num_global: G.
        dim: C.

    Example:
        >>> x, mask = MemoryTokens(2, 4)(torch.randn(3, 5, 4), torch.ones(3, 5, dtype=torch.bool))
        >>> x.shape, mask.shape
        (torch.Size([3, 7, 4]), torch.Size([3, 7]))
    """

    def __init__(
        self, num_global: int, dim: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.empty(num_global, dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As the embeddings of BERT: N(0, 0.02^2)."""
        nn.init.normal_(self.start, std=0.02)

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x (B, N, C) -> (B, G + N, C), and the mask that goes with it."""
        x = torch.cat((self.start.expand(len(x), -1, -1).to(x.dtype), x), 1)
        if key_mask is not None:
            key_mask = torch.cat((key_mask.new_ones(len(key_mask), len(self.start)), key_mask), 1)
        return x, key_mask


@register(
    "global_memory",
    samples=[
        Sample(dim=12, num_heads=3, num_global=2, pattern=Blocks(4), attn_drop=0.1),
        Sample(dim=12, num_heads=2, num_global=3, pattern=Window(2), max_distance=2, separate=True),
    ],
)
class GlobalMemory(Layer):
    """A layer whose first tokens are a memory; see the head of this file.

    Args:
        dim, num_heads: C and H.
        num_global: G; of a shorter sequence all tokens are global.
        pattern: which long tokens meet, ``Blocks(64)`` by default; ETC's base model has ``Window(84)``.
        max_distance: K of the relative labels (ETC: 12); None: no labels.
        separate: queries, keys and values of global tokens have projections of their own, as in ETC.
        qkv_bias: biases on these projections; the output, which is shared, always has one.
        attn_drop, proj_drop: dropout on the weights and on the output.

    Raises:
        ValueError: sizes that do not fit.
        UnsupportedError: a context, or a structure together with packed documents.
    """

    card = Card(
        title="Global memory (GMAT, ETC)",
        paper="arXiv:2006.03274",
        year=2020,
        family="memory",
        data="sequence",
        smooth=True,
        stochastic=("dropout",),
        refuses={"causal": "the memory reads the whole sequence, and every token reads the memory"},
        cost="N (G + b)",
        summary="A few tokens that read all and are read by all: a global channel for any sparse pattern, in encoders.",
        formula="softmax over the memory and the pattern of q k^T / sqrt(D); memory tokens: over everything",
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_global: int = 16,
        pattern: Pattern | None = None,
        max_distance: int | None = None,
        separate: bool = False,
        *,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        width = head_width(dim, num_heads)
        if num_global < 1 or (max_distance is not None and max_distance < 0):
            raise ValueError(f"num_global={num_global}, max_distance={max_distance}: a memory has a token or more")
        self.dim, self.num_heads, self.num_global = dim, num_heads, num_global
        self.pattern, self.attn_drop = Blocks(64) if pattern is None else pattern, attn_drop
        factory: dict[str, Any] = {"device": device, "dtype": dtype}

        def projection() -> nn.Module:
            options = {"bias": qkv_bias, **factory}
            return BySide(num_global, dim, dim, **options) if separate else nn.Linear(dim, dim, **options)

        self.q_proj, self.k_proj, self.v_proj = projection(), projection(), projection()
        self.out_proj = nn.Linear(dim, dim, **factory)
        self.labels = None
        if max_distance is not None:
            self.labels = nn.Parameter(torch.empty(num_heads, 2 * max_distance + 3, width, **factory))
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As in BERT, from which both papers start: matrices and labels N(0, 0.02^2), biases 0."""
        for parameter in self.parameters():
            _ = nn.init.zeros_(parameter) if parameter.ndim == 1 else nn.init.normal_(parameter, std=0.02)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        segments: Tensor | None = None,
        structure: Structure | None = None,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Attend within x.

        Args:
            x: (B, G + N, C), the memory first.
            context: refused; it stands here as in every layer.
            key_mask, query_mask: Bool (B, G + N), True for real tokens; one serves as both.
            segments: Int (B, G + N), one id a packed document, whose own first G tokens are global.
            structure: what is known of the document. With it the first G places are global, real or not, so that the
                memory of some sequences may be shorter.
            generator: draws the dropout.
            return_aux: also return what else there is to tell: nothing.

        Returns:
            y (B, G + N, C), 0 for masked queries; with ``return_aux`` (y, {}).

        Raises:
            ValueError, TypeError: shapes or masks that do not fit.
            UnsupportedError: a context, or a structure together with segments.
        """
        name = "global_memory"
        x, key_mask, query_mask = admit_one_sequence(name, x, self.dim, context, key_mask, query_mask, segments)
        out = self._attend(x, None, key_mask, query_mask, segments, structure, generator)
        y = hide(self.proj_drop(self.out_proj(out.transpose(1, 2).flatten(2))), query_mask)
        return (y, {}) if return_aux else y

    def weigh(
        self,
        x: Tensor,
        values: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        segments: Tensor | None = None,
        structure: Structure | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """What the weights of all tokens make of other values.

        Args:
            x, context, key_mask, query_mask, segments, structure, generator: as in ``forward``.
            values: (B or 1, H or 1, G + N, Dv), one for each token.

        Returns:
            (B, H, G + N, Dv), 0 for masked queries.
        """
        name = "global_memory"
        x, key_mask, query_mask = admit_one_sequence(name, x, self.dim, context, key_mask, query_mask, segments)
        check_values(values, len(x), self.num_heads, x.shape[1])
        values = values.to(x.dtype).expand(len(x), self.num_heads, -1, -1)
        out = self._attend(x, values, key_mask, query_mask, segments, structure, generator)
        return hide_rows(out, query_mask)

    def _attend(
        self,
        x: Tensor,
        values: Tensor | None,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        segments: Tensor | None,
        structure: Structure | None,
        generator: Generator | None,
    ) -> Tensor:
        """(B, H, T, Dv), from real tokens in front, of one document a row."""
        options: dict[str, Any] = {"structure": structure, "generator": generator}
        if structure is not None:
            if segments is not None:
                raise UnsupportedError("a structure describes one document a row: unpack the segments first")
            return self._meet(x, values, key_mask, **options)
        documents = None
        if segments is not None:
            documents = Documents.of(segments)
            x, values = documents.unpack(x[:, None])[:, 0], None if values is None else documents.unpack(values)
            key_mask, query_mask = documents.mask(key_mask), documents.mask(query_mask)
        if key_mask is None or query_mask is None:  # there are none, or both
            return self._meet(x, values, None, **options)
        part = key_mask | query_mask
        order = part.logical_not().to(torch.uint8).argsort(dim=-1, stable=True)
        x, values = take_rows(x[:, None], order)[:, 0], None if values is None else take_rows(values, order)
        out = self._meet(x, values, key_mask.gather(-1, order), **options)
        out = take_rows(out, order.argsort(-1)).masked_fill(~part[:, None, :, None], 0.0)
        return out if documents is None else documents.pack(out)

    def _meet(self, x: Tensor, values: Tensor | None, key_mask: Tensor | None, **options: Any) -> Tensor:
        """(B, H, T, Dv)."""
        q, k, v = (
            linear(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        options |= {"labels": self.labels, "key_mask": key_mask, "attn_drop": self.attn_drop * self.training}
        v = v if values is None else values.to(v.dtype)
        return global_memory_attention(q, k, v, self.num_global, self.pattern, **options)

    def extra_repr(self) -> str:
        labels = None if self.labels is None else (self.labels.shape[1] - 3) // 2
        return (
            f"num_global={self.num_global}, pattern={self.pattern!r}, max_distance={labels}, attn_drop={self.attn_drop}"
        )
