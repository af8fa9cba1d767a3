"""Bands in natural order on the CPU: strips of rows that read queries, keys and values where they lie.

A strip is a run of rows of tiles whose columns slide along with them, as overlapping views, for torch's flash kernel;
nothing is cut into tiles, gathered or joined. Forward only: the kernel's backward is slower than ours on 64 queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor

from regard.engines.problem import Problem
from regard.engines.tile_flash import able, attend, hidden_pairs
from regard.engines.tile_lanes import Lane, lanes
from regard.patterns.plan import FULL, Part

_MOST = 256  # strips; beyond it calls cost more than copies
_READ_AGAIN = 6  # keys that more rows of tiles than that read are copied, so that they lie together


@dataclass(frozen=True)
class Strip:
    """Rows of tiles from ``row`` on, ``count`` of them; the first sees ``width`` tiles from ``column`` on."""

    row: int
    count: int
    column: int
    width: int
    masks: tuple[tuple[int, int], ...]

    def alone(self, start: int) -> Iterator[Strip]:
        """Its rows one by one, from ``start`` on."""
        for step in range(start, self.count):
            yield replace(self, row=self.row + step, count=1, column=self.column + step)


@lru_cache(maxsize=64)
def strips(part: Part) -> tuple[Strip, ...]:
    """The strips that a part consists of; none where it is anything else."""
    found: list[Strip] = []
    for lane in lanes(part):
        own = _strips(lane) if lane.alone else []
        if not own or len(found) + len(own) > _MOST:
            return ()
        found += own
    # tiles at the end of queries or keys may be short, so that views over several rows would leave the tensor
    whole = (len(part.query_rows) - int((part.query_rows < 0).sum())) // part.tile
    keys = (len(part.key_rows) - int((part.key_rows < 0).sum())) // part.tile
    cut: list[Strip] = []
    for strip in found:
        inside = max(0, min(whole - strip.row, keys - strip.column - strip.width + 1, strip.count))
        cut += [replace(strip, count=inside)] if inside else []
        cut += strip.alone(inside)
    return tuple(cut)


def _strips(lane: Lane) -> list[Strip]:
    """One for each run of a band under the same masks, else one for each row; none where columns lie apart."""
    numbers = torch.full(lane.column.shape, FULL)
    for position, number in lane.masks:
        numbers[:, position] = number
    rows = [
        Strip(row, 1, columns[0], lane.width, tuple((p, n) for p, n in enumerate(own) if n != FULL))
        for row, columns, own in zip(lane.row.tolist(), lane.column.tolist(), numbers.tolist(), strict=True)
    ]
    if lane.band:
        runs = [list(run) for _, run in groupby(rows, key=lambda row: row.masks)]
        return [replace(run[0], count=len(run)) for run in runs]
    return rows if bool((lane.column.diff(dim=1) == 1).all()) else []


def serve(problem: Problem, part: Part) -> bool:
    """Whether this is a band in natural order, the same for all heads and sequences, and the kernel can have it."""
    plain = part.natural and part.planes == 1 and problem.rep == 1
    return plain and able(problem) and bool(strips(part))


def forward(problem: Problem, part: Part) -> tuple[Tensor, Tensor]:
    """out (B, H, N, Dv), in memory with tokens before heads, and lse (B, H, N)."""
    again = max(strip.width for strip in strips(part)) > _READ_AGAIN
    query = _readable(problem.query.to(problem.wide), dense=False)
    key, value = (_readable(t.to(problem.wide), dense=again) for t in (problem.key, problem.value))
    batch, heads, n, _ = query.shape
    out = value.new_empty(batch, n, heads, value.shape[-1]).transpose(1, 2)
    lse = value.new_empty(batch, heads, n)
    _leave_empty(part, out, lse)
    for strip in strips(part):
        hidden, empty = hidden_pairs(part, strip.masks, strip.width, 1, query.dtype)
        for sequence in range(batch):
            rows = _rows(strip, part, query[sequence])
            keys, values = (_keys(strip, part, t[sequence]) for t in (key, value))
            mask = None if hidden is None else hidden[..., : rows.shape[2], : keys.shape[2]]
            none = None if empty is None else empty[: rows.shape[2]]
            found, sums = attend(rows, keys, values, mask, none, problem.scale)
            _rows(strip, part, out[sequence]).copy_(found)
            _rows(strip, part, lse[sequence][..., None]).copy_(sums[..., None])
    return out, lse


def _readable(t: Tensor, *, dense: bool) -> Tensor:
    """The tensor as the kernel wants it, its rows dense; ``dense``: and one after the other."""
    return t.contiguous() if dense or t.stride(-1) != 1 else t


def _rows(strip: Strip, part: Part, t: Tensor) -> Tensor:
    """(H, N, ...) -> (H, count, tile, ...), or (H, 1, what is left, ...) at the end."""
    start = strip.row * part.tile
    if strip.count == 1:
        return t[:, None, start : start + part.tile]
    return t[:, start : start + strip.count * part.tile].unflatten(1, (strip.count, part.tile))


def _keys(strip: Strip, part: Part, t: Tensor) -> Tensor:
    """(H, M, D) -> (H, count, width * tile, D), overlapping."""
    start, length = strip.column * part.tile, strip.width * part.tile
    if strip.count == 1:
        return t[:, None, start : start + length]
    return t[:, start:].unfold(1, length, part.tile)[:, : strip.count].transpose(-1, -2)


def _leave_empty(part: Part, out: Tensor, lse: Tensor) -> None:
    """Rows of tiles that see nothing: 0 and -inf."""
    empty = part.row_pointer.diff() == 0
    if bool(empty.any()):
        rows = empty.repeat_interleave(part.tile)[: lse.shape[-1]]
        out[:, :, rows], lse[:, :, rows] = 0.0, -torch.inf
