"""Tiles: exact attention over the non-empty tiles of a plan, in plain torch, on any device.

Time and memory follow the plan's tiles; nothing of size N x M exists. Forward keeps out and lse only; backward
recomputes the weights chunk by chunk from lse. Parts in different orders of positions, and rows of tiles too long for
one chunk, are joined through their lse.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from regard.engines import tile_strips
from regard.engines.problem import Gradients, Problem, Request, Serves, Shared, widen
from regard.engines.tile_composite import composite
from regard.engines.tile_flash import FlashChunks
from regard.engines.tile_layout import TILE, Layout, plan_of, serves_all_heads
from regard.engines.tile_schedule import Chunk
from regard.engines.tile_scores import Place, TileScores, dropout_scale, mask_index, row_index
from regard.patterns.plan import Part

__all__ = ["TILE", "backward", "composite", "forward", "plan_of", "serves"]


def _workspace(request: Request, pairs: int) -> tuple[int, int]:
    """Copies of the inputs in tiles, and twice that for their gradients; chunks are of a constant size."""
    batch, heads, groups, n, m, width, value_width = request.shape
    numbers = batch * (heads * n + groups * m) * (width + value_width)
    size = torch.finfo(widen(request.dtype)).bits // 8
    return numbers * size, 3 * numbers * size


serves = Serves(workspace=_workspace)


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """-> out (B, H, N, Dv) and lse (B, H, N)."""
    parts = plan_of(problem).parts
    if len(parts) == 1 and serves_all_heads(parts[0], problem):
        if tile_strips.serve(problem, parts[0]):
            out, lse = tile_strips.forward(problem, parts[0])
            return out.to(problem.query.dtype), lse
        out, lse = _forward(Layout(problem, parts[0]), 0)
        return out.to(problem.query.dtype), lse
    shape = (*problem.query.shape[:3], problem.value.shape[-1])
    out = problem.query.new_zeros(shape, dtype=problem.wide)
    lse = out.new_full(shape[:3], -torch.inf)
    for number, part in enumerate(parts):
        _join(out, lse, _heads(part, out), *_forward(Layout(problem, part), number))
    return out.to(problem.query.dtype), lse


def _heads(part: Part, like: Tensor) -> tuple[slice, slice | Tensor]:
    """The index of a part's heads in (B, H, ...)."""
    return slice(None), slice(None) if part.heads is None else torch.tensor(part.heads, device=like.device)


def _forward(layout: Layout, number: int) -> tuple[Tensor, Tensor]:
    """One part, laid back into rows; rows without a pair are 0 with lse -inf."""
    scores = TileScores(layout)
    value = layout.cut_keys(layout.problem.value.to(layout.problem.wide))
    out = value.new_zeros(*scores.query.shape[:3], value.shape[-1])
    lse = value.new_full(out.shape[:3], -torch.inf)
    flash = FlashChunks(scores, value)
    for chunk in layout.schedule.chunks:
        chunk_out, chunk_lse = flash.attend(chunk) if flash.serve(chunk) else _attend(scores, value, chunk, number)
        if chunk.lane.alone:
            chunk.put(out, chunk_out)
            chunk.put(lse, chunk_lse)
        else:
            shape = (len(chunk.unit), -1)
            place = (chunk.unit.to(out.device)[:, None], chunk.lane.row.to(out.device))
            _join(out, lse, place, chunk_out.unflatten(0, shape), chunk_lse.unflatten(0, shape))
    return layout.join_queries(out), layout.join_queries(lse)


def _attend(scores: TileScores, value: Tensor, chunk: Chunk, number: int) -> tuple[Tensor, Tensor]:
    """One chunk: out (u * r, R * tile, Dv) and lse (u * r, R * tile); rows without a pair are 0 with lse -inf."""
    weights = scores(chunk)
    most = weights.amax(-1)
    empty = most == -torch.inf
    torch.softmax(weights, -1, out=weights)
    # The largest weight is exp(0) over the row's sum: two cheap passes give lse beside the fused softmax.
    lse = most.sub_(weights.amax(-1).log_()).masked_fill_(empty, -torch.inf)
    dropped = dropout_scale(scores.problem, weights, number, chunk.number)
    if dropped is not None:
        weights.mul_(dropped)
    return torch.bmm(weights, chunk.keys(value)).masked_fill_(empty[..., None], 0.0), lse


def _join(
    out: Tensor, lse: Tensor, place: tuple[slice | Tensor, slice | Tensor], more_out: Tensor, more_lse: Tensor
) -> None:
    """Add attention over further keys, at ``place``, to what is there already."""
    before = lse[place]
    total = torch.logaddexp(before, more_lse)
    shift = total.masked_fill(total == -torch.inf, 0.0)  # exp(-inf - 0) = 0: an empty row stays empty
    kept, added = (torch.exp(part - shift)[..., None] for part in (before, more_lse))
    out[place] = out[place] * kept + more_out * added
    lse[place] = total


def backward(
    problem: Problem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None, needs: tuple[bool, ...]
) -> Gradients:
    """Gradients of query, key, value, attn_mask and term tensors, the weights recomputed from lse."""
    grad_out = grad_out.to(problem.wide)
    # d softmax: each row's gradient is taken against its own mean, out . grad_out; lse's gradient joins it there.
    mean = (grad_out * out.to(problem.wide)).sum(-1)
    if grad_lse is not None:
        mean = mean - grad_lse
    shift = lse.masked_fill(lse == -torch.inf, 0.0)
    sums = _Sums(problem, needs)
    for number, part in enumerate(plan_of(problem).parts):
        _backward(Layout(problem, part), number, grad_out, mean, shift, sums)
    return sums.result()


