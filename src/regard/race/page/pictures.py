"""Patterns as small pictures: who may look at whom, in the sizes of the race."""

from html import escape

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.factory import create
from regard.map_layers import fixed_pattern
from regard.patterns import Pattern
from regard.patterns.picture import density_map
from regard.race.entrants import Entrant
from regard.race.settings import Settings

CELLS = 64
HEADS = 4


def pattern_of(entrant: Entrant, settings: Settings) -> Pattern | None:
    """The fixed pattern of an entrant's attention, or None where it has none; one draw where it is random."""
    with torch.random.fork_rng([]):
        layer = create(entrant.name, **entrant.arguments(settings))
    return fixed_pattern(layer, settings.sides)


def density(pattern: Pattern, length: int, heads: int, cells: int = CELLS) -> Tensor:
    """Shares of allowed pairs, Float[K, rows, columns], one map per different head."""
    maps = density_map(pattern, length, heads=heads if pattern.heads else None)
    if length > cells:
        maps = F.adaptive_avg_pool2d(maps, (cells, cells))
    return torch.stack(list({map.numpy().tobytes(): map for map in maps}.values()))[:HEADS]


def picture(entrant: Entrant, settings: Settings) -> str:
    """Inline SVG of the pattern; without one, the mechanism's formula."""
    pattern = pattern_of(entrant, settings)
    if pattern is None:
        return f'<p class="formula">{escape(entrant.card.formula or "no fixed pattern")}</p>'
    maps = density(pattern, settings.positions, settings.num_heads)
    return "".join(shaded(one) for one in maps)


def shaded(cells: Tensor) -> str:
    """Inline SVG of shares, (R, C): cells of five shades; equal neighbours of a row are one rectangle."""
    rows, columns = cells.shape
    runs: dict[int, list[str]] = {}
    for number, row in enumerate((cells * 4).ceil().int().tolist()):
        start = 0
        for column in range(1, columns + 1):
            if column == columns or row[column] != row[start]:
                if row[start]:
                    runs.setdefault(row[start], []).append(f"M{start} {number}h{column - start}v1h{start - column}z")
                start = column
    paths = "".join(f'<path opacity="{shade / 4:g}" d="{"".join(parts)}"/>' for shade, parts in sorted(runs.items()))
    size = f'viewBox="0 0 {columns} {rows}" shape-rendering="crispEdges" aria-hidden="true"'
    return f'<svg class="pattern" {size}>{paths}</svg>'
