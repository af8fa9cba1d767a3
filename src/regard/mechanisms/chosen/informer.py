"""Informer's ProbSparse attention: only the sharpest queries attend, the others take the mean of the values.

Zhou et al. 2020, arXiv:2012.07436, section 3.1 and algorithm 1. Each of n queries is given a sharpness M
(:mod:`regard.ops.sharpness`), how far the scores of a few sampled keys are from all alike. With a factor c::

    y_i = softmax(q_i k^T / sqrt(D)) v   for the u = min(n, c ceil(ln n)) queries of largest M
    y_i = mean_j v_j                     for the others, "lazy" ones; over j <= i if causal

The n and u of a sequence count its real tokens. The authors' code, for causal lazy rows, takes the sum over j <= i
instead of the mean, which their derivation asks for: ``lazy="sum"`` is for their checkpoints. Keys are drawn anew at
every training step; in evaluation the draws are evenly spread and always the same.

**Causal is a selection.** No gradient comes from later tokens, but sampled keys and the competition among queries let
later tokens decide which earlier queries attend. With ``strict=True`` query i samples keys up to itself, and attends if
its M is that far above the mean of those so far (their mean + z deviations, where a normal variable would be so large
with probability u / i), while no more than c ceil(ln i)^2 of the first i queries attend. That is ours, not the paper's.

Time O((N + M) c ln N D) a head, strict O(c ln^2 N (N + M) D); memory O(c ln N M) for the causal mask of those that
attend. Below some hundred tokens all queries attend, or nearly so: full attention is faster there.
"""

from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from regard.attention import attend
from regard.memory import KeyValueCache, LinearState, StaticCache
from regard.ops.caches import empty_cache
from regard.ops.masks import positions
from regard.ops.running_mean import running_mean
from regard.ops.sharpest import Attending, Sharp, sharp_so_far, sharpest
from regard.ops.sharpness import even_draws, most, sharpness
from regard.registry import Card, Core, Sample, UnsupportedError, register

Lazy = Literal["mean", "sum"]


class InformerMemory(NamedTuple):
    """What is carried along: keys and values, sums of values, and the sharpness so far.

    Attributes:
        cache: all keys and values.
        values: their running sum and number, as those of linear attention with one feature, 1.
        sharp: of the queries so far.
        length: (B,), how many they are.
    """

    cache: KeyValueCache | StaticCache
    values: LinearState
    sharp: Sharp
    length: Int[Tensor, " B"]


def prob_sparse_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H M D"],
    v: Float[Tensor, "B H M Dv"],
    draws: Float[Tensor, "#B N U"],
    *,
    factor: int = 5,
    causal: bool = False,
    strict: bool = False,
    lazy: Lazy = "mean",
    scale: float | None = None,
    key_mask: Bool[Tensor, "B M"] | None = None,
    query_mask: Bool[Tensor, "B N"] | None = None,
) -> Float[Tensor, "B H N Dv"]:
    """softmax(scale q k^T) v for the sharpest queries, the mean of v for the others; see the head of this file.

    Args:
        q, k, v: queries, keys and values, heads first.
        draws: in [0, 1), min(M, c ceil(ln M)) for each query: which keys it samples, in all heads.
        factor: c.
        causal: no query sees a later key; N = M.
        strict: nor do later tokens decide which queries attend.
        lazy: "mean", or "sum" of the values up to a causal query that does not attend.
        scale: 1 / sqrt(D) by default; sharpness knows none.
        key_mask: True for real keys; the others are neither sampled nor in any mean.
        query_mask: True for real queries; the others do not compete.

    Returns:
        One row per query, 0 where it sees no key.

    Raises:
        ValueError: causal with N != M, or too few draws.

    Example:
        >>> q, k, v = (torch.randn(1, 2, n, 4) for n in (50, 40, 40))
        >>> prob_sparse_attention(q, k, v, torch.rand(1, 50, 8), factor=2).shape
        torch.Size([1, 2, 50, 4])
    """
    batch, heads, n, _ = q.shape
    m = k.shape[2]
    if draws.shape[-1] < min(m, factor * most(m)):
        raise ValueError(
            f"{draws.shape[-1]} draws, but with factor={factor} {min(m, factor * most(m))} of {m} keys count"
        )
    if causal and n != m:
        raise ValueError(f"{n} queries, {m} keys: causal informer attention needs a key for each query")
    last = torch.arange(n, device=q.device).expand(batch, n)
    seen, order = _seen(last if strict else torch.full_like(last, m - 1), key_mask)
    peaks = sharpness(q, k, draws, seen, factor, order)
    if strict:
        place = positions(peaks[:, 0], query_mask).expand(batch, n)
        attending, _ = sharp_so_far(peaks, place, query_mask, factor, Sharp.start(batch, heads, q.device), n)
    else:
        attending = sharpest(peaks, query_mask, factor)
    values = v if key_mask is None else v.masked_fill(~key_mask[:, None, :, None], 0.0)
    if causal:
        start = LinearState.start(batch, heads, 1, v.shape[-1], device=v.device, dtype=v.dtype)
        others, _ = running_mean(values, start, key_mask, divide=lazy == "mean")
    else:
        number = m if key_mask is None else key_mask.sum(-1).clamp(min=1)[:, None, None, None]
        others = (values.sum(2, keepdim=True) / number).expand(-1, -1, n, -1)
    return put(others.to(v.dtype), attending, q, k, v, last if causal else None, key_mask, scale)


