"""What the measured curves of docs/data/costs.json say, as charts, sentences and cells."""

import json
from pathlib import Path
from typing import Any

from pictures import Curve, cost_chart

from regard.bench.settings import format_length

SERIES: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "costs.json").read_text())["series"]
OF_DATA = {
    "sequence": ("forward", "training"),
    "map": ("maps", "maps_training"),
    "set": ("sets", "sets_training"),
    "pair": ("pairs", "pairs_training"),
}
YARDSTICK = "full"
NARROW = "\N{NO-BREAK SPACE}"
NOISE = 0.1
"""Curves that never differ by more than this share are called equal."""


def cost(name: str, data: str) -> str:
    """The curves beside full attention and what they say, or why there are none; in MyST.

    Raises:
        ValueError: neither was measured, nor does anything say why not.
    """
    label = YARDSTICK if name == "multi_head" else name
    all_series = [SERIES[kind] for kind in OF_DATA[data]]
    drawn = [series for series in all_series if label in series["curves"]]
    parts: list[str] = []
    if drawn:
        figures = "".join(_chart(label, series) for series in drawn)
        parts.append(f'```{{raw}} html\n<div class="costs">{figures}</div>\n```')
        parts += [_sentence(label, series) for series in drawn if label != YARDSTICK]
    reasons = {series["absent"][name]: series["words"] for series in all_series if name in series["absent"]}
    parts += [f"No curve ({'both passes' if not drawn else words}): {reason}." for reason, words in reasons.items()]
    if not parts:
        raise ValueError(f"{name} has neither a cost curve nor a reason in docs/data/costs.json: measure it")
    return "\n\n".join([*parts, *([measured(drawn[0])] if drawn else [])])


def seconds(label: str, series: dict[str, Any]) -> dict[int, float]:
    """Seconds by length; empty for what was not measured."""
    return {int(length): value for length, value in series["curves"].get(label, {}).items()}


def share(label: str, series: dict[str, Any]) -> tuple[float, int]:
    """The share of full attention's time at the longest length that both have, and that length."""
    own, dense = seconds(label, series), seconds(YARDSTICK, series)
    longest = max(own.keys() & dense.keys())
    return own[longest] / dense[longest], longest


def equal(label: str, series: dict[str, Any]) -> bool:
    """Whether it never differs from full attention by more than noise."""
    own, dense = seconds(label, series), seconds(YARDSTICK, series)
    return all(abs(own[length] / dense[length] - 1) <= NOISE for length in own.keys() & dense.keys())


def place(label: str, series: dict[str, Any]) -> str:
    """From which length on it is faster, for a cell; "-" for what was not measured."""
    if label not in series["curves"]:
        return "-"
    if equal(label, series):
        return "equal"
    taken, longest = share(label, series)
    return f"{_from(label, series)} ({ratio(taken)} at {format_length(longest)})".replace(" %", NARROW + "%")


def ratio(taken: float) -> str:
    """A share of time for people.

    Example:
        >>> ratio(0.074), ratio(2.31), ratio(14.2)
        ('7 %', '2.3 times', '14 times')
    """
    return f"{100 * taken:.0f} %" if taken < 0.995 else f"{taken:.2g} times" if taken < 10 else f"{taken:.0f} times"


def measured(series: dict[str, Any]) -> str:
    """How it was measured, on what, and what else the machine did."""
    how, machine = series["settings"], series["machine"]
    load = f"{machine['load_before'][0]:.1f} to {machine['load_after'][0]:.1f}"
    return (
        f"Measured on {series['created'][:10]} with {how['threads']} thread of {machine['processor']} "
        f"({machine['cores']} cores, load average {load}), torch {machine['torch']}: layers of {how['dim']} channels, "
        f"{how['num_heads']} heads where there are heads, batch {how['batch']}, {how['dtype']}, other options as they "
        f"come; medians of CPU seconds over {how['rounds']} rounds in which all take turns. Below a few per cent "
        "differences are noise, and your machine differs: `regard bench` measures there."
    )


def _chart(label: str, series: dict[str, Any]) -> str:
    curves = [Curve("full attention (SDPA)", "dense", seconds(YARDSTICK, series))]
    if label != YARDSTICK:
        curves.append(Curve(label, "own", seconds(label, series)))
    return cost_chart(series["words"].capitalize(), curves, series["unit"])


def _sentence(label: str, series: dict[str, Any]) -> str:
    """What a pair of curves says."""
    words, unit = series["words"].capitalize(), series["unit"]
    if equal(label, series):
        return f"{words}: as fast as full attention at every measured length."
    taken, longest = share(label, series)
    where = _from(label, series)
    if where.startswith("never"):
        verdict = f"slower than full attention up to {format_length(longest)} {unit}, the longest measured"
    else:
        verdict = f"faster than full attention {where} {unit} on"
    return f"{words}: {verdict}. At {format_length(longest)} it takes {ratio(taken)} of full attention's time."


def _from(label: str, series: dict[str, Any]) -> str:
    """A crossover in words; two digits are all that a line between two measurements can tell."""
    found = series["crossovers"][label]
    if found["length"] is not None:
        return f"from about {float(format(found['length'], '.2g')):,.0f}"
    if found["words"].startswith("below"):
        return f"from {found['words'].removeprefix('below ')}"
    return "never"
