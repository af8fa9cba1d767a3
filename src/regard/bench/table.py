"""The table in the terminal, made from the content of ``bench.json``."""

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from regard.bench.results import seconds_of
from regard.bench.settings import format_length
from regard.race.entrants import YARDSTICK


def show(results: dict[str, Any], console: Console) -> None:
    """Print the machine, the table, fastest at the greatest length first, and what became of the others."""
    _say(console, machine_line(results))
    console.print(_table(results))
    rounds, clock = results["settings"]["rounds"], results["clock"]
    _say(console, f"ms: median {clock} time of up to {rounds} turns (relative to {YARDSTICK}, dense attention)")
    _say(console, "MB: peak of one call above the base, in a process of its own")
    if results["interrupted"]:
        _say(console, "stopped before the end")
    for entry in results["entrants"]:
        for point in entry["points"]:
            if point["error"] and point["status"] != "not tried":
                where = format_length(point["length"])
                _say(console, f"{entry['label']} at {where}: {point['status']}: {point['error']}")
    for entry in results["absent"]:
        _say(console, f"not measured: {entry['name']}: {entry['reason']}")


def machine_line(results: dict[str, Any]) -> str:
    """What was measured, on which machine, and how busy that was."""
    settings, machine = results["settings"], results["machine"]
    what = "forward and backward" if settings["backward"] else "forward"
    layer = f"({settings['batch']}, N, {settings['dim']}), {settings['num_heads']} heads, {settings['dtype']}"
    place = machine["processor"] if results["clock"] == "cpu" else machine["accelerator"] or settings["device"]
    threads = f"threads {machine['threads']}, cores {machine['cores']}"
    load = f", load {machine['load_before'][0]} to {machine['load_after'][0]}" if machine["load_before"] else ""
    causal = ", causal" if settings["causal"] else ""
    return f"{what}{causal}, {layer}; {place}, {threads}{load}, torch {machine['torch']}"


def milliseconds(seconds: float) -> str:
    """Three digits, or all before the point.

    Example:
        >>> milliseconds(0.0012345), milliseconds(1.2345)
        ('1.23', '1,234')
    """
    value = 1e3 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _table(results: dict[str, Any]) -> Table:
    lengths, clock = results["settings"]["lengths"], results["clock"]
    dense = next(seconds_of(entry["points"], clock) for entry in results["entrants"] if entry["label"] == YARDSTICK)
    table = Table()
    table.add_column("mechanism", no_wrap=True)
    for length in lengths:
        table.add_column(f"{format_length(length)}\nms (of {YARDSTICK})", justify="right")
        table.add_column(f"{format_length(length)}\nMB", justify="right")
    table.add_column("time ~\nN^", justify="right")
    table.add_column(f"faster than\n{YARDSTICK} from", justify="right")
    for entry in sorted(results["entrants"], key=lambda entry: _order(entry, lengths, clock)):
        found = {point["length"]: point for point in entry["points"]}
        cells = [cell for length in lengths for cell in _cells(found.get(length), dense.get(length), clock)]
        cells.append(f"{entry['exponent']['value']:.2f}" if entry["exponent"] else "-")
        cells.append(entry["crossover"]["words"] or "-" if entry["crossover"] else "")
        table.add_row(*map(escape, (entry["label"], *cells)))
    return table


def _cells(point: dict[str, Any] | None, dense: float | None, clock: str) -> list[str]:
    """Time and memory of one point."""
    if point is None:
        return ["-", "-"]
    memory = f"{point['memory_bytes'] / 1e6:,.0f}" if point["memory_bytes"] else "-"
    if point["status"] != "measured":
        return [point["status"], memory]
    seconds = point[f"{clock}_seconds"]
    return [milliseconds(seconds) + (f" ({seconds / dense:.2f})" if dense else ""), memory]


def _order(entry: dict[str, Any], lengths: Sequence[int], clock: str) -> list[float]:
    """Who is fastest at the greatest length comes first; who was not measured there comes last."""
    seconds = seconds_of(entry["points"], clock)
    return [seconds.get(length, math.inf) for length in reversed(lengths)]


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
