"""Charts as inline SVG: curves and points that tell their numbers when they are touched."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 76, 16, 14, 48
COLORS = 10  # of the palette in style.css; beyond it lines are dashed


@dataclass(frozen=True)
class Series:
    """A named row of points; ``color`` is a number into the page's palette, ``tips`` says what each point means."""

    name: str
    color: int
    points: Sequence[tuple[float, float]]
    tips: Sequence[str]


@dataclass(frozen=True)
class Level:
    """A horizontal line with a name, drawn where it falls into the range."""

    name: str
    value: float


def chart(
    series: Sequence[Series],
    levels: Sequence[Level],
    *,
    x: str,
    y: str,
    lines: bool = True,
    from_zero: bool = False,
    ceiling: float = math.inf,
) -> str:
    """A chart of all series, with a legend below it if it has lines, else names at the points.

    Args:
        series: at least one point altogether.
        levels: baselines.
        x, y: what the axes show, with units.
        lines: connect the points.
        from_zero: the x axis starts at 0.
        ceiling: points above it are left out of the picture (unless nothing were left).
    """
    if any(y <= ceiling for one in series for _, y in one.points):
        series = [_below(one, ceiling) for one in series]
    points = [point for one in series for point in one.points]
    if not points:
        return '<p class="quiet">no entrant got far enough to be drawn</p>'
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    across = _Axis.around(xs, LEFT, WIDTH - RIGHT, from_zero=from_zero)
    reach = 0.3 * _span(ys)
    near = [level.value for level in levels if min(ys) - reach <= level.value <= max(ys) + reach]
    upward = _Axis.around([*ys, *near], HEIGHT - BOTTOM, TOP)
    parts = [_grid(across, upward, x, y)]
    parts += [_level(level, upward) for level in levels if level.value in near]
    parts += [_series(one, across, upward, lines=lines) for one in series]
    named = (one for one in series if one.points)
    legend = "".join(f'<li><i class="c{one.color % COLORS}"></i>{escape(one.name)}</li>' for one in named)
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{y} against {x}")}">'
    picture = f"{head}{''.join(parts)}</svg>"
    return f'<div class="chart">{picture}</div><ul class="legend">{legend}</ul>'


def _below(one: Series, ceiling: float) -> Series:
    kept = [(point, tip) for point, tip in zip(one.points, one.tips, strict=True) if point[1] <= ceiling]
    return Series(one.name, one.color, [point for point, _ in kept], [tip for _, tip in kept])


@dataclass(frozen=True)
class _Axis:
    """A linear scale from values to pixels, with round ticks."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float, *, from_zero: bool = False) -> "_Axis":
        low = 0.0 if from_zero else min(values)
        margin = 0.06 * (max(values) - low or abs(low) or 1.0)
        return cls(0.0 if from_zero else low - margin, max(values) + margin, start, end)

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = min((factor * power for factor in (1, 2, 2.5, 5, 10)), key=lambda size: abs(size - rough))
        first = math.ceil(self.low / step)
        return [round(number * step, 10) for number in range(first, math.floor(self.high / step) + 1)]


def _span(values: Sequence[float]) -> float:
    return max(values) - min(values) or abs(values[0]) or 1.0


def _grid(across: _Axis, upward: _Axis, x: str, y: str) -> str:
    left, right, bottom = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM
    heights = [(upward(tick), f"{tick:g}") for tick in upward.ticks()]
    lines = [f'<line class="grid" x1="{left}" x2="{right}" y1="{height}" y2="{height}"/>' for height, _ in heights]
    texts = [f'<text x="{left - 8}" y="{height + 4}" text-anchor="end">{name}</text>' for height, name in heights]
    texts += [_middle(across(tick), bottom + 20, f"{tick:,g}") for tick in across.ticks()]
    texts.append(_middle((left + right) / 2, HEIGHT - 6, escape(x)))
    turned = f'transform="translate(16 {(TOP + bottom) / 2}) rotate(-90)"'
    return "".join(lines + texts) + f'<text {turned} text-anchor="middle">{escape(y)}</text>'


def _middle(x: float, y: float, text: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="middle">{text}</text>'


def _level(level: Level, upward: _Axis) -> str:
    place = upward(level.value)
    return (
        f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place}" y2="{place}"/>'
        f'<text class="level" x="{WIDTH - RIGHT}" y="{place - 4}" text-anchor="end">{escape(level.name)}</text>'
    )


def _series(one: Series, across: _Axis, upward: _Axis, *, lines: bool) -> str:
    places = [(across(x), upward(y)) for x, y in one.points]
    color = f"c{one.color % COLORS}"
    dash = ' stroke-dasharray="6 4"' if one.color >= COLORS else ""
    path = " ".join(f"{x},{y}" for x, y in places)
    parts = [f'<polyline class="{color}" points="{path}"{dash}/>'] if lines and len(places) > 1 else []
    for (x, y), tip in zip(places, one.tips, strict=True):
        text = escape(tip, quote=True)
        parts.append(
            f'<circle class="{color}" cx="{x}" cy="{y}" r="{3.5 if lines else 7}" data-tip="{text}" tabindex="0"/>'
        )
    return "".join(parts)
