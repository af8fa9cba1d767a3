"""Lanes: the tiles of a plan grouped so that each group is one batched matrix product.

A lane is a set of rows of tiles with equally many columns of tiles. Where the columns slide along with the rows (a
band), the keys of neighbouring rows overlap and are read as strided views; elsewhere they are gathered.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from regard.patterns.plan import FULL, Part

WIDEST = 1 << 22  # pairs of one row of tiles at a time; longer rows are computed in spans that are joined


@dataclass(frozen=True, eq=False)
class Lane:
    """Rows of tiles of one plane that meet equally many columns of tiles.

    Attributes:
        plane: the plane of the part.
        row: Long[r].
        column: Long[r, c].
        band: rows are consecutive, columns too, and both advance together (a single row counts).
        masks: (position, mask numbers) for positions in c that hold partial tiles: one number where all rows agree,
            else Long[r] with FULL where a row has none.
        span: number among the lanes that share these rows, because their columns are too many for one.
        alone: no other lane has these rows, so nothing has to be joined.
    """

    plane: int
    row: Tensor
    column: Tensor
    band: bool
    masks: tuple[tuple[int, int | Tensor], ...]
    span: int
    alone: bool

    @property
    def width(self) -> int:
        """Columns of tiles, c."""
        return self.column.shape[1]

    def slice(self, start: int, stop: int) -> Lane:
        """Some of the rows."""
        masks = tuple((p, number if isinstance(number, int) else number[start:stop]) for p, number in self.masks)
        return Lane(self.plane, self.row[start:stop], self.column[start:stop], self.band, masks, self.span, self.alone)


@lru_cache(maxsize=64)
def lanes(part: Part) -> tuple[Lane, ...]:
    """The lanes of a part; together they hold each of its tiles once."""
    found: list[Lane] = []
    counts = part.row_pointer.diff().view(part.planes, part.rows)
    limit = max(1, WIDEST // part.tile**2)
    for plane in range(part.planes):
        for count in counts[plane].unique().tolist():
            if count == 0:
                continue
            row = (counts[plane] == count).nonzero().flatten()
            place = part.row_pointer[plane * part.rows + row][:, None] + torch.arange(count)
            for span, start in enumerate(range(0, count, limit)):
                taken = place[:, start : start + limit]
                found += _in_bands(plane, row, part.column[taken], part.mask[taken], span, alone=count <= limit)
    return tuple(found)


def _in_bands(plane: int, row: Tensor, column: Tensor, mask: Tensor, span: int, alone: bool) -> list[Lane]:
    """One lane for each run of rows that slides, and one for all other rows."""
    contiguous = (column.diff(dim=1) == 1).all(1)
    slides = (row.diff() == 1) & (column[:, 0].diff() == 1) & contiguous[1:] & contiguous[:-1]
    run = torch.cat([torch.zeros(1, dtype=torch.long), (~slides).long().cumsum(0)])
    banded = contiguous & (torch.bincount(run)[run] > 1)
    groups = [run == number for number in run[banded].unique().tolist()]
    if not bool(banded.all()):
        groups.append(~banded)
    return [
        Lane(
            plane,
            row[group],
            column[group],
            bool(banded[group].all()) or (int(group.sum()) == 1 and bool(contiguous[group].all())),
            _partial(mask[group]),
            span,
            alone,
        )
        for group in groups
    ]


def _partial(mask: Tensor) -> tuple[tuple[int, int | Tensor], ...]:
    """The positions with partial tiles."""
    found: list[tuple[int, int | Tensor]] = []
    for position in range(mask.shape[1]):
        numbers = mask[:, position]
        if bool((numbers == numbers[0]).all()):
            if int(numbers[0]) != FULL:
                found.append((position, int(numbers[0])))
        else:
            found.append((position, numbers))
    return tuple(found)
