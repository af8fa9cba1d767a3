"""Attention over tiles in differentiable torch operations only: slower, but every derivative of it exists."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from regard.engines.joining import merge
from regard.engines.problem import Problem
from regard.engines.tile_layout import Layout, plan_of, serves_all_heads
from regard.engines.tile_schedule import Chunk
from regard.engines.tile_scores import TileScores, dropout_scale
from regard.engines.transforms import outside
from regard.patterns.plan import Part

Drop = Callable[[TileScores, Chunk, Tensor, int], Tensor | None]  # from the weights of a chunk of the part of a number


def _drop(scores: TileScores, chunk: Chunk, weights: Tensor, number: int) -> Tensor | None:
    return dropout_scale(scores.problem, weights, number, chunk.number)


def composite(problem: Problem, drop: Drop = _drop) -> tuple[Tensor, Tensor]:
    """out and lse in differentiable torch operations: for forward-mode tangents and gradients of gradients.

    Args:
        problem: what is computed.
        drop: the dropout of the engine whose derivatives these are, by default that of tiles.
    """
    outs: list[Tensor] = []
    lses: list[Tensor] = []
    with outside():  # plans and schedules are remembered: no transform may leave its mark on them
        layouts = [Layout(problem, part) for part in plan_of(problem).parts]
    for number, layout in enumerate(layouts):
        for out, lse in _spans(layout, number, drop):
            outs.append(_on_all_heads(out, layout.part, problem))
            lses.append(_on_all_heads(lse, layout.part, problem, -torch.inf))
    if not outs:
        nothing = problem.query.to(problem.wide).sum(-1, keepdim=True) * 0.0
        nothing = nothing.expand(*problem.query.shape[:3], problem.value.shape[-1])
        return nothing.to(problem.query.dtype), torch.full_like(nothing[..., 0], -torch.inf)
    out, lse = merge(outs, lses)
    return out.to(problem.query.dtype), lse


def _spans(layout: Layout, number: int, drop: Drop) -> Iterator[tuple[Tensor, Tensor]]:
    """One part as attention over disjoint spans of its columns (one span, unless rows are very long)."""
    scores = TileScores(layout)
    value = layout.cut_keys(layout.problem.value.to(layout.problem.wide))
    by_span: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}
    for chunk in layout.schedule.chunks:
        weights, lse = _softmax(scores(chunk))
        dropped = drop(scores, chunk, weights, number)
        out = torch.bmm(weights if dropped is None else weights * dropped, chunk.keys(value))
        place = (chunk.unit[:, None] * layout.part.rows + chunk.lane.row).flatten()
        by_span.setdefault(chunk.lane.span, []).append((place, out, lse))
    for found in by_span.values():
        places, outs, lses = zip(*found, strict=True)
        yield tuple(
            layout.join_queries(_place(torch.cat(places), torch.cat(rows), layout, absent))
            for rows, absent in ((outs, 0.0), (lses, -torch.inf))
        )  # type: ignore[misc]


def _softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and lse, differentiable; a row of -inf gives zeros and -inf, and no NaN in any derivative."""
    most = scores.detach().amax(-1, keepdim=True)
    most = most.masked_fill(most == -torch.inf, 0.0)
    weights = torch.exp(scores - most)
    total = weights.sum(-1, keepdim=True)
    empty = total == 0
    total = total.masked_fill(empty, 1.0)
    return weights / total, (most + total.log()).masked_fill(empty, -torch.inf)[..., 0]


def _place(places: Tensor, rows: Tensor, layout: Layout, absent: float) -> Tensor:
    """Rows of tiles brought to their places, (U, rows of tiles, ...), ``absent`` where there is none."""
    source = torch.full((layout.schedule.units * layout.part.rows,), len(places))
    source[places] = torch.arange(len(places))
    rows = torch.cat([rows, rows.new_full((1, *rows.shape[1:]), absent)])
    return rows[source.to(rows.device)].unflatten(0, (layout.schedule.units, layout.part.rows))


def _on_all_heads(rows: Tensor, part: Part, problem: Problem, absent: float = 0.0) -> Tensor:
    """(B, heads of the part, ...) among all heads, ``absent`` for the others."""
    if part.heads is None or serves_all_heads(part, problem):
        return rows
    heads = torch.tensor(part.heads, device=rows.device)
    full = rows.new_full((rows.shape[0], problem.query.shape[1], *rows.shape[2:]), absent)
    return full.index_copy(1, heads, rows)
