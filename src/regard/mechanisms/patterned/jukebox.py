"""Jukebox's factored attention: exact softmax over one line of a long sequence that is laid out in rows.

Dhariwal et al. 2020, arXiv:2005.00341, section 4 and appendix A. The sequence is cut into rows of l positions. Query i
in row r and column c sees, of the keys j <= i,

===================== =========================================================================================
kind                  keys
===================== =========================================================================================
"dense"        (0)    all
"row"          (1)    those in row r
"column"       (2)    those in column c
"previous_row" (3)    all l of row r - 1; row 0 sees nothing and gives 0
"summary"      (4)    the last of each row but the final one, and a key and a value of zeros
"spread"       (5)    the last s of each row but the final one, and s keys and values of zeros
"encoder_decoder" (6) all of another sequence, the lyrics
"prime"        (7)    those among the first P positions, where the lyrics stand in the same sequence
===================== =========================================================================================

Numbers are the authors' ``attn_func``. Rows count from the first real token. Layers of several kinds take turns, so
that any key is reached in a few of them. A key of zeros has logit 0 and value 0: it takes weight from the others, late
in a sequence too. A check in the authors' code expects queries not to see summaries of their own row; their mask shows
them those up to the query itself, and so do we. A hidden key has weight 0, not that of a logit of -1e9.

Cost a head, in pairs: row and previous row N l, column and summary N^2 / l, spread s N^2 / l, prime N P.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from regard.attention import attend
from regard.memory import KeyValueCache, StaticCache
from regard.ops.caches import empty_cache, slot_mask
from regard.ops.positions import from_first_real
from regard.patterns import Blocks, Causal, Full, Global, Pattern, Strided, Summary
from regard.registry import Card, Core, Sample, UnsupportedError, register

Kind = Literal["dense", "row", "column", "previous_row", "summary", "spread", "encoder_decoder", "prime"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order of the authors' numbers."""

_ROWS = 64
"""l where nothing is said: the authors' 8192 codes in 128 rows."""

_OF_KINDS: dict[str, tuple[Kind, ...]] = {
    "row_length": ("row", "column", "previous_row", "summary", "spread"),
    "spread": ("spread",),
    "prime_length": ("prime",),
}
"""Which kinds an option belongs to."""


def factored_pattern(
    kind: Kind,
    row_length: int = _ROWS,
    *,
    spread: int = 1,
    prime_length: int = 0,
    max_length: int | None = None,
    causal: bool = True,
) -> Pattern:
    """The pairs of one kind, in positions of the whole sequence.

    Args:
        kind: see the head of this file.
        row_length: l.
        spread, prime_length: s and P.
        max_length: the longest sequence, whose final row gives no summary; None: no row is final.
        causal: only keys at or before the query.

    Example:
        >>> factored_pattern("previous_row", 3).dense(7)[6].int().tolist()
        [0, 0, 0, 1, 1, 1, 0]
    """
    final = None if max_length is None else (max_length - 1) // row_length * row_length
    pattern: Pattern = {
        "dense": lambda: Full(),
        "row": lambda: Blocks(row_length),
        "column": lambda: Strided(row_length),
        "previous_row": lambda: Blocks(row_length, 1) & ~Blocks(row_length),
        "summary": lambda: _summary(row_length, 1, final, causal),
        "spread": lambda: _summary(row_length, spread, final, causal),
        "encoder_decoder": lambda: Full(),
        "prime": lambda: _first(prime_length, causal),
    }[kind]()
    return Causal() & pattern if causal and kind not in ("previous_row", "encoder_decoder") else pattern


def _summary(row_length: int, columns: int, final: int | None, causal: bool) -> Pattern:
    pattern = Summary(row_length, columns)
    return pattern if final is None else pattern & _first(final, causal)


def _first(count: int, causal: bool) -> Pattern:
    """Keys among the first ``count`` positions."""
    if causal:  # a key before a query that is one of them is one of them itself
        return Global(count)
    whole = 2**62  # one block that no sequence fills
    return ~Summary(whole, whole - count)


class LastRows(NamedTuple):
    """Keys and values of the rows that later tokens may see, from the start of a row on; the others have been let go.

    Attributes:
        key: (B, G, M, D).
        value: (B, G, M, Dv).
    """

    key: Tensor
    value: Tensor


Memory = LastRows | KeyValueCache | StaticCache
_ACROSS: dict[str, Any] = {
    "cross": True,
    "causal": None,
    "streaming": False,
}  # what the card of kind 6 says differently