class _Sums:
    """Where the gradients of all parts are added up."""

    def __init__(self, problem: Problem, needs: tuple[bool, ...]) -> None:
        self.problem, self.needs = problem, needs
        # those of queries, keys and values come in whole, those of masks and terms in pieces
        self.whole: list[Tensor | None] = [None, None, None]
        mask = None if problem.attn_mask is None else problem.attn_mask.tensor
        self.mask, *self.terms = (
            torch.zeros(t.shape, dtype=problem.wide, device=t.device) if need and t is not None else None
            for t, need in zip((mask, *problem.term_tensors()), needs[3:], strict=True)
        )

    def add(self, place: int, gradient: Tensor, part: Part | None = None) -> None:
        """Add a part's gradient of the query (0), key (1) or value (2); that of queries may concern some heads only."""
        before = self.whole[place]
        if part is not None and not serves_all_heads(part, self.problem):
            if before is None:
                before = torch.zeros_like(self.problem.query, dtype=gradient.dtype)
            before[_heads(part, before)] += gradient
        else:
            before = gradient if before is None else before.add_(gradient)
        self.whole[place] = before

    def add_terms(self, place: Place, gradients: list[Tensor]) -> None:
        """Add a chunk's gradients of the term tensors that want one."""
        by_row = [flag for term in self.problem.terms for flag in term.row_tensors]
        wanted = [(into, rows) for into, rows in zip(self.terms, by_row, strict=True) if into is not None]
        for (into, rows), gradient in zip(wanted, gradients, strict=True):
            if rows:
                index = row_index(into, place)
                into.index_put_(
                    index,
                    gradient.sum_to_size(*torch.broadcast_shapes(*(t.shape for t in index)), gradient.shape[-1]),
                    accumulate=True,
                )
            else:
                into += gradient

    def add_mask(self, mask: Shared, place: Place, gradient: Tensor) -> None:
        """Add a chunk's gradient (u * r, R, T, C) of the attention mask, summed over what the mask is shared by."""
        assert self.mask is not None
        index = mask_index(mask, place)
        shape = torch.broadcast_shapes(*(t.shape for t in index))
        self.mask.index_put_(index, gradient.sum_to_size(shape), accumulate=True)

    def result(self) -> Gradients:
        """The gradients in the dtypes of what they belong to."""
        problem = self.problem
        query, key, value = (
            (torch.zeros_like(t) if found is None else found.to(t.dtype)) if need else None
            for t, found, need in zip((problem.query, problem.key, problem.value), self.whole, self.needs, strict=False)
        )
        mask = None if self.mask is None or problem.attn_mask is None else self.mask.to(problem.attn_mask.tensor.dtype)
        pairs = zip(problem.term_tensors(), self.terms, strict=True)
        return Gradients(
            query, key, value, mask, tuple(None if sums is None else sums.to(t.dtype) for t, sums in pairs)
        )


def _backward(layout: Layout, number: int, grad_out: Tensor, mean: Tensor, lse: Tensor, sums: _Sums) -> None:
    """Add one part's gradients to ``sums``."""
    problem, scores = layout.problem, TileScores(layout)
    value = layout.cut_keys(problem.value.to(problem.wide))
    rows_out, rows_mean, rows_lse = (layout.cut_queries(t) for t in (grad_out, mean, lse))
    padding = layout.schedule.padding.to(lse.device)
    rows_lse = rows_lse.masked_fill(padding, torch.inf)  # no weight, hence no gradient
    grad_query, grad_key, grad_value = (t.new_zeros(t.shape) for t in (scores.query, scores.key, value))
    for chunk in layout.schedule.chunks:
        chunk_out, query = chunk.queries(rows_out), chunk.queries(scores.query)
        weights, undo_terms = _logits(scores, chunk, sums)
        weights = weights.sub_(chunk.queries(rows_lse)[..., None]).exp_()
        inner = torch.bmm(chunk_out, chunk.keys(value).mT)
        dropped = dropout_scale(problem, weights, number, chunk.number)
        kept = weights if dropped is None else weights * dropped
        inner = inner if dropped is None else inner.mul_(dropped)
        chunk.add_product(grad_value, kept, chunk_out)
        inner = inner.sub_(chunk.queries(rows_mean)[..., None]).mul_(weights)
        if problem.attn_mask is not None and sums.mask is not None:
            sums.add_mask(problem.attn_mask, scores.place(chunk), inner.unflatten(1, (-1, layout.tile)))
        inner = undo_terms(inner)
        chunk.put_more(grad_query, torch.bmm(inner, chunk.keys(scores.key)))
        chunk.add_product(grad_key, inner, query)
    sums.add(0, layout.join_queries(grad_query.mul_(problem.scale)), layout.part)
    sums.add(1, layout.join_keys(grad_key))
    sums.add(2, layout.join_keys(grad_value))


def _logits(scores: TileScores, chunk: Chunk, sums: _Sums) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A chunk's logits, and what takes their gradient back to that of scale * query . key through the score terms."""
    if not scores.problem.terms:
        return scores(chunk), lambda inner: inner
    products = scores.products(chunk).requires_grad_()
    tensors = [
        t.detach().requires_grad_(into is not None) for t, into in zip(scores.term_rows(chunk), sums.terms, strict=True)
    ]
    with torch.enable_grad():
        changed = scores.with_terms(chunk, products, tensors)

    def undo(inner: Tensor) -> Tensor:
        wanted = [t for t in tensors if t.requires_grad]
        own, *rest = torch.autograd.grad(changed, [products, *wanted], inner)
        sums.add_terms(scores.place(chunk), rest)
        return own

    # A copy: hiding writes in place, and the terms may have kept what they returned.
    return scores.hide(chunk, changed.detach().clone()), undo
