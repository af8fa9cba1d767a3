"""Sparse Sinkhorn attention: every block of tokens looks at itself and at one that is sorted next to it.

Tay et al. 2020, arXiv:2002.11296, section 3. Tokens are cut into blocks of L, counted from the first real one. For each
head a small network sorts the N_b blocks by a matrix S that is nearly doubly stochastic::

    R_i = W_2 relu(W_1 X_i + b_1) + b_2       X_i the sum of the inputs in block i
    S   = exp(balance((R + eps) / tau))       rows, then columns, ``iterations`` times; eps Gumbel noise, in training
    k~_i = sum_j S_ij k_j,  v~_i alike         blocks as they stand: the order of tokens inside is kept
    y_t = softmax(q_t [k~_i ; k_i]^T / sqrt(D)) [v~_i ; v_i]       for t in block i

How sorted and local block are joined differs between public sources; here they share one softmax. **SortCut**, for
encoders: all queries look at the first ``sortcut`` sorted blocks and at nothing else.

**Causal**: X_i ends with the first token of block i, a block is sorted from earlier ones only, and the balancing of a
row counts the rows up to it (:func:`regard.ops.balancing.balance`), so that S is no longer doubly stochastic. The first
block has nothing to sort and sees itself alone. This is strict: no statistic of the future enters.

Padding is 0 in the sums and in the mixtures; a place of a sorted block takes part if one of its sources holds a token
there. W_2 has an output for each block up to ``max_length``; shorter inputs use the first ones.

Time O(N L D + N_b N D) a head, the second part for the mixtures; SortCut O(N n L D + n N D).
"""

import dataclasses
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from regard.attention import attend, merge
from regard.layers import head_width
from regard.memory import KeyValueCache, StaticCache, check_memory
from regard.ops.balancing import balance
from regard.ops.caches import empty_cache, slot_mask
from regard.ops.masks import admit_one_sequence, check_mask, check_tokens, check_values, hide, hide_rows
from regard.ops.packing import Documents
from regard.ops.positions import put_back, real_first
from regard.patterns import Blocks, Causal
from regard.registry import Card, Layer, Sample, UnsupportedError, register


def sort_blocks(order: Float[Tensor, "B H T S"], x: Float[Tensor, "B H M D"], length: int) -> Float[Tensor, "B H N D"]:
    """T sorted blocks, N = T L tokens: each a mixture of the S whole blocks of L tokens that x begins with.

    Example:
        >>> swap = torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]])
        >>> sort_blocks(swap, torch.arange(4.0).reshape(1, 1, 4, 1), 2).flatten().tolist()
        [2.0, 3.0, 0.0, 1.0]
    """
    sources = order.shape[-1]
    blocks = x[:, :, : sources * length].unflatten(2, (sources, length)).flatten(3)
    return (order.to(x.dtype) @ blocks).unflatten(3, (length, x.shape[-1])).flatten(2, 3)


class SinkhornMemory(NamedTuple):
    """What a causal layer carries along.

    Attributes:
        cache: keys and values of all tokens.
        scores: (B, H, K + 1, K), the row R_i of each block that has begun, K blocks at most; the last row is scrap.
        total: (B, C), the sum of all inputs.
        key, value: (B, H, L, D), the sorted block of the current block; idle where ``cache`` has a fixed size.
        length: (B,), all tokens seen so far.
    """

    cache: KeyValueCache | StaticCache
    scores: Float[Tensor, "B H rows K"]
    total: Float[Tensor, "B C"]
    key: Float[Tensor, "B H L D"]
    value: Float[Tensor, "B H L D"]
    length: Int[Tensor, " B"]


