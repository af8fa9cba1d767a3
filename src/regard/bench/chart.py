"""``bench.png``: time and memory over length, both on logarithmic axes."""

import io
from collections.abc import Callable
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, NullFormatter

from regard.bench.results import seconds_of
from regard.bench.settings import format_length
from regard.race.entrants import YARDSTICK

DASHES = ("-", "--", ":", "-.")
COLORS = 10
ROWS = 24  # names in a column of the legend


def draw(results: dict[str, Any]) -> bytes:
    """The picture of the content of ``bench.json``, as PNG; dense attention is black."""
    columns = -(-len(results["entrants"]) // ROWS)
    figure = Figure(figsize=(11 + 2.2 * columns, 4.8), layout="constrained")
    settings, clock = results["settings"], results["clock"]
    time, memory = figure.subplots(1, 2)
    _panel(time, results, lambda points: {n: 1e3 * s for n, s in seconds_of(points, clock).items()})
    _panel(memory, results, _megabytes)
    what = "forward and backward" if settings["backward"] else "forward"
    causal = ", causal" if settings["causal"] else ""
    time.set_title(f"{what}{causal}: milliseconds ({clock})")
    memory.set_title("peak memory above the base: MB")
    handles, labels = max(
        (panel.get_legend_handles_labels() for panel in (time, memory)), key=lambda pair: len(pair[0])
    )
    figure.legend(handles, labels, loc="outside right upper", fontsize="small", ncols=columns, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _panel(axes: Axes, results: dict[str, Any], values: Callable[[list[dict[str, Any]]], dict[int, float]]) -> None:
    others = 0
    for entry in results["entrants"]:
        found = values(entry["points"])
        style: dict[str, Any] = {"color": "black", "linewidth": 2.5, "zorder": 3}
        if entry["label"] != YARDSTICK:
            style = {"color": colormaps["tab10"](others % COLORS), "linestyle": DASHES[others // COLORS % len(DASHES)]}
            others += 1
        if found:
            axes.plot(list(found), list(found.values()), marker="o", markersize=4, label=entry["label"], **style)
    lengths = results["settings"]["lengths"]
    axes.set_xscale("log")
    if axes.lines:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter())
    axes.set_xticks(lengths, [format_length(length) for length in lengths])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("length")
    axes.grid(alpha=0.3)


def _megabytes(points: list[dict[str, Any]]) -> dict[int, float]:
    return {point["length"]: point["memory_bytes"] / 1e6 for point in points if point["memory_bytes"]}
