"""Softmax over chunks of sorted lists, a few chunks at a time, with a backward pass that forms the scores again.

The work is one opaque operator, ``regard::chunk_attention``, and one for its backward pass: a compiled or exported
graph holds a single node whatever the lengths are. No more than some chunks of scores ever exist.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from regard.ops.sorted_chunks import BARRED, Reach, Slots

FLOOR = -80.0
"""Weights below exp(-80) of the largest are 0; exp is slow where float32 underflows."""
SCORES_AT_ONCE = {"cpu": 2**18}
"""About a megabyte of scores at a time stays in the cache; elsewhere a launch costs more than a pass over memory."""


def chunk_attention(
    q: Float[Tensor, "BNH D"],
    v: Float[Tensor, "BNH Dv"],
    slots: Slots,
    reach: Reach,
    *,
    keep: Bool[Tensor, "C L W"] | None = None,
    drop: float = 0.0,
) -> Float[Tensor, "BNH Dv"]:
    """softmax(q_i . k_j) v over all that a token sees in all lists, k_j = q_j / |q_j|; its own v if that is nobody.

    A pair that meets in several lists counts each time, or once if meetings are counted. Accumulates in float32 at
    least. Its gradient cannot be differentiated again.

    Args:
        q, v: queries, which are also the keys, and values, by row.
        slots, reach: from :func:`regard.ops.sorted_chunks.arrange`.
        keep: for the C chunks between the two ends, which of the L x W weights dropout leaves.
        drop: the share that it does not leave.
    """
    return _operator(q, v, keep, list(slots), list(reach), drop)[0]


@dataclass
class Run:
    """Some neighbouring chunks at work: g chunks of L queries, and the W keys in sight of each."""

    q: Tensor  # all rows, as are the values
    v: Tensor
    keep: Tensor | None
    drop: float
    reach: Reach
    slots: Slots
    first: int
    last: int

    def __post_init__(self) -> None:
        L, before, after = self.reach.chunk, self.reach.before, self.reach.after
        self.outer = slice((self.first - before) * L, (self.last + after) * L)
        self.inner = slice(self.first * L, self.last * L)
        self.own = slice(before * L, before * L + (self.last - self.first) * L)  # the inner slots among the outer ones
        self.rows = self.slots.row[self.outer]
        self.x = gather(self.q, self.rows)
        norm = torch.linalg.vector_norm(self.x, dim=-1, keepdim=True)
        self.length = (norm.square() + 1e-6 * self.x.shape[-1]).rsqrt()
        self.k = self.x * self.length
        self.values = gather(self.v, self.rows)

    def chunks(self, t: Tensor) -> Tensor:
        """(g L, ...) -> (g, L, ...)."""
        return t.unflatten(0, (-1, self.reach.chunk))

    def windows(self, t: Tensor) -> Tensor:
        """What each chunk has in sight, as a view of the outer slots: -> (g, W, ...)."""
        seen = t.unfold(0, self.reach.width * self.reach.chunk, self.reach.chunk)
        return seen if t.ndim == 1 else seen.mT

    def scores(self) -> Tensor:
        """q . k where the rule allows it, less than half of ``BARRED`` where not: (g, L, W)."""
        slots, dtype = self.slots, self.x.dtype
        asks = self.chunks(slots.asks[self.inner]).to(dtype)[..., None]
        asked = self.windows(slots.asked[self.outer]).to(dtype)[:, None]
        bar = asks - asked
        if slots.hidden is not None:
            bar = bar.abs_().add_(BARRED).clamp_(max=0.0)
            bar.add_(self.windows(slots.hidden[self.outer]).to(dtype)[:, None])
        else:
            bar.clamp_(max=0.0)
        if slots.lowest is not None:
            bar.add_((asked - self.chunks(slots.lowest[self.inner]).to(dtype)[..., None]).clamp_(max=0.0))
        if slots.chunks is not None:
            bar.sub_(self.meetings().to(dtype).log_())
        return bar.baddbmm_(self.chunks(self.x[self.own]), self.windows(self.k).mT)

    def meetings(self) -> Tensor:
        """How often, over all lists, the query has the key in sight; at least 1: (g, L, W)."""
        ids, periods = self.slots.chunks, self.slots.period
        if ids is None or periods is None:
            raise ValueError("meetings were not counted when the slots were arranged")
        chunk = ids[self.rows]
        there, here = self.windows(chunk)[:, None, :, :, None], self.chunks(chunk[self.own])[:, :, None, None]
        period = self.chunks(periods[self.inner])[:, :, None, None, None]
        sight = self.reach.width - 1
        return ((sight - (there - here + self.reach.before) % period + period) // period).sum((-1, -2)).clamp(min=1)

    def weights(self, scores: Tensor, top: Tensor) -> Tensor:
        """exp(scores - top), in place."""
        return torch.threshold_(scores.sub_(top).clamp_(min=FLOOR).exp_(), math.exp(FLOOR) * 1.001, 0.0)

    def dropped(self, weights: Tensor) -> Tensor:
        """The weights, in place, after dropout."""
        if self.keep is None:
            return weights
        ends = self.reach.before
        return weights.mul_(self.keep[self.first - ends : self.last - ends]).mul_(1 / (1 - self.drop))

    def attend(self) -> tuple[Tensor, Tensor]:
        """Out (g L, Dv) and its logsumexp (g L), that of a query alone with itself below half of ``BARRED``."""
        scores = self.scores()
        top = scores.amax(-1, keepdim=True).clamp_(min=BARRED / 2)
        weights = self.weights(scores, top)
        total = weights.sum(-1, keepdim=True)
        alone = total == 0
        total.masked_fill_(alone, 1.0)
        out = torch.bmm(self.dropped(weights), self.windows(self.values)).div_(total)
        itself = self.chunks(self.slots.sees_itself[self.inner])[..., None] & alone
        out.addcmul_(self.chunks(self.values[self.own]), itself.to(out.dtype))
        lse = torch.where(alone, 2 * BARRED, top + total.log_())
        return out.flatten(0, 1), lse.flatten()

    def slope(self, grad_out: Tensor, out_slope: Tensor, lse: Tensor, dq: Tensor, dv: Tensor) -> None:
        """Add to the gradients of all rows what comes back through these chunks.

        Args:
            grad_out: of all rows.
            out_slope: grad_out . out, of all rows.
            lse: of all rows, over all lists.
            dq, dv: the gradients of all rows so far.
        """
        L, width = self.reach.chunk, self.reach.width
        rows, live = self.rows[self.own], self.slots.live[self.inner]
        lse = lse[rows]
        alone = lse < BARRED
        weights = self.weights(self.scores(), self.chunks(torch.where(live & ~alone, lse, -BARRED))[..., None])
        do = gather(grad_out, rows)
        slope = torch.bmm(self.chunks(do), self.windows(self.values).mT)
        if self.keep is not None:
            slope = self.dropped(slope)
        slope.sub_(self.chunks(out_slope[rows])[..., None]).mul_(weights)
        weights = self.dropped(weights)
        dk, dvalues, own_x, own_do = torch.zeros_like(self.x), torch.zeros_like(self.values), self.x[self.own], do
        for place in range(width):  # each chunk in sight, so that the sums of overlapping windows go where they belong
            seen = slice(place * L, place * L + len(own_do))
            part = slice(place * L, (place + 1) * L)
            self.chunks(dk[seen]).baddbmm_(slope[..., part].mT, self.chunks(own_x))
            self.chunks(dvalues[seen]).baddbmm_(weights[..., part].mT, self.chunks(own_do))
        dx = self.length * (dk - self.k * (self.k * dk).sum(-1, keepdim=True))
        self.chunks(dx[self.own]).baddbmm_(slope, self.windows(self.k))
        itself = live & alone & self.slots.sees_itself[self.inner]
        dvalues[self.own].addcmul_(do, itself.to(do.dtype)[:, None] / self.slots.place.shape[0])
        dq.index_add_(0, self.rows, dx)
        dv.index_add_(0, self.rows, dvalues)


def gather(t: Tensor, rows: Tensor) -> Tensor:
    """Rows, in float32 at least."""
    return t.index_select(0, rows).to(torch.promote_types(t.dtype, torch.float32))


def _runs(slots: Slots, reach: Reach, device: torch.device) -> Iterator[tuple[int, int]]:
    """First and last chunk of runs that fit into the cache; the ends ask nobody."""
    first, last = reach.before, len(slots.row) // reach.chunk - reach.after
    size = reach.width * reach.chunk**2 * (1 if slots.chunks is None else slots.chunks.shape[1] ** 2)
    step = max(1, SCORES_AT_ONCE.get(device.type, 2**26) // size)
    for start in range(first, last, step):
        yield start, min(start + step, last)


def _forward(
    q: Tensor, v: Tensor, keep: Tensor | None, slots: list[Tensor | None], reach: list[int], drop: float
) -> tuple[Tensor, Tensor]:
    """Out (B N H, Dv) and its logsumexp over all lists (B N H)."""
    laid, sight = _read(slots, reach)
    dtype = torch.promote_types(q.dtype, torch.float32)
    outs = torch.empty(len(laid.row), v.shape[-1], dtype=dtype, device=q.device)
    lses = torch.empty(len(laid.row), dtype=dtype, device=q.device)
    with torch.autocast(q.device.type, enabled=False):
        for first, last in _runs(laid, sight, q.device):
            run = Run(q, v, keep, drop, sight, laid, first, last)
            outs[run.inner], lses[run.inner] = run.attend()
    lse = lses[laid.place]
    out = F.embedding_bag(laid.place.mT, outs, mode="sum", per_sample_weights=lse.softmax(0).mT)
    return out.to(v.dtype), lse.logsumexp(0)


def at_once(
    q: Tensor, v: Tensor, keep: Tensor | None, slots: list[Tensor | None], reach: list[int], drop: float
) -> tuple[Tensor, Tensor]:
    """The same with all chunks in one run, for graphs that must hold for every length."""
    laid, sight = _read(slots, reach)
    first, last = sight.before, laid.row.shape[0] // sight.chunk - sight.after
    outs, lses = Run(q, v, keep, drop, sight, laid, first, last).attend()
    place = laid.place - first * sight.chunk
    lse = lses[place]
    return (outs[place] * lse.softmax(0)[..., None]).sum(0).to(v.dtype), lse.logsumexp(0)


def _backward(
    q: Tensor,
    v: Tensor,
    keep: Tensor | None,
    slots: list[Tensor | None],
    reach: list[int],
    drop: float,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
) -> tuple[Tensor, Tensor]:
    """The gradients of q and v."""
    laid, sight = _read(slots, reach)
    out_slope = (grad_out.to(lse.dtype) * out).sum(-1)
    dq, dv = torch.zeros_like(q, dtype=lse.dtype), torch.zeros_like(v, dtype=lse.dtype)
    with torch.autocast(q.device.type, enabled=False):
        for first, last in _runs(laid, sight, q.device):
            Run(q, v, keep, drop, sight, laid, first, last).slope(grad_out, out_slope, lse, dq, dv)
    return dq.to(q.dtype), dv.to(v.dtype)


def _read(slots: Sequence[Any], reach: Sequence[int]) -> tuple[Slots, Reach]:
    return Slots(*slots), Reach(*reach)


def _fake_forward(q: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), q.new_empty(q.shape[:1], dtype=torch.promote_types(q.dtype, torch.float32))


def _fake_backward(q: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, v, keep, slots, *ctx.numbers = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, v, keep, *output, *slots)


def _derivative(ctx: Any, grad_out: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    q, v, keep, out, lse, *slots = ctx.saved_tensors
    dq, dv = _operator_backward(q, v, keep, slots, *ctx.numbers, out, lse, grad_out.contiguous())
    return dq, dv, None, None, None, None


_operator = torch.library.custom_op("regard::chunk_attention", _forward, mutates_args=())
_operator_backward = torch.library.custom_op("regard::chunk_attention_backward", _backward, mutates_args=())
_operator.register_fake(_fake_forward)
_operator_backward.register_fake(_fake_backward)
_operator.register_autograd(_derivative, setup_context=_keep)

OPERATOR: Any = torch.ops.regard.chunk_attention.default
"""As it stands in graphs; :func:`at_once` is its definition."""