@register(
    "sinkhorn",
    samples=[
        Sample(dim=12, num_heads=3, max_length=24, block_length=4, attn_drop=0.1, claims={"cross": False}),
        Sample(dim=12, num_heads=2, max_length=20, block_length=3, causal=True, claims={"cross": False}),
        Sample(dim=12, num_heads=2, head_dim=4, max_length=24, block_length=4, sortcut=2, qkv_bias=True),
    ],
)
class Sinkhorn(Layer):
    """Block-local attention with a sorted block beside each block; see the head of this file.

    Args:
        dim, num_heads: C and H.
        max_length: the longest sequence, for which the sorting network has outputs.
        block_length: L.
        head_dim: D, the default is C / H.
        sortcut: how many sorted blocks all queries look at, instead of their own and one sorted block.
        causal: no token sees a later one.
        iterations: of the balancing, 5 to 10.
        temperature: tau; smaller is nearer to a permutation.
        qkv_bias: biases on the projections of queries, keys and values.
        attn_drop, proj_drop: dropout on the weights and on the output.

    Raises:
        ValueError: sizes that do not fit, or more tokens than ``max_length``.
        UnsupportedError: ``causal`` with ``sortcut``, a context without it, or streaming without ``causal``.
    """

    card = Card(
        title="Sparse Sinkhorn attention",
        paper="arXiv:2002.11296",
        year=2020,
        family="chosen",
        data="sequence",
        causal="strict",
        cross=True,
        streaming=True,
        smooth=True,
        stochastic=("dropout", "noise"),
        cost="N L + N^2 / L",
        summary="Block-local attention plus one far block, sorted beside each by a small network; causal too.",
        formula="softmax(q [S k ; k]^T / sqrt(D)) [S v ; v] by blocks, S = balanced exp(W_2 relu(W_1 sum x))",
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        max_length: int,
        block_length: int = 64,
        head_dim: int | None = None,
        sortcut: int | None = None,
        causal: bool = False,
        *,
        iterations: int = 5,
        temperature: float = 0.75,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if min(max_length, block_length, iterations, 1 if sortcut is None else sortcut) < 1 or temperature <= 0:
            sizes = f"max_length={max_length}, block_length={block_length}, iterations={iterations}, sortcut={sortcut}"
            raise ValueError(f"{sizes}, temperature={temperature}: all must be positive")
        if causal and sortcut is not None:
            raise UnsupportedError(f"sinkhorn cannot be causal with sortcut={sortcut}: all queries see the same blocks")
        head_dim = head_width(dim, num_heads, head_dim)
        self.dim, self.num_heads, self.head_dim = dim, num_heads, head_dim
        self.max_length, self.block_length, self.sortcut, self.causal = max_length, block_length, sortcut, causal
        self.iterations, self.temperature, self.attn_drop = iterations, temperature, attn_drop
        self.pattern = Causal() & Blocks(block_length) if causal else Blocks(block_length)
        self.card = dataclasses.replace(self.card, cross=sortcut is not None)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        inner = num_heads * head_dim
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, inner, bias=qkv_bias, **factory) for _ in range(3))
        self.out_proj = nn.Linear(inner, dim, **factory)
        self.sort_hidden = nn.Linear(dim, dim, **factory)
        self.sort_scores = nn.Linear(dim, num_heads * self.max_blocks, **factory)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    @property
    def max_blocks(self) -> int:
        """Blocks of the longest sequence."""
        return -(-self.max_length // self.block_length)

    def reset_parameters(self) -> None:
        """Xavier-uniform projections with biases 0; the sorting network as torch draws linear maps."""
        self.sort_hidden.reset_parameters()
        self.sort_scores.reset_parameters()
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            for parameter in linear.parameters():
                _ = nn.init.xavier_uniform_(parameter) if parameter.ndim == 2 else nn.init.zeros_(parameter)

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
        """Attend from x to itself or, with SortCut, to a context.

        Args:
            x: what asks, (B, N, C).
            context: what is asked, (B, M, C), where it is another sequence.
            key_mask: Bool (B, M), True for real tokens of what is asked.
            query_mask: Bool (B, N), True for real tokens of x; in self-attention each mask is the other's default.
            segments: Int (B, N), one id a packed document, which then has blocks of its own.
            generator: draws the noise, in training, and then the dropout.
            return_aux: also return what else there is to tell: nothing.

        Returns:
            y (B, N, C), 0 for masked queries; with ``return_aux`` (y, {}).

        Raises:
            ValueError, TypeError: shapes or masks that do not fit, or more tokens than ``max_length``.
            UnsupportedError: a context without ``sortcut``, or with segments.
        """
        out, query_mask = self._look(x, None, context, key_mask, query_mask, segments, generator)
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
            values: (B or 1, H or 1, M, Dv), one for each token that is asked.

        Returns:
            (B, H, N, Dv), 0 for masked queries.
        """
        check_values(values, len(x), self.num_heads, (x if context is None else context).shape[1])
        values = values.to(x.dtype).expand(len(x), self.num_heads, -1, -1)
        out, query_mask = self._look(x, values, context, key_mask, query_mask, segments, generator)
        return hide_rows(out, query_mask)

    def memory(self, batch: int, *, device: Any = None, dtype: Any = None, static: int | None = None) -> SinkhornMemory:
        """The memory of ``batch`` sequences of which nothing has been seen; with ``static`` it has its final size."""
        if not self.causal:
            raise UnsupportedError("sinkhorn streams only with causal=True: here blocks are sorted from later ones too")
        if static is not None and static > self.max_length:
            raise ValueError(f"static={static}, but this Sinkhorn was built with max_length={self.max_length}")
        weight, heads, length = self.q_proj.weight, self.num_heads, self.block_length
        place: dict[str, Any] = {"device": device or weight.device, "dtype": dtype or weight.dtype}
        size = None if static is None else -(-static // length) * length
        cache = empty_cache(batch, heads, self.head_dim, self.head_dim, static=size, **place)
        wide: dict[str, Any] = place | {"dtype": torch.promote_types(place["dtype"], torch.float32)}
        scores = torch.zeros(batch, heads, self.max_blocks + 1, self.max_blocks, **wide)
        key, value = (torch.zeros(batch, heads, length, self.head_dim, **place) for _ in range(2))
        seen = torch.zeros(batch, device=place["device"], dtype=torch.long)
        return SinkhornMemory(cache, scores, torch.zeros(batch, self.dim, **wide), key, value, seen)

    def stream(self, x: Tensor, memory: SinkhornMemory) -> tuple[Tensor, SinkhornMemory]:
        """Continue with one token or many: -> (y, the new memory)."""
        check_tokens(x, self.dim)
        check_memory(memory, self.memory(len(x), device="meta"), x)
        q, k, v = (self._heads(linear(x)) for linear in (self.q_proj, self.k_proj, self.v_proj))
        cache = memory.cache
        if isinstance(cache, KeyValueCache):
            self._check_length(cache.key.shape[2] + x.shape[1])
        grown = cache.append(k, v)
        sums = memory.total[:, None] + x.to(memory.total.dtype).cumsum(1)
        new = memory._replace(
            cache=grown,
            scores=self._write_rows(memory, sums, x.dtype),
            total=sums[:, -1],
            length=memory.length + x.shape[1],
        )
        if isinstance(grown, StaticCache):
            return self._join(self._step(q, grown, new.scores, memory.length)), new
        out, key, value = self._continue(q, grown, new.scores, memory)
        return self._join(out), new._replace(key=key, value=value)

    def _write_rows(self, memory: SinkhornMemory, sums: Tensor, dtype: torch.dtype) -> Tensor:
        """The scores with a row for each block that begins among the new tokens; ``sums`` end with each of them."""
        n, start = sums.shape[1], memory.length[:, None]
        length, scrap = self.block_length, self.max_blocks
        block = (start + length - 1) // length + torch.arange(n // length + 1, device=sums.device)
        at = block * length - start
        pooled = sums.take_along_dim(at.clamp(max=n - 1)[..., None], 1)
        rows = self._score(pooled.to(dtype))
        where = torch.where(at < n, block, scrap)[:, None, :, None].expand(-1, self.num_heads, -1, scrap)
        return memory.scores.scatter(2, where, rows.to(memory.scores.dtype))

    def _continue(
        self, q: Tensor, cache: KeyValueCache, scores: Tensor, memory: SinkhornMemory
    ) -> tuple[Tensor, Tensor, Tensor]:
        """-> what the new tokens see, and the sorted block of the last of them; a block is sorted when it begins."""
        length, n = self.block_length, q.shape[2]
        start = cache.key.shape[2] - n
        first, inside = divmod(start, length)
        last = (start + n - 1) // length
        k, v = cache.key.to(q.dtype), cache.value.to(q.dtype)
        if inside and last == first:
            sorted_k, sorted_v = memory.key.to(q.dtype), memory.value.to(q.dtype)
        else:
            order = self._order(scores[:, :, : last + 1, : last + 1])[:, :, first:, :last]
            sorted_k, sorted_v = sort_blocks(order, k, length), sort_blocks(order, v, length)
        real = torch.arange(first * length, (last + 1) * length, device=q.device) >= length
        far = attend(
            q,
            sorted_k,
            sorted_v,
            Blocks(length),
            q_offset=inside,
            key_mask=real.expand(len(q), -1),
            return_lse=True,
        )
        near = attend(q, k[:, :, first * length :], v[:, :, first * length :], self.pattern, return_lse=True)
        out, _ = merge(*zip(near, far, strict=True))
        key, value = (t[:, :, -length:].to(memory.key.dtype).clone() for t in (sorted_k, sorted_v))
        return out, key, value

    def _step(self, q: Tensor, cache: StaticCache, scores: Tensor, start: Tensor) -> Tensor:
        """What the new tokens see in a memory of fixed size, where only tensors know how far each sequence is."""
        length, n, slots = self.block_length, q.shape[2], cache.key.shape[2]
        k, v = cache.key.to(q.dtype), cache.value.to(q.dtype)
        order = self._order(scores[:, :, :-1])[..., : slots // length]
        first, touched = start // length, torch.arange(n // length + 2, device=q.device)
        rows = (first[:, None] + touched).clamp(max=self.max_blocks - 1)[:, None, :, None]
        order = order.take_along_dim(rows, 2)
        mine = (
            first[:, None, None],
            (start[:, None, None] % length + torch.arange(n, device=q.device)[:, None]) // length,
        )
        sees = (mine[1] == touched.repeat_interleave(length)) & (mine[0] + mine[1] > 0)
        sorted_kv = sort_blocks(order, k, length), sort_blocks(order, v, length)
        far = attend(q, *sorted_kv, attn_mask=sees[:, None], return_lse=True)
        mask = slot_mask(self.pattern, start, n, slots, heads=1)
        return merge(*zip(attend(q, k, v, attn_mask=mask, return_lse=True), far, strict=True))[0]

    def _look(
        self,
        x: Tensor,
        values: Tensor | None,
        context: Tensor | None,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        segments: Tensor | None,
        generator: Generator | None,
    ) -> tuple[Tensor, Tensor | None]:
        """What all tokens see (B, H, N, Dv), each in its document, and the mask of queries."""
        if context is not None:
            return self._across(x, values, context, key_mask, query_mask, segments, generator), query_mask
        x, key_mask, query_mask = admit_one_sequence("sinkhorn", x, self.dim, None, key_mask, query_mask, segments)
        if segments is None:
            return self._within(x, values, key_mask, query_mask, generator), query_mask
        documents = Documents.of(segments)
        x, values = documents.unpack(x[:, None])[:, 0], None if values is None else documents.unpack(values)
        masks = documents.mask(key_mask), documents.mask(query_mask)
        return documents.pack(self._within(x, values, *masks, generator)), query_mask

    def _within(
        self,
        x: Tensor,
        values: Tensor | None,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """Self-attention (B, H, N, Dv); blocks count from the first token that asks or is asked."""
        if key_mask is None or query_mask is None:
            return self._attend(x, x, values, None, None, generator)
        part = key_mask | query_mask
        given = () if values is None else (values,)
        moved, keys, *given = real_first(part, x[:, None], key_mask[:, None, :, None].to(x.dtype), *given)
        x, values = moved[:, 0], given[0] if given else None
        return put_back(part, self._attend(x, x, values, keys[:, 0, :, 0] > 0, part.sum(-1), generator))

    def _across(
        self,
        x: Tensor,
        values: Tensor | None,
        context: Tensor,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        segments: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """Attention to another sequence (B, H, N, Dv), whose blocks count from its first real token."""
        if self.sortcut is None or segments is not None:
            raise UnsupportedError(
                "sinkhorn takes a context only with sortcut= and without segments: blocks have no mate"
            )
        check_tokens(x, self.dim)
        check_tokens(context, self.dim, "context")
        check_mask(query_mask, *x.shape[:2], name="query_mask")
        check_mask(key_mask, *context.shape[:2], name="key_mask")
        if len(x) != len(context):
            raise ValueError(f"x and context hold {len(x)} and {len(context)} sequences, the numbers must be equal")
        x, count = hide(x, query_mask), None
        if key_mask is not None:
            given = () if values is None else (values,)
            moved, *given = real_first(key_mask, hide(context, key_mask)[:, None], *given)
            context, values, count = moved[:, 0], given[0] if given else None, key_mask.sum(-1)
            key_mask = torch.arange(context.shape[1], device=x.device) < count[:, None]
        return self._attend(x, context, values, key_mask, count, generator)

    def _attend(
        self,
        x: Tensor,
        source: Tensor,
        values: Tensor | None,
        key_mask: Tensor | None,
        count: Int[Tensor, " B"] | None,
        generator: Generator | None,
    ) -> Tensor:
        """From x to the source (B, H, N, Dv), whose first ``count`` tokens are real."""
        length, m = self.block_length, source.shape[1]
        self._check_length(m)
        more = -m % length
        blocks = (m + more) // length
        source, q = hide(source, key_mask), self._heads(self.q_proj(x))
        # padded before the heads are told apart: a padding of 0 rows keeps strides, which a compiled graph cannot know
        padded_k = self._heads(F.pad(hide(self.k_proj(source), key_mask), (0, 0, 0, more)))
        if values is None:
            padded_v = self._heads(F.pad(hide(self.v_proj(source), key_mask), (0, 0, 0, more)))
        else:
            values = values if key_mask is None else values.masked_fill(~key_mask[:, None, :, None], 0.0)
            padded_v = F.pad(values, (0, 0, 0, more))
        k, v = padded_k[:, :, :m], padded_v[:, :, :m]
        order = self._order(self._score(self._pool(source, more))[..., :blocks], count, generator)
        if self.sortcut is not None:  # a fixed number of rows, whatever the length: what there is not is hidden below
            order = order.index_select(2, torch.arange(self.sortcut, device=x.device).clamp(max=blocks - 1))
        sorted_kv = sort_blocks(order, padded_k, length), sort_blocks(order, padded_v, length)
        real = torch.ones(len(x), m, dtype=torch.bool, device=x.device) if key_mask is None else key_mask
        seen = self._places(F.pad(real, (0, more)).unflatten(1, (blocks, length)), count, order.shape[2])
        options: dict[str, Any] = {"dropout_p": self.attn_drop * self.training, "generator": generator}
        if self.sortcut is not None:
            return attend(q, *sorted_kv, key_mask=seen.flatten(1), **options)
        options["return_lse"] = True
        far = attend(q, *sorted_kv, Blocks(length), q_offset=0, key_mask=seen.flatten(1), **options)
        near = attend(q, k, v, self.pattern, key_mask=key_mask, **options)
        return merge(*zip(near, far, strict=True))[0]

    def _places(self, real: Bool[Tensor, "B S L"], count: Tensor | None, rows: int) -> Bool[Tensor, "B T L"]:
        """The places of each of T sorted blocks at which one of its sources holds a token."""
        if self.causal:
            earlier = real.int().cumsum(1) - real.int()
            return earlier > 0
        begins = torch.arange(rows, device=real.device) * self.block_length
        there = begins < (real.shape[1] * self.block_length if count is None else count[:, None])
        return real.any(1, keepdim=True) & there[..., None]

    def _pool(self, x: Float[Tensor, "B M C"], more: int) -> Float[Tensor, "B S C"]:
        """X: sums over blocks or, if causal, over all tokens up to the first one of a block."""
        blocks = F.pad(x, (0, 0, 0, more)).unflatten(1, (-1, self.block_length))
        if not self.causal:
            return blocks.sum(2)
        sums = blocks.sum(2)
        return sums.cumsum(1) - sums + blocks[:, :, 0]

    def _score(self, pooled: Float[Tensor, "B S C"]) -> Float[Tensor, "B H S K"]:
        """R, a row for each block and a column for each of the most blocks there may be."""
        return self._heads(self.sort_scores(self.sort_hidden(pooled).relu()))

    def _order(
        self, scores: Float[Tensor, "B H S K"], count: Tensor | None = None, generator: Generator | None = None
    ) -> Float[Tensor, "B H S K"]:
        """S; rows and columns of blocks without a token are 0, and if causal all but earlier columns."""
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if self.training:
            scores = scores - torch.empty_like(scores).exponential_(generator=generator).log()  # Gumbel
        rows, columns = (torch.arange(size, device=scores.device) for size in scores.shape[-2:])
        allowed = None
        if self.causal:
            allowed = columns < rows[:, None]
        elif count is not None:
            real = rows * self.block_length < count[:, None]
            allowed = real[:, None, :, None] & real[:, None, None]
        return balance(scores / self.temperature, self.iterations, allowed, causal=self.causal)

    def _check_length(self, length: int) -> None:
        if length > self.max_length:
            raise ValueError(f"{length} tokens, but this Sinkhorn was built with max_length={self.max_length}")

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _join(self, out: Tensor) -> Tensor:
        return self.proj_drop(self.out_proj(out.transpose(1, 2).flatten(2)))

    def extra_repr(self) -> str:
        sizes = f"dim={self.dim}, num_heads={self.num_heads}, max_length={self.max_length}"
        return f"{sizes}, block_length={self.block_length}, sortcut={self.sortcut}, causal={self.causal}"
