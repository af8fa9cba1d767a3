"""Pictures as inline SVG, which take their colours from the theme: patterns, and cost against length."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import torch

from regard.bench.settings import format_length
from regard.factory import card, create
from regard.map_layers import fixed_pattern
from regard.patterns import Pattern
from regard.race.page.pictures import density, shaded
from regard.registry import UnsupportedError

LENGTH, SIDE, HEADS = 1024, 32, 4
CELLS = 64


def pattern_figure(name: str) -> str:
    """Who may look at whom, as HTML; empty for mechanisms whose pairs depend on the content, or that form none."""
    about = card(name)
    figures = "".join(_figure(name, causal) for causal in ((False, True) if about.causal else (False,)))
    return f'<div class="patterns">{figures}</div>' if figures else ""


def _figure(name: str, causal: bool) -> str:
    about = card(name)
    if about.data == "pair":
        return ""
    torch.manual_seed(0)
    options: dict[str, Any] = {"dim": 64, "num_heads": HEADS, **({"causal": True} if causal else {})}
    if about.data != "map":
        options["max_length"] = LENGTH
    try:
        layer = create(name, **options)
    except UnsupportedError:  # always causal
        return ""
    pattern = fixed_pattern(layer, (SIDE, SIDE) if about.data == "map" else (LENGTH,))
    if pattern is None:
        return ""
    kind = "causal" if causal else "not causal" if about.causal else ""
    if about.data == "map":
        row = pattern.dense(LENGTH, heads=pattern.heads).reshape(-1, LENGTH, LENGTH)[0, LENGTH // 2 + SIDE // 2]
        panels = [row.reshape(SIDE, SIDE).float()]
        words = f"in colour the pixels at which the one in the middle of {SIDE} x {SIDE} looks"
    else:
        panels = list(density(pattern, LENGTH, HEADS, CELLS))
        words = f"in colour the pairs that take part; {LENGTH:,} positions, queries downwards, keys to the right"
        words += "" if len(panels) == 1 else "; a picture for each different head"
    told = f"<code>{escape(_short(pattern))}</code>, density {pattern.density(LENGTH, heads=pattern.heads):.2g}"
    caption = f"{kind}: {words}".removeprefix(": ")
    drawn = "".join(shaded(panel) for panel in panels)
    kinds = "pattern" if len(panels) == 1 else "pattern heads"
    return f'<figure class="{kinds}"><div>{drawn}</div><figcaption>{caption.capitalize()}. {told}</figcaption></figure>'


def _short(pattern: Pattern) -> str:
    words = repr(pattern)
    return words if len(words) <= 120 else f"{words[:117]}..."


@dataclass(frozen=True)
class Curve:
    """Seconds by length, under a name; ``kind`` is the class of its colour in pictures.css."""

    name: str
    kind: str
    seconds: Mapping[int, float]


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 270, 62, 14, 26, 44


def cost_chart(title: str, curves: Sequence[Curve], unit: str) -> str:
    """Milliseconds over length, both axes logarithmic; ``unit`` is what a length counts."""
    lengths = sorted({length for curve in curves for length in curve.seconds})
    times = [1000 * seconds for curve in curves for seconds in curve.seconds.values()]
    across = _Scale(math.log(lengths[0]), math.log(lengths[-1]), LEFT, WIDTH - RIGHT)
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))
    upward = _Scale(low, max(high, low + 1), HEIGHT - BOTTOM, TOP)
    parts = [f'<text class="title" x="{LEFT}" y="14">{escape(title)}</text>']
    for power in range(low, max(high, low + 1) + 1):
        y = upward(power)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{_time(10.0**power)}</text>')
    for length in lengths:
        x = across(math.log(length))
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{format_length(length)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(unit)}</text>')
    for curve in curves:
        places = [(across(math.log(n)), upward(math.log10(1000 * s))) for n, s in sorted(curve.seconds.items())]
        path = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline class="{curve.kind}" points="{path}"/>')
        for (x, y), (length, seconds) in zip(places, sorted(curve.seconds.items()), strict=True):
            tip = f"{curve.name}: {length:,} {unit}, {_time(1000 * seconds)}"
            parts.append(f'<circle class="{curve.kind}" cx="{x}" cy="{y}" r="3"><title>{escape(tip)}</title></circle>')
    legend = "".join(f'<li class="{curve.kind}">{escape(curve.name)}</li>' for curve in curves)
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title}: time over {unit}")}">'
    return f'<figure class="cost">{head}{"".join(parts)}</svg><ul>{legend}</ul></figure>'


@dataclass(frozen=True)
class _Scale:
    """A linear scale from values to places."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self.start + share * (self.end - self.start), 1)


def _time(milliseconds: float) -> str:
    """For people.

    Example:
        >>> _time(0.1), _time(25.4), _time(1000), _time(12345)
        ('0.1 ms', '25 ms', '1 s', '12 s')
    """
    number, unit = (milliseconds, "ms") if milliseconds < 999.5 else (milliseconds / 1000, "s")
    return f"{float(f'{number:.2g}'):g} {unit}"