@register(
    "jukebox",
    samples=[
        Sample(dim=12, num_heads=3, kind="row", row_length=4, causal=True, attn_drop=0.1),
        Sample(dim=16, num_heads=4, num_kv_heads=2, kind="column", row_length=3, causal=True),
        Sample(dim=12, num_heads=2, kind="previous_row", row_length=3),
        Sample(dim=12, num_heads=2, kind="summary", row_length=3, causal=True, max_length=18),
        Sample(dim=12, num_heads=2, kind="spread", row_length=4, spread=2, causal=True),
        Sample(dim=12, num_heads=2, kind="prime", prime_length=5, causal=True),
        Sample(dim=12, num_heads=2, kind="row", row_length=5),
        Sample(dim=12, num_heads=2, kind="encoder_decoder", claims=_ACROSS),
    ],
)
class FactoredAttention(Core):
    """One kind of factored attention; see the head of this file.

    Args:
        kind: its name, or the authors' number.
        row_length: l, 64 by default; the authors' n_ctx / blocks.
        spread: s, of "spread".
        prime_length: P, of "prime". The authors' code rounds the number of lyric tokens up by one block too many:
            (tokens // blocks + 1) * blocks, 448 for 384 in 64 blocks, and their weights need that.
        max_length: the longest sequence; its final row gives no summary. The other kinds need none.
        causal: only keys at or before the query; "previous_row" always is so.
        attn_drop: dropout on the weights, in training.

    Raises:
        ValueError: an unknown kind, an option of another kind, one that is missing, or more tokens than ``max_length``.
        UnsupportedError: ``causal`` between two sequences; streaming where queries see later keys.
    """

    card = Card(
        title="Jukebox factored attention",
        paper="arXiv:2005.00341",
        year=2020,
        family="patterned",
        data="sequence",
        causal="strict",
        gqa=True,
        streaming=True,
        smooth=True,
        stochastic=("dropout",),
        cost="N sqrt(N)",
        summary="Row, column and previous row take turns: N^1.5 for sequences of thousands of codes; made for music.",
        formula="softmax over one line of the N / l x l layout of q k^T / sqrt(D)",
    )

    def __init__(
        self,
        kind: Kind | int = "row",
        row_length: int | None = None,
        *,
        spread: int | None = None,
        prime_length: int | None = None,
        max_length: int | None = None,
        causal: bool = False,
        attn_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.kind: Kind = kind_of(kind)
        for option, value in (("row_length", row_length), ("spread", spread), ("prime_length", prime_length)):
            owners, fits = _OF_KINDS[option], value is None or value >= 1
            if not fits or (value is not None and self.kind not in owners):
                raise ValueError(f"{option}={value}: a positive number, for {' and '.join(owners)}, not {self.kind}")
        if (self.kind == "spread" and spread is None) or (self.kind == "prime" and prime_length is None):
            raise ValueError(f"kind={self.kind!r} needs {'spread' if self.kind == 'spread' else 'prime_length'}=")
        if causal and self.kind == "encoder_decoder":
            raise UnsupportedError("jukebox cannot be causal with kind='encoder_decoder': every lyric is seen")
        if self.kind == "encoder_decoder":
            self.card = replace(self.card, **_ACROSS)
        self.row_length = row_length or _ROWS
        if (spread or 1) > self.row_length:
            raise ValueError(f"a row of row_length={self.row_length} has no spread={spread} last positions")
        self.causal = causal or self.kind == "previous_row"
        self.zero_keys = {"summary": 1, "spread": spread or 1}.get(self.kind, 0)
        self.prime_length, self.attn_drop = prime_length, attn_drop
        self.max_length = max_length if self.zero_keys else None
        options: dict[str, Any] = {"spread": spread or 1, "prime_length": prime_length or 0, "causal": self.causal}
        self.pattern = factored_pattern(self.kind, self.row_length, max_length=self.max_length, **options)

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
        """Attend from q (B, H, N, D) to k (B, G, M, D) and v (B, G, M, Dv), G a divisor of H.

        Args:
            key_mask: Bool (B, M), True for real keys.
            query_mask: Bool (B, N), True for real queries; positions count only tokens that ask or are asked.
            generator: draws the dropout.

        Returns:
            (B, H, N, Dv).
        """
        self._check_length(q.shape[-2])
        if self.kind == "encoder_decoder":
            return self._attend(q, k, v, key_mask, generator=generator)
        attention = partial(self._attend, pattern=self.pattern, generator=generator)
        return attention(q, k, v) if key_mask is None else from_first_real(attention, q, k, v, key_mask, query_mask)

    def memory(self, *sizes: int, static: int | None = None, **factory: Any) -> Memory:
        """Keys and values that later tokens may see: at most l for "row", 2 l for "previous_row", P for "prime".

        Args:
            sizes: batch, key heads, widths of keys and of values.
            static: the longest sequence; then all keys have their final room, which ``stream`` overwrites.
            factory: device and dtype.
        """
        if not self.causal:
            raise UnsupportedError("jukebox streams only with causal=True: here queries see later keys")
        cache = empty_cache(*sizes, static=static, **factory)
        return LastRows(*cache) if self._drops_rows and isinstance(cache, KeyValueCache) else cache

    def stream(self, q: Tensor, k: Tensor, v: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Continue with one token or many: -> (out, the new memory)."""
        n = q.shape[-2]
        if isinstance(memory, StaticCache):
            seen = slot_mask(self.pattern, memory.length, n, memory.key.shape[-2], q.shape[-3])
            full = memory.append(k, v)
            return self._attend(q, full.key.to(q.dtype), full.value.to(q.dtype), attn_mask=seen), full
        cache = KeyValueCache(memory.key, memory.value).append(k, v)
        m = cache.key.shape[-2]
        if self.max_length is not None:
            self._check_length(m)
        keys, values = cache.key.to(q.dtype), cache.value.to(q.dtype)
        line = self._line(m) if n == 1 else None
        if line is None:
            out = self._attend(q, keys, values, pattern=self.pattern)
        else:
            out = self._look(q, keys[..., line, :], values[..., line, :])
        return out, self._kept(cache, m)

    def _look(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One token sees all of these keys: torch's own attention will do, without a plan for every length."""
        if not k.shape[-2] + self.zero_keys:
            return torch.zeros_like(q)
        if self.zero_keys:
            k, v = (F.pad(t, (0, 0, self.zero_keys, 0)) for t in (k, v))
        drop, shared = self.attn_drop * self.training, q.shape[-3] != k.shape[-3]
        return F.scaled_dot_product_attention(q, k, v, dropout_p=drop, enable_gqa=shared)

    def _line(self, m: int) -> slice | None:
        """The places among m cached keys that the last token sees; None where they are no regular piece."""
        length, last = self.row_length, m - 1
        if self.kind == "column":
            return slice(last % length, m, length)
        if self.kind == "previous_row":  # the cache starts with it
            return slice(0, length if m > length else 0)
        if self.kind == "summary":
            return slice(length - 1, m if self.max_length is None else self.max_length - 1, length)
        if self.kind == "prime":
            return slice(0, self.prime_length)
        return None if self.kind == "spread" else slice(0, m)

    def _kept(self, cache: KeyValueCache, m: int) -> LastRows | KeyValueCache:
        """Without what no later token sees; without whole rows at its start every token stays in its column."""
        if self.kind == "prime":
            return cache.truncate(self.prime_length or 0)
        if not self._drops_rows:
            return cache
        rows = m // self.row_length - (self.kind == "previous_row")
        passed = max(0, rows) * self.row_length
        return LastRows(*(t[..., passed:, :].clone() if passed else t for t in cache))

    @property
    def _drops_rows(self) -> bool:
        return self.kind in ("row", "previous_row")

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_mask: Tensor | None = None,
        *,
        pattern: Pattern | None = None,
        attn_mask: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        drop = self.attn_drop * self.training
        masks: dict[str, Any] = {"key_mask": key_mask, "attn_mask": attn_mask, "generator": generator}
        if not self.zero_keys:
            return attend(q, k, v, pattern, dropout_p=drop, enable_gqa=True, **masks)
        out, lse = attend(q, k, v, pattern, dropout_p=drop, enable_gqa=True, return_lse=True, **masks)
        share = torch.sigmoid(lse - math.log(self.zero_keys))  # what keys with logit 0 leave to the others
        return out * share[..., None].to(out.dtype)

    def _check_length(self, length: int) -> None:
        if self.max_length is not None and length > self.max_length:
            raise ValueError(f"{length} tokens, but this attention was built with max_length={self.max_length}")

    def extra_repr(self) -> str:
        return f"{self.kind}, {self.pattern!r}, causal={self.causal}, attn_drop={self.attn_drop}"


def kind_of(kind: Kind | int) -> Kind:
    """The name of a kind.

    Raises:
        ValueError: neither a name nor one of the authors' numbers.

    Example:
        >>> kind_of(3)
        'previous_row'
    """
    name = KINDS[kind] if isinstance(kind, int) and 0 <= kind < len(KINDS) else kind
    if name not in KINDS:
        raise ValueError(f"kind={kind!r} is none of {', '.join(map(repr, KINDS))} and their numbers from 0")
    return name
