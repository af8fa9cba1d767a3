"""Reformer: each token looks among those that a random hash puts near it.

Kitaev et al. 2020, arXiv:2001.04451, section 2; google/trax, LSHSelfAttention. Queries are the keys: q = W_qk x. In
each of R rounds token i falls into the bucket ``argmax [q_i P; -q_i P]``, P random normal; sorted by (bucket, position)
the tokens are cut into chunks of L, and token i asks those of its own chunk and of the chunk before it, in all rounds::

    out_i = sum_j exp(q_i . k_j) v_j / sum_j exp(q_i . k_j)        k_j = q_j / |q_j|

over the set P_i of what it met there, without later tokens if causal and without itself unless it met nobody else. The
chunks of all rounds form one ring: the first chunk of a round looks back at the last one of the round before. A token
met in several rounds counts each time, as in trax; the paper's formula (eq. 4 and 5) subtracts log N_ij, the number of
meetings, which is ``count_once=True``. Padding leaves the ring and the number of buckets alone.

**Causal is a selection.** No gradient comes from later tokens, but with ``causal=True`` later tokens shift the sorted
chunks and so decide which earlier ones are met: a model that generates token by token sees other tokens than it was
trained on. With ``strict=True`` a token sees, in each round, the last ``chunks_before`` L earlier tokens of its own
bucket, which nothing later can change; the number of buckets must then be given. It also decodes, from all tokens so
far and their buckets.

Time O(R N L D) and, for the hashes, O(R N D n_b / 2), less where n_b is a product of factors; memory O(R N D).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from regard.layers import head_width
from regard.memory import check_memory
from regard.ops.bucket_memory import BucketMemory, continue_buckets
from regard.ops.chunk_attention import chunk_attention
from regard.ops.hashing import lsh_buckets
from regard.ops.masks import admit_one_sequence, check_tokens, check_values
from regard.ops.packing import Documents
from regard.ops.sorted_chunks import MOST_TOKENS, Reach, arrange
from regard.registry import Card, Layer, Sample, UnsupportedError, register

COLUMNS = 64
"""Of each of the two factors where the number of buckets follows the length: 128 buckets, or at most 128 x 128."""


def lsh_attention(
    qk: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N Dv"],
    buckets: Int[Tensor, "B H R N"],
    *,
    chunk_length: int = 64,
    chunks_before: int = 1,
    chunks_after: int = 0,
    causal: bool = False,
    strict: bool = False,
    count_once: bool = False,
    key_mask: Bool[Tensor, "B N"] | None = None,
    query_mask: Bool[Tensor, "B N"] | None = None,
    attn_drop: float = 0.0,
    generator: Generator | None = None,
) -> Float[Tensor, "B H N Dv"]:
    """softmax(q_i . q_j / |q_j|) v_j over what i meets near it in R sorted lists; see the head of this file.

    Args:
        qk: queries, which normalised are also the keys.
        v: values.
        buckets: where each token falls in each round, e.g. :func:`lsh_buckets`.
        chunk_length: L.
        chunks_before, chunks_after: how many chunks around its own a token asks.
        causal: no later token is seen, though later tokens shift the chunks.
        strict: instead, in each round, the last ``chunks_before * chunk_length`` earlier tokens of one's own bucket.
        count_once: a pair that meets in several rounds counts once.
        key_mask: True for real keys.
        query_mask: True for real queries; as the keys by default. Real queries that are no keys are sorted to the end
            of each round, as trax does with padding.
        attn_drop, generator: dropout on the weights, and what draws it.

    Returns:
        One row per query: the token's own value where it met nobody, 0 where it is no key either, or no query.

    Raises:
        ValueError: more tokens than positions can be told apart in float32.

    Example:
        >>> qk = v = torch.randn(1, 2, 10, 4)
        >>> buckets = lsh_buckets(qk, [torch.randn(1, 2, 4, 3, 2)])
        >>> lsh_attention(qk, v, buckets, chunk_length=4, causal=True).shape
        torch.Size([1, 2, 10, 4])
    """
    B, H, N, _ = qk.shape
    if buckets.shape[2] * N > MOST_TOKENS:
        raise ValueError(f"{buckets.shape[2]} rounds of {N} tokens are more than {MOST_TOKENS}, the most that fit")
    reach = Reach(chunk_length, chunks_before, chunks_after)
    asked = query_mask if key_mask is None else key_mask
    asks = asked if query_mask is None else query_mask
    if asked is not None and asks is not None:
        v = v.masked_fill(~asked[:, None, :, None], 0.0)
        qk = qk.masked_fill(~(asked | asks)[:, None, :, None], 0.0)
    rule = "bucket" if strict else "causal" if causal else "all"
    slots = arrange(buckets, reach, rule, asks, asked, count_meetings=count_once)
    keep = None
    if attn_drop:
        shape = (slots.row.shape[0] // chunk_length - reach.width + 1, chunk_length, reach.width * chunk_length)
        keep = torch.empty(shape, dtype=torch.bool, device=qk.device).bernoulli_(1 - attn_drop, generator=generator)
    q, values = (t.transpose(1, 2).reshape(-1, t.shape[-1]) for t in (qk, v))
    out = chunk_attention(q, values, slots, reach, keep=keep, drop=attn_drop).view(B, N, H, -1).transpose(1, 2)
    return out if asks is None else out.masked_fill(~asks[:, None, :, None], 0.0)


@register(
    "reformer",
    samples=[
        Sample(dim=12, num_heads=3, chunk_length=4, num_hashes=2),
        Sample(dim=12, num_heads=3, chunk_length=4, num_hashes=2, causal=True, attn_drop=0.1),
        Sample(
            dim=12,
            num_heads=2,
            head_dim=4,
            value_dim=5,
            chunk_length=3,
            num_hashes=3,
            num_buckets=(2, 4),
            chunks_after=1,
            count_once=True,
        ),
        Sample(
            claims={"causal": "strict", "streaming": True},
            dim=12,
            num_heads=3,
            chunk_length=3,
            num_hashes=2,
            num_buckets=4,
            causal=True,
            strict=True,
        ),
    ],
)
class Reformer(Layer):
    """Projections without biases around :func:`lsh_attention`; see the head of this file.

    Rotations are drawn at every training step, or whenever a ``generator`` is passed; otherwise the saved ones serve.
    More rounds than in training make it more exact: ``layer.rehash(8)``.

    Args:
        dim, num_heads: C and H.
        head_dim, value_dim: widths of queries and values; C / H and ``head_dim`` by default.
        chunk_length: L.
        num_hashes: R, rounds of hashing.
        num_buckets: an even number, several that are multiplied, or None: 2 ceil(n / L) for n real tokens, as a product
            of two factors from 128 on, and at most 128 x 128.
        chunks_before, chunks_after: how many chunks around its own a token asks.
        causal: no later token is seen; which earlier ones are may still depend on later ones ("selection").
        strict: causal for good: only earlier tokens of one's own bucket.
        count_once: the paper's correction for pairs that meet in several rounds; R^2 more work for each pair.
        attn_drop, proj_drop: dropout on the weights and on the output.

    Raises:
        ValueError: sizes that do not fit, or options that contradict each other.
        UnsupportedError: a context: queries and keys are one; streaming unless strict.
    """

    card = Card(
        title="Reformer",
        paper="arXiv:2001.04451",
        year=2020,
        family="chosen",
        data="sequence",
        causal="selection",
        stochastic=("dropout", "resample"),
        refuses={"num_kv_heads": "its queries are its keys"},
        cost="R N L",
        summary="Hashing finds similar tokens in very long sequences; causal only by selection unless strict=True.",
        formula="softmax over tokens near in a list sorted by hash of q_i . q_j / |q_j|",
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int | None = None,
        value_dim: int | None = None,
        chunk_length: int = 64,
        num_hashes: int = 1,
        num_buckets: int | Sequence[int] | None = None,
        *,
        chunks_before: int = 1,
        chunks_after: int = 0,
        causal: bool = False,
        strict: bool = False,
        count_once: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        head_dim = head_width(dim, num_heads, head_dim)
        value_dim = head_dim if value_dim is None else value_dim
        if min(chunk_length, num_hashes, value_dim) < 1 or min(chunks_before, chunks_after) < 0:
            sizes = f"chunk_length={chunk_length}, num_hashes={num_hashes}, value_dim={value_dim}"
            raise ValueError(f"{sizes}, chunks {chunks_before} before and {chunks_after} after: too small")
        if strict and (not causal or num_buckets is None or chunks_before < 1 or chunks_after or count_once):
            raise ValueError(
                "strict=True needs causal=True, chunks_before of 1 or more, num_buckets= (a number that no later token "
                "changes), and neither chunks_after nor count_once"
            )
        self.dim, self.num_heads, self.head_dim, self.value_dim = dim, num_heads, head_dim, value_dim
        self.chunk_length, self.chunks_before, self.chunks_after = chunk_length, chunks_before, chunks_after
        self.causal, self.strict, self.count_once, self.attn_drop = causal, strict, count_once, attn_drop
        self.factors = None if num_buckets is None else _factors(num_buckets)
        if strict:
            self.card = dataclasses.replace(self.card, causal="strict", streaming=True)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.qk_proj = nn.Linear(dim, num_heads * head_dim, bias=False, **factory)
        self.v_proj = nn.Linear(dim, num_heads * value_dim, bias=False, **factory)
        self.out_proj: nn.Module = nn.Linear(num_heads * value_dim, dim, bias=False, **factory)
        self.proj_drop = nn.Dropout(proj_drop)
        columns = 2 * COLUMNS if self.factors is None else sum(self.factors) // 2
        self.rotations: Tensor
        self.register_buffer("rotations", torch.empty(num_heads, head_dim, num_hashes, columns, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices uniform within sqrt(6 / (C + H d)), as in trax; rotations normal."""
        for parameter in self.parameters():
            nn.init.xavier_uniform_(parameter)
        self.rehash(self.num_hashes)

    @property
    def num_hashes(self) -> int:
        """R, the rounds of the saved rotations."""
        return self.rotations.shape[2]

    def rehash(self, num_hashes: int, generator: Generator | None = None) -> None:
        """Draw and save new rotations of so many rounds, e.g. more for evaluation than for training.

        Raises:
            ValueError: no rounds.
        """
        if num_hashes < 1:
            raise ValueError(f"num_hashes={num_hashes}: a Reformer needs a round of hashing")
        shape = (*self.rotations.shape[:2], num_hashes, self.rotations.shape[3])
        self.rotations = self.rotations.new_empty(shape).normal_(generator=generator)

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
        """Attend from x to itself.

        Args:
            x: (B, N, C).
            context: refused.
            key_mask: Bool (B, N), True for real tokens.
            query_mask: Bool (B, N), True for real queries; each mask is the default for the other.
            segments: Int (B, N), one id a packed document, which then sees only itself.
            generator: draws the rotations, then the dropout.
            return_aux: also return what else there is to tell: nothing.

        Returns:
            y (B, N, C), 0 for masked queries; with ``return_aux`` (y, {}).

        Raises:
            ValueError, TypeError: shapes or masks that do not fit.
            UnsupportedError: a context.
        """
        x, key_mask, query_mask = admit_one_sequence("reformer", x, self.dim, context, key_mask, query_mask, segments)
        out = self._attend(x, self._heads(self.v_proj(x)), key_mask, query_mask, segments, generator)
        y = self.proj_drop(self.out_proj(out.transpose(1, 2).flatten(2)))
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
        """What the attention of x makes of other values, before the output projection.

        Args:
            x, context, key_mask, query_mask, segments, generator: as in ``forward``.
            values: (B or 1, H or 1, N, Dv), one for each token.

        Returns:
            (B, H, N, Dv), 0 for masked queries.
        """
        x, key_mask, query_mask = admit_one_sequence("reformer", x, self.dim, context, key_mask, query_mask, segments)
        check_values(values, len(x), self.num_heads, x.shape[1])
        values = values.to(x.dtype).expand(len(x), self.num_heads, -1, -1)
        return self._attend(x, values, key_mask, query_mask, segments, generator)

    def memory(self, batch: int, *, device: Any = None, dtype: Any = None, static: int | None = None) -> BucketMemory:
        """The memory of ``batch`` sequences of which nothing has been seen; it grows, with or without ``static``."""
        if not self.strict:
            raise UnsupportedError("reformer streams only with strict=True: otherwise later tokens decide who meets")
        weight = self.qk_proj.weight
        place = {"device": device or weight.device, "dtype": dtype or weight.dtype}
        return BucketMemory.start(batch, self.num_heads, self.num_hashes, self.head_dim, self.value_dim, **place)

    def stream(self, x: Tensor, memory: BucketMemory) -> tuple[Tensor, BucketMemory]:
        """Continue with one token or many: -> (y, the new memory)."""
        check_tokens(x, self.dim)
        check_memory(memory, self.memory(len(x), device="meta"), x)
        q, v = self._heads(self.qk_proj(x)), self._heads(self.v_proj(x))
        length = torch.rsqrt(
            q.to(torch.promote_types(q.dtype, torch.float32)).square().sum(-1, keepdim=True) + 1e-6 * self.head_dim
        )
        most, buckets = self.chunks_before * self.chunk_length, self._buckets(q, self.rotations[None], None)
        drop = self.attn_drop * self.training
        out, memory = continue_buckets(q, (q * length).to(q.dtype), v, buckets, memory, most, drop)
        return self.proj_drop(self.out_proj(out.transpose(1, 2).flatten(2))), memory

    def _attend(
        self,
        x: Tensor,
        v: Tensor,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        segments: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """(B, H, N, Dv)."""
        qk, documents = self._heads(self.qk_proj(x)), None
        if segments is not None:
            documents = Documents.of(segments)
            qk, v = documents.unpack(qk), documents.unpack(v)
            key_mask, query_mask = documents.mask(key_mask), documents.mask(query_mask)
        rotations = self.rotations
        if self.training or generator is not None:
            rotations = torch.randn_like(rotations, generator=generator)
        buckets = self._buckets(qk, rotations[None], key_mask)
        out = self._meet(qk, v, buckets, key_mask, query_mask, generator)
        return out if documents is None else documents.pack(out)

    def _meet(
        self,
        qk: Tensor,
        v: Tensor,
        buckets: Tensor,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        return lsh_attention(
            qk,
            v,
            buckets,
            chunk_length=self.chunk_length,
            chunks_before=self.chunks_before,
            chunks_after=self.chunks_after,
            causal=self.causal,
            strict=self.strict,
            count_once=self.count_once,
            key_mask=key_mask,
            query_mask=query_mask,
            attn_drop=self.attn_drop * self.training,
            generator=generator,
        )

    def _buckets(self, qk: Tensor, rotations: Tensor, key_mask: Tensor | None) -> Tensor:
        """(B, H, R, N)."""
        if self.factors is not None:
            return lsh_buckets(qk, rotations.split([factor // 2 for factor in self.factors], -1))
        n = torch.full((1,), qk.shape[2], device=qk.device) if key_mask is None else key_mask.sum(-1)
        sizes = _sizes(n.add(self.chunk_length - 1) // self.chunk_length)
        first, second = rotations.split(COLUMNS, -1)
        chunks = -(-qk.shape[2] // self.chunk_length)
        if torch.compiler.is_compiling() or chunks > COLUMNS:
            return lsh_buckets(qk, [first, second], sizes)
        return lsh_buckets(qk, [first[..., :chunks]], None if key_mask is None else sizes[:1])

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def extra_repr(self) -> str:
        sizes = f"dim={self.dim}, num_heads={self.num_heads}, chunk_length={self.chunk_length}"
        return f"{sizes}, num_hashes={self.num_hashes}, causal={self.causal}, strict={self.strict}"


def _factors(num_buckets: int | Sequence[int]) -> tuple[int, ...]:
    factors = (num_buckets,) if isinstance(num_buckets, int) else tuple(num_buckets)
    if not factors or any(factor < 2 or factor % 2 for factor in factors):
        raise ValueError(f"num_buckets={num_buckets}: pass an even number, or several, 2 or more each")
    return factors


def _sizes(half: Int[Tensor, " B"]) -> tuple[Tensor, Tensor]:
    """Halves of the factors of 2 ``half`` buckets: one up to 128, else a power of two near the root and the rest."""
    half = half.clamp(1, 2 * COLUMNS**2)
    power = 8 * 2 ** ((half > 128).int() + (half > 512).int() + (half > 2048).int())
    single = half <= COLUMNS
    return torch.where(single, half, power), torch.where(single, 0, half // (2 * power))
