"""The logits of one chunk of tiles: scaled products, score terms, masks and pattern, and the dropout of its weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regard.engines.problem import Problem, Shared
from regard.engines.tile_layout import Layout
from regard.engines.tile_schedule import Chunk

_PARTS_APART = 1 << 32  # keeps the streams of random numbers of different parts apart


@dataclass(frozen=True, eq=False)
class Place:
    """Where a chunk's logits (u * r, R, T, C) stand: numbers that broadcast to them."""

    batch: Tensor
    head: Tensor
    query_row: Tensor
    key_row: Tensor


class TileScores:
    """Makes the logits of chunks, (u * r, R * tile, c * tile) in the wide dtype.

    Args:
        layout: of the part; its queries, scaled, and keys are cut once here.
    """

    def __init__(self, layout: Layout) -> None:
        problem = layout.problem
        self.layout, self.problem = layout, problem
        self.query = layout.cut_queries(problem.query.to(problem.wide) * problem.scale)
        self.key = layout.cut_keys(problem.key.to(problem.wide))
        hidden = layout.part.masks.logical_not().to(problem.query.device)
        # One number more: FULL, which is -1, reads the last, empty mask.
        self.hidden = torch.zeros(len(hidden) + 1, layout.tile, layout.tile, dtype=problem.wide, device=hidden.device)
        self.hidden[:-1].masked_fill_(hidden, -torch.inf)
        self.key_mask = None if problem.key_mask is None else _key_bias(problem.key_mask, problem)

    def __call__(self, chunk: Chunk) -> Tensor:
        """Logits, -inf where a pair takes no part."""
        products = self.products(chunk)
        if self.problem.terms:
            products = self.with_terms(chunk, products, self.term_rows(chunk))
        return self.hide(chunk, products)

    def products(self, chunk: Chunk) -> Tensor:
        """scale * query . key for every pair of the chunk."""
        return torch.bmm(chunk.queries(self.query), chunk.keys(self.key).mT)

    def place(self, chunk: Chunk) -> Place:
        """The batch entries, heads and rows of a chunk."""
        layout, lane, device = self.layout, chunk.lane, self.query.device
        rows = len(lane.row)
        batch = layout.schedule.batch[chunk.unit].repeat_interleave(rows).view(-1, 1, 1, 1)
        head = layout.schedule.head[chunk.unit].repeat_interleave(rows, 0)[:, :, None, None]
        query_row = layout.schedule.query_row[lane.row].repeat(len(chunk.unit), 1)[:, None, :, None]
        key_row = layout.schedule.key_row[lane.column].flatten(1).repeat(len(chunk.unit), 1)[:, None, None, :]
        return Place(*(t.to(device) for t in (batch, head, query_row, key_row)))

    def term_rows(self, chunk: Chunk) -> list[Tensor]:
        """All term tensors, those with a row per query reduced to the chunk's rows, (u * r, R, T, D)."""
        place, found = self.place(chunk), []
        for term in self.problem.terms:
            for tensor, by_row in zip(term.tensors, term.row_tensors, strict=True):
                found.append(tensor[row_index(tensor, place)] if by_row else tensor)
        return found

    def with_terms(self, chunk: Chunk, products: Tensor, tensors: list[Tensor]) -> Tensor:
        """The products changed by every score term; differentiable."""
        place, rest = self.place(chunk), iter(tensors)
        i = place.query_row + self.problem.q_offset
        scores = products.unflatten(1, (-1, self.layout.tile))
        for term in self.problem.terms:
            own = [next(rest) for _ in term.tensors]
            scores = term(scores, place.batch, place.head, i, place.key_row, own)
        return scores.flatten(1, 2)

    def hide(self, chunk: Chunk, scores: Tensor) -> Tensor:
        """Add attn_mask, then -inf where key mask and pattern forbid, in place where that is possible."""
        if self.problem.attn_mask is not None:
            scores = self._with_attn_mask(chunk, scores, self.problem.attn_mask)
        if self.key_mask is not None:
            place = self.place(chunk)
            row = place.batch if len(self.key_mask) > 1 else torch.zeros_like(place.batch)
            scores = scores.unflatten(1, (-1, self.layout.tile)).add_(self.key_mask[row, place.key_row]).flatten(1, 2)
        tile, lane = self.layout.tile, chunk.lane
        by_tile = scores.view(len(chunk.unit), len(lane.row), -1, tile, lane.width, tile)
        for position, number in lane.masks:
            hidden = self.hidden[number] if isinstance(number, int) else self.hidden[number.to(scores.device)][:, None]
            by_tile[..., position, :].add_(hidden)
        return scores

    def _with_attn_mask(self, chunk: Chunk, scores: Tensor, mask: Shared) -> Tensor:
        place = self.place(chunk)
        found = mask.tensor[mask_index(mask, place)]
        by_head = scores.unflatten(1, (-1, self.layout.tile))
        if found.dtype == torch.bool:
            return by_head.masked_fill(~found, -torch.inf).flatten(1, 2)
        return (by_head + found.to(scores.dtype)).flatten(1, 2)


def _key_bias(mask: Shared, problem: Problem) -> Tensor:
    """0 for keys that take part and -inf for the others, (B or 1, M)."""
    rows = mask.rows()
    bias = torch.zeros(rows.shape, dtype=problem.wide, device=rows.device)
    return bias.masked_fill_(~rows, -torch.inf)


def mask_index(mask: Shared, place: Place) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The index of a chunk's entries in an attention mask (Bm, H or 1, N or 1, M or 1)."""
    batch = torch.zeros_like(place.batch) if mask.index is None else mask.index.to(place.batch.device)[place.batch]
    sizes = mask.tensor.shape[1:]
    rest = (place.head, place.query_row, place.key_row)
    return batch, *(torch.zeros_like(t[:, :1, :1, :1]) if size == 1 else t for t, size in zip(rest, sizes, strict=True))  # type: ignore[return-value]


def row_index(tensor: Tensor, place: Place) -> tuple[Tensor, Tensor, Tensor]:
    """The index of a chunk's queries in a tensor (B or 1, H or 1, N, D)."""
    batch, head = (t[..., 0] if size > 1 else torch.zeros_like(t[..., 0])
                   for t, size in zip((place.batch, place.head), tensor.shape[:2], strict=True))  # fmt: skip
    return batch, head, place.query_row[..., 0]


def dropout_scale(problem: Problem, weights: Tensor, part: int, chunk: int) -> Tensor | None:
    """What dropout multiplies a chunk's weights with, 0 or 1 / (1 - p), the same in every pass; None without it."""
    if problem.seed is None:
        return None
    generator = torch.Generator(weights.device).manual_seed(int(problem.seed) + part * _PARTS_APART + chunk)
    drawn = torch.rand(weights.shape, generator=generator, device=weights.device)
    return (drawn >= problem.dropout_p).to(weights.dtype).div_(1 - problem.dropout_p)