def put(
    others: Float[Tensor, "B H N Dv"],
    attending: Attending,
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H M D"],
    v: Float[Tensor, "B H M Dv"],
    last: Int[Tensor, "B N"] | None,
    key_mask: Bool[Tensor, "B M"] | None,
    scale: float | None,
) -> Float[Tensor, "B H N Dv"]:
    """The rows of the others, with what those that attend see in their places; ``last`` is the last key of a query."""
    row, width = attending.row[..., None], v.shape[-1]
    asking, mask = q.gather(2, row.expand(-1, -1, -1, q.shape[-1])), None
    if last is not None:
        limit = last[:, None].expand(-1, q.shape[1], -1).gather(2, attending.row)
        mask = torch.arange(k.shape[2], device=q.device) <= limit[..., None]
    found = attend(asking, k, v, attn_mask=mask, key_mask=key_mask, scale=scale).to(others.dtype)
    place = row.expand(-1, -1, -1, width)
    return others.scatter(2, place, torch.where(attending.real[..., None], found, others.gather(2, place)))


def _seen(last: Tensor, key_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """How many real keys stand at ``last`` or before, and the order of all keys that has the real ones first."""
    if key_mask is None:
        return last + 1, None
    return key_mask.long().cumsum(-1).gather(1, last), key_mask.logical_not().to(torch.uint8).argsort(
        dim=-1, stable=True
    )


@register(
    "informer",
    samples=[
        Sample(dim=12, num_heads=3, factor=2),
        Sample(dim=12, num_heads=3, factor=1, causal=True, claims={"cross": False}),
        Sample(
            dim=12,
            num_heads=3,
            factor=2,
            causal=True,
            strict=True,
            claims={"cross": False, "causal": "strict", "onnx": False},
        ),
        Sample(dim=12, num_heads=2, factor=2, causal=True, lazy="sum", scale=0.3, claims={"cross": False}),
    ],
)
class ProbSparse(Core):
    """The module around :func:`prob_sparse_attention`; it has no parameters.

    Args:
        factor: c; how many queries attend, and how many keys each samples.
        causal: no query sees a later key, though later tokens help to decide which queries attend ("selection").
        strict: nor do they; needs ``causal``, and makes streaming possible.
        lazy: what causal queries get that do not attend: the "mean" of the values so far, or their "sum".
        scale: of the scores; 1 / sqrt(D) by default.

    Raises:
        ValueError: sizes or options that make no sense.
        UnsupportedError: streaming unless ``strict``.
    """

    card = Card(
        title="Informer (ProbSparse)",
        paper="arXiv:2012.07436",
        year=2020,
        family="chosen",
        data="sequence",
        causal="selection",
        cross=True,
        streaming=True,
        stochastic=("resample",),
        refuses={"attn_drop": "its authors drop none, and the rows that do not attend have no weights to drop"},
        cost="N c log N",
        summary="A few sharp queries attend, the others take the mean of the values: for long-horizon forecasting.",
        formula="softmax(q k^T / sqrt(D)) v for the c ln N sharpest q by max - mean of sampled scores; else mean(v)",
    )

    lazy: Lazy

    def __init__(
        self,
        factor: int = 5,
        causal: bool = False,
        strict: bool = False,
        lazy: Lazy = "mean",
        *,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        if factor < 1:
            raise ValueError(f"factor={factor}: it must be 1 or more")
        if lazy not in ("mean", "sum"):
            raise ValueError(f'lazy={lazy!r} is neither "mean" nor "sum"')
        if not causal and (strict or lazy == "sum"):
            raise ValueError(f"strict={strict} and lazy={lazy!r} are about causal attention: pass causal=True")
        self.factor, self.causal, self.strict, self.lazy, self.scale = factor, causal, strict, lazy, scale
        if causal:  # queries and keys stand in one order
            kind = "strict" if strict else "selection"
            # ONNX has no quantile function, which the strict form decides by
            self.card = replace(self.card, cross=False, causal=kind, onnx=not strict)

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
        """Attend; shapes as in :func:`prob_sparse_attention`. A generator, or training, draws the sampled keys."""
        return prob_sparse_attention(
            q,
            k,
            v,
            self.draws(q, k, query_mask, generator),
            factor=self.factor,
            causal=self.causal,
            strict=self.strict,
            lazy=self.lazy,
            scale=self.scale,
            key_mask=key_mask,
            query_mask=query_mask,
        )

    def draws(
        self, q: Tensor, k: Tensor, query_mask: Tensor | None = None, generator: Generator | None = None
    ) -> Float[Tensor, "#B N U"]:
        """Which keys each query samples: random in training and where a generator is given, else evenly spread."""
        columns = min(k.shape[2], self.factor * most(k.shape[2]))
        if self.training or generator is not None:
            shape = (1, q.shape[2], columns)
            return torch.rand(shape, generator=generator, device=q.device, dtype=torch.float64)
        return even_draws(positions(q[:, 0], query_mask), columns)

    def memory(
        self,
        batch: int,
        num_kv_heads: int,
        head_dim: int,
        value_dim: int,
        *,
        device: Any = None,
        dtype: Any = None,
        static: int | None = None,
    ) -> InformerMemory:
        """Nothing seen so far: a cache that grows, or of ``static`` slots, and running sums."""
        if not self.strict:
            raise UnsupportedError("informer streams only with strict=True: else later tokens decide who attends")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        return InformerMemory(
            empty_cache(batch, num_kv_heads, head_dim, value_dim, static=static, **factory),
            LinearState.start(batch, num_kv_heads, 1, value_dim, **factory),
            Sharp.start(batch, num_kv_heads, device),
            torch.zeros(batch, device=device, dtype=torch.long),
        )

    def stream(self, q: Tensor, k: Tensor, v: Tensor, memory: InformerMemory) -> tuple[Tensor, InformerMemory]:
        """Continue with one token or many: -> (out, the new memory). Keys are sampled as in evaluation."""
        n = q.shape[2]
        cache = memory.cache.append(k, v)
        keys, values = cache.key.to(q.dtype), cache.value.to(q.dtype)
        place = memory.length[:, None] + torch.arange(n, device=q.device)
        longest = keys.shape[2]
        draws = even_draws(place, min(longest, self.factor * most(longest)))
        peaks = sharpness(q, keys, draws, place + 1, self.factor)
        attending, sharp = sharp_so_far(peaks, place, None, self.factor, memory.sharp, longest)
        others, sums = running_mean(v, memory.values, divide=self.lazy == "mean")
        out = put(others.to(v.dtype), attending, q, keys, values, place, None, self.scale)
        return out, InformerMemory(cache, sums, sharp, memory.length + n)

    def extra_repr(self) -> str:
        return f"factor={self.factor}, causal={self.causal}, strict={self.strict}, lazy={self.lazy!r}"
