"""Synthesizer: attention logits that are predicted from each token alone, or learned, instead of asked of the keys.

Tay et al. 2020, arXiv:2005.00743, section 3. Each head has logits E (N x M), a part of which may be::

    dense              E_i = W_2 relu(W_1 x_i + b_1) + b_2
    random             E = R, learned; "fixed_random": drawn once and never trained
    factorised_dense   E_ij = a_i[j // e] b_i[j mod e],  a_i = A x_i + c,  b_i = B x_i + d
    factorised_random  E = R_1 R_2^T
    dot                E = q k^T / sqrt(D), what every other attention has

and y = W_o concat_h softmax(sum_s alpha_s E_s) v with alpha = softmax(mix), learned; one part alone has no alpha.

The tables have a row and a column for each position up to ``max_length``, counted from the first real token, and are
cut to the length at hand; a longer sequence is refused. They say nothing about the tokens of another sequence, so there
is no context. Row i depends on x_i alone, hence causal by a mask.

Time O(N M d) a head for dense and dot logits, less for the others, and O(N M D) for the values. Logits that are
products (dense, dot, factorised_random) are never formed. Of "random" and "fixed_random" alone all sequences share one
map, unless they are padded or weights are dropped.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.attention import attend
from regard.layers import head_width
from regard.memory import LayerMemory, StaticCache, check_memory
from regard.ops.caches import empty_cache, slot_mask
from regard.ops.masks import admit_one_sequence, check_tokens, check_values, hide, hide_rows
from regard.ops.packing import Documents
from regard.ops.positions import put_back, real_first
from regard.ops.row_runs import by_rows
from regard.ops.synthetic_logits import (
    Dense,
    FactorisedDense,
    FactorisedRandom,
    Random,
    Rows,
    Sides,
    outer_logits,
)
from regard.ops.weights import softmax_where, visible
from regard.patterns import Causal
from regard.registry import Card, Layer, Sample, UnsupportedError, register

Part = Literal["dense", "random", "fixed_random", "factorised_dense", "factorised_random", "dot"]


def synthesized_attention(
    logits: Float[Tensor, "#B H N M"],
    v: Float[Tensor, "B H M Dv"],
    *,
    causal: bool = False,
    key_mask: Bool[Tensor, "B M"] | None = None,
    attn_drop: float = 0.0,
    generator: Generator | None = None,
) -> Float[Tensor, "B H N Dv"]:
    """softmax(E) v; logits without a batch of their own are weighed once for all sequences.

    Args:
        logits: E, e.g. of :mod:`regard.ops.synthetic_logits`.
        v: values, heads first.
        causal: no later key; the last query stands at the last key.
        key_mask: True for real keys.
        attn_drop, generator: dropout on the weights, and what draws it.

    Returns:
        One row per query, 0 where it may look at nothing.

    Example:
        >>> synthesized_attention(torch.zeros(1, 2, 3, 5), torch.ones(4, 2, 5, 6)).shape
        torch.Size([4, 2, 3, 6])
    """
    (batch, heads, m, _), n = v.shape, logits.shape[-2]
    if len(logits) == 1 and key_mask is None and not attn_drop:
        weights = softmax_where(logits, visible(n, m, causal=causal, device=v.device)).to(v.dtype)
        # one matrix product a head for all sequences: a broadcast one would copy the map for each of them
        return (weights[0] @ v.permute(1, 2, 0, 3).flatten(2)).unflatten(2, (batch, -1)).permute(2, 0, 1, 3)
    silent = v.new_zeros(batch, heads, n, 1), v.new_zeros(batch, heads, m, 1)
    options: dict[str, Any] = {"key_mask": key_mask, "dropout_p": attn_drop, "generator": generator}
    return attend(*silent, v, Causal() if causal else None, attn_mask=logits, **options)


def factorised_attention(
    a: Float[Tensor, "B H N A"], b: Float[Tensor, "B H N E"], v: Float[Tensor, "B H M Dv"], *, causal: bool = False
) -> Float[Tensor, "B H N Dv"]:
    """softmax(E) v with E_ij = a_i[j // E] b_i[j mod E], of which some rows are formed at a time.

    Args:
        a, b: the factors of each row.
        v: values, heads first.
        causal: no later key; the last query stands at the last key.

    Example:
        >>> factorised_attention(torch.randn(1, 2, 5, 3), torch.randn(1, 2, 5, 2), torch.ones(1, 2, 5, 6)).shape
        torch.Size([1, 2, 5, 6])
    """
    allowed = visible(a.shape[-2], v.shape[-2], causal=causal, device=v.device)
    return by_rows(_factorised_rows, (a, b, allowed), (v,), v.shape[:3].numel(), again=True)


def _factorised_rows(a: Tensor, b: Tensor, allowed: Tensor | None, v: Tensor) -> Tensor:
    return softmax_where(outer_logits(a, b, v.shape[-2]), allowed).to(v.dtype) @ v


@register(
    "synthesizer",
    samples=[
        Sample(dim=12, num_heads=3, max_length=24, causal=True, attn_drop=0.1),
        Sample(dim=12, num_heads=3, max_length=24, parts=("random", "dot"), causal=True, qkv_bias=True),
        Sample(dim=12, num_heads=2, max_length=22, parts=("factorised_dense", "factorised_random"), rank=3),
        Sample(dim=12, num_heads=2, head_dim=4, max_length=20, parts="fixed_random"),
    ],
)
class Synthesizer(Layer):
    """Values, weighed by logits of one or several parts; see the head of this file.

    Args:
        dim, num_heads: C and H.
        max_length: the longest sequence L.
        parts: "dense", "random", "fixed_random", "factorised_dense", "factorised_random" or "dot", one or several.
        head_dim: D, also the inner width of "dense"; the default is C / H.
        rank: of "factorised_random", the paper's k.
        causal: no token sees a later one.
        qkv_bias: biases on the values, and on queries and keys where there are some.
        attn_drop, proj_drop: dropout on the weights and on the output.

    Raises:
        ValueError: sizes that do not fit, unknown parts, or more tokens than ``max_length``.
        UnsupportedError: a context, or streaming without ``causal=True``.
    """

    card = Card(
        title="Synthesizer",
        paper="arXiv:2005.00743",
        year=2020,
        family="lowrank",
        data="sequence",
        causal="strict",
        streaming=True,
        smooth=True,
        stochastic=("dropout",),
        cost="N^2",
        summary="Logits from each token alone or from a table: does content matter? Random + dot was the paper's best.",
        formula="softmax(sum_s alpha_s E_s) v, E_s = W_2 relu(W_1 x), R, R_1 R_2^T, ...",
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        max_length: int,
        parts: Part | Sequence[Part] = "dense",
        head_dim: int | None = None,
        rank: int = 8,
        causal: bool = False,
        *,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        names: tuple[Any, ...] = (parts,) if isinstance(parts, str) else tuple(parts)
        if not names or len(set(names)) < len(names) or not set(names) <= set(get_args(Part)):
            raise ValueError(f"parts={parts!r}: pass one or several of {', '.join(get_args(Part))}, each once")
        if min(max_length, rank) < 1:
            raise ValueError(f"max_length={max_length}, rank={rank}: sizes must be positive")
        head_dim = head_width(dim, num_heads, head_dim)
        self.dim, self.num_heads, self.head_dim, self.max_length = dim, num_heads, head_dim, max_length
        self.causal, self.attn_drop = causal, attn_drop
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        inner = num_heads * head_dim
        self.q_proj = self.k_proj = None
        if "dot" in names:
            self.q_proj, self.k_proj = (nn.Linear(dim, inner, bias=qkv_bias, **factory) for _ in range(2))
        self.v_proj = nn.Linear(dim, inner, bias=qkv_bias, **factory)
        self.out_proj = nn.Linear(inner, dim, **factory)
        sizes = num_heads, max_length
        made: dict[str, Any] = {
            "dense": lambda: Dense(dim, *sizes, head_dim, **factory),
            "random": lambda: Random(*sizes, **factory),
            "fixed_random": lambda: Random(*sizes, learned=False, **factory),
            "factorised_dense": lambda: FactorisedDense(dim, *sizes, **factory),
            "factorised_random": lambda: FactorisedRandom(*sizes, rank, **factory),
        }
        self.names = names
        self.parts = nn.ModuleDict({name: made[name]() for name in names if name != "dot"})
        self.mix = nn.Parameter(torch.empty(len(names), **factory)) if len(names) > 1 else None
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform matrices and tables, biases 0, all parts with the same weight."""
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            for parameter in () if linear is None else linear.parameters():
                _ = nn.init.xavier_uniform_(parameter) if parameter.ndim == 2 else nn.init.zeros_(parameter)
        parts: Any = self.parts.values()
        for part in parts:
            part.reset_parameters()
        if self.mix is not None:
            nn.init.zeros_(self.mix)

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
        """Attend within x.

        Args:
            x: (B, N, C).
            context: refused; it stands here as in every layer.
            key_mask, query_mask: Bool (B, N), True for real tokens; each is the default for the other. Positions
                count the tokens that ask or are asked.
            segments: Int (B, N), one id a packed document, which then has positions of its own.
            generator: draws the dropout.
            return_aux: also return what else there is to tell: nothing.

        Returns:
            y (B, N, C), 0 for masked queries; with ``return_aux`` (y, {}).

        Raises:
            ValueError, TypeError: shapes or masks that do not fit, or more tokens than ``max_length``.
            UnsupportedError: a context.
        """
        masks = key_mask, query_mask, segments
        x, key_mask, query_mask = admit_one_sequence("synthesizer", x, self.dim, context, *masks)
        out = self._look(x, None, key_mask, query_mask, segments, generator)
        y = hide(self._join(out), query_mask)
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
        generator: Generator | None = None,
    ) -> Tensor:
        """What the weights make of other values, before the output projection.

        Args:
            x, context, key_mask, query_mask, segments, generator: as in ``forward``.
            values: (B or 1, H or 1, N, Dv), one for each token.

        Returns:
            (B, H, N, Dv), 0 for masked queries.
        """
        masks = key_mask, query_mask, segments
        x, key_mask, query_mask = admit_one_sequence("synthesizer", x, self.dim, context, *masks)
        check_values(values, len(x), self.num_heads, x.shape[1])
        values = values.to(x.dtype).expand(len(x), self.num_heads, -1, -1)
        out = self._look(x, values, key_mask, query_mask, segments, generator)
        return hide_rows(out, query_mask)

    def memory(self, batch: int, *, device: Any = None, dtype: Any = None, static: int | None = None) -> LayerMemory:
        """All values so far, and the keys of "dot"; they grow, or have ``static`` slots that are overwritten."""
        if not self.causal:
            raise UnsupportedError("synthesizer streams only with causal=True: here every query sees all keys")
        if static is not None and static > self.max_length:
            raise ValueError(f"static={static}, but this Synthesizer was built with max_length={self.max_length}")
        weight = self.v_proj.weight
        device, dtype = device or weight.device, dtype or weight.dtype
        width = 0 if self.k_proj is None else self.head_dim
        cache = empty_cache(batch, self.num_heads, width, self.head_dim, static=static, device=device, dtype=dtype)
        return LayerMemory(cache, torch.zeros(batch, device=device, dtype=torch.long))

    def stream(self, x: Tensor, memory: LayerMemory) -> tuple[Tensor, LayerMemory]:
        """Continue with one token or many: -> (y, the new memory)."""
        check_tokens(x, self.dim)
        check_memory(memory, self.memory(len(x), device="meta"), x)
        n, cache = x.shape[1], memory.core
        v = self._heads(self.v_proj(x))
        k = v[..., :0] if self.k_proj is None else self._heads(self.k_proj(x))
        grown = cache.append(k, v)
        columns, allowed = grown.key.shape[2], None
        if isinstance(cache, StaticCache):  # each sequence has rows of its own
            rows = cache.length[:, None] + torch.arange(n, device=x.device)
            allowed = slot_mask(Causal(), cache.length, n, columns, heads=1)
        else:
            self._check_length(columns)
            rows = slice(columns - n, columns)
        k, v = grown.key.to(x.dtype), grown.value.to(x.dtype)
        sides, logits = self._parts(x, k, rows, columns)
        if allowed is not None:
            logits = torch.where(allowed, 0.0 if logits is None else logits, -torch.inf).to(x.dtype)
        out = self._ask(sides, logits, v, causal=allowed is None)
        return self._join(out), LayerMemory(grown, memory.position + n)

    def _look(
        self,
        x: Tensor,
        values: Tensor | None,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        segments: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """What all tokens see (B, H, N, Dv), each in its document."""
        if segments is None:
            return self._within(x, values, key_mask, query_mask, generator)
        documents = Documents.of(segments)
        x, values = documents.unpack(x[:, None])[:, 0], None if values is None else documents.unpack(values)
        masks = documents.mask(key_mask), documents.mask(query_mask)
        return documents.pack(self._within(x, values, *masks, generator))

    def _within(
        self,
        x: Tensor,
        values: Tensor | None,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """What all tokens see (B, H, N, Dv), positions counted among those that ask or are asked."""
        if key_mask is None or query_mask is None:
            return self._attend(x, values, None, generator)
        part = key_mask | query_mask
        given = () if values is None else (values,)
        tokens, keys, *given = real_first(part, x[:, None], key_mask[:, None, :, None].to(x.dtype), *given)
        out = self._attend(tokens[:, 0], given[0] if given else None, keys[:, 0, :, 0] > 0, generator)
        return put_back(part, out)

    def _attend(self, x: Tensor, values: Tensor | None, key_mask: Tensor | None, generator: Generator | None) -> Tensor:
        """(B, H, N, Dv); position 0 is the first token."""
        n = x.shape[1]
        self._check_length(n)
        v = self._heads(self.v_proj(x)) if values is None else values
        k = v if self.k_proj is None else self._heads(self.k_proj(x))
        options: dict[str, Any] = {"attn_drop": self.attn_drop * self.training, "generator": generator}
        if self.names == ("factorised_dense",) and key_mask is None and not options["attn_drop"]:
            part: Any = self.parts["factorised_dense"]
            a, b = part.factors(x)
            return factorised_attention(a, b, v, causal=self.causal)
        sides, logits = self._parts(x, k, slice(n), n)
        return self._ask(sides, logits, v, causal=self.causal, key_mask=key_mask, **options)

    def _parts(self, x: Tensor, k: Tensor, rows: Rows, columns: int) -> tuple[list[Sides], Tensor | None]:
        """With their shares: logits that are products, and the sum of all others (B or 1, H, N, columns)."""
        sides: list[Sides] = []
        logits = None
        shares = [None] if self.mix is None else self.mix.softmax(0)
        for share, name in zip(shares, self.names, strict=True):
            part = self._dot(x, k) if name == "dot" else self.parts[name](x, rows, columns)
            if isinstance(part, Sides):
                sides.append(part if share is None else part._replace(left=part.left * share))
            else:
                part = part if share is None else part * share
                logits = part if logits is None else logits + part
        return sides, logits

    def _dot(self, x: Tensor, k: Tensor) -> Sides:
        if self.q_proj is None:
            raise RuntimeError("this Synthesizer has no dot product among its parts")
        return Sides(self._heads(self.q_proj(x)) * self.head_dim**-0.5, k)

    def _ask(
        self,
        sides: list[Sides],
        logits: Tensor | None,
        v: Tensor,
        *,
        causal: bool,
        key_mask: Tensor | None = None,
        attn_drop: float = 0.0,
        generator: Generator | None = None,
    ) -> Tensor:
        """(B, H, N, Dv): products side by side are one softmax attention, which takes the other logits as its mask."""
        options: dict[str, Any] = {"key_mask": key_mask, "generator": generator}
        if not sides and logits is not None:
            return synthesized_attention(logits, v, causal=causal, attn_drop=attn_drop, **options)
        q, k = (
            torch.cat([side.expand(len(v), *side.shape[-3:]) for side in half], -1) for half in zip(*sides, strict=True)
        )
        pattern = Causal() if causal else None
        return attend(q, k, v, pattern, attn_mask=logits, scale=1.0, dropout_p=attn_drop, **options)

    def _check_length(self, length: int) -> None:
        if length > self.max_length:
            raise ValueError(f"{length} tokens, but this Synthesizer was built with max_length={self.max_length}")

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _join(self, out: Tensor) -> Tensor:
        return self.proj_drop(self.out_proj(out.transpose(1, 2).flatten(2)))

    def extra_repr(self) -> str:
        sizes = f"dim={self.dim}, num_heads={self.num_heads}, max_length={self.max_length}"
        return f"{sizes}, parts={self.names!r}, causal={self.causal}"
