"""Curves and a table of what was learned: reads the files of the learn_*.py scripts in a folder.

    python benchmarks/draw_learning.py FOLDER [--out OTHER_FOLDER]

Writes one SVG for each ``what``: a thin line for each seed, a thick one for their mean, a band from the worst to the
best seed, and a dashed line for what each baseline reaches on the test part; the same files give the same bytes. Prints
a Markdown table: a model has learned if the mean of its seeds, three at least, beats the bar by the margin that its
script fixed before any run, and this margin is larger than the distance between its worst and best seed, and between
those of the bar where the bar is a model. With fewer seeds nothing is claimed.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

Run = Mapping[str, Any]
COLOURS = ("#2563a8", "#c2571a", "#2e7d4f", "#7a4ea3", "#8c6d1f", "#b03060")
POINTS = 200
"""At which seeds are averaged."""

LEAST_SEEDS = 3
"""From which anything is claimed."""


def read(folder: Path) -> dict[str, dict[str, list[Run]]]:
    """what -> model -> its runs by seed; JSON files of another kind are left out.

    Raises:
        ValueError: no run at all.
    """
    found: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("**/*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(run, dict) and {"what", "model", "seed", "curve", "test"} <= run.keys():
            found[run["what"]][run["model"]].append(run)
    if not found:
        raise ValueError(f"{folder} holds no results of a learn_*.py script")
    return {
        what: {name: sorted(runs, key=lambda run: run["seed"]) for name, runs in m.items()} for what, m in found.items()
    }


def at(curve: Sequence[Sequence[float]], minute: float) -> float:
    """The value of a curve at a minute, on the straight line between two points.

    Example:
        >>> at([[0, 1.0], [2, 3.0]], 0.5)
        1.5
    """
    for (left, low), (right, high) in pairwise(curve):
        if left <= minute <= right:
            return low + (high - low) * (minute - left) / (right - left) if right > left else high
    return curve[-1][1] if minute > curve[-1][0] else curve[0][1]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half of the distance between the worst and the best.

    Example:
        >>> mean_and_spread([1.0, 2.0, 4.5])
        (2.5, 1.75)
    """
    return sum(values) / len(values), (max(values) - min(values)) / 2


def tested(runs: Sequence[Run]) -> list[float]:
    """The test value of each seed: that of the metric's name, else the first."""
    return [run["test"].get(run["metric"], next(iter(run["test"].values()))) for run in runs]


def seeds(runs: Sequence[Run]) -> str:
    """How many there are."""
    return f"{len(runs)} seed{'' if len(runs) == 1 else 's'}"


def bar_of(runs: Sequence[Run], models: Mapping[str, Sequence[Run]]) -> tuple[float, float] | None:
    """Mean and spread of what is to be beaten: a model beside it, or a baseline; None where neither is there."""
    name = runs[0].get("bar")
    if name in models:
        return mean_and_spread(tested(models[name]))
    values = [run["baselines"][name] for run in runs if run.get("baselines", {}).get(name) is not None]
    return mean_and_spread(values) if values else None


def verdict(runs: Sequence[Run], models: Mapping[str, Sequence[Run]]) -> str:
    """Whether a model has learned: "yes", "no", "is the bar", "too few seeds", or "nothing to compare with"."""
    if runs[0].get("bar") == runs[0]["model"]:
        return "is the bar"
    bar = bar_of(runs, models)
    if bar is None or runs[0].get("margin") is None:
        return "nothing to compare with"
    if min(len(runs), len(models.get(runs[0]["bar"], runs))) < LEAST_SEEDS:
        return "too few seeds"
    mean, spread = mean_and_spread(tested(runs))
    gain = (bar[0] - mean) if runs[0]["lower_is_better"] else (mean - bar[0])
    return "yes" if gain >= runs[0]["margin"] > 2 * max(spread, bar[1]) else "no"


def draw(what: str, models: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Write the curves of one task."""
    style = {"svg.hashsalt": "regard", "svg.fonttype": "none", "font.size": 10, "axes.spines.top": False}
    with rc_context(style | {"axes.spines.right": False}):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        for number, (name, runs) in enumerate(models.items()):
            colour = COLOURS[number % len(COLOURS)]
            last = min(run["curve"][-1][0] for run in runs)
            minutes = [last * step / (POINTS - 1) for step in range(POINTS)]
            rows = [[at(run["curve"], minute) for run in runs] for minute in minutes]
            for run in runs:
                axes.plot(*zip(*run["curve"], strict=True), color=colour, linewidth=0.6, alpha=0.6)
            axes.fill_between(
                minutes, [min(r) for r in rows], [max(r) for r in rows], color=colour, alpha=0.15, linewidth=0
            )
            label = f"{name} ({seeds(runs)})"
            axes.plot(minutes, [sum(row) / len(row) for row in rows], color=colour, linewidth=2, label=label)
        for number, (name, value) in enumerate(baselines(models).items()):
            shade = 0.25 + 0.5 * number / max(1, len(baselines(models)))
            axes.axhline(value, color=str(shade), linewidth=1, linestyle="--", label=f"{name} (test)")
        first = next(iter(models.values()))[0]
        axes.set(title=what, xlabel="minutes of training", ylabel=f"{first['metric']} (validation)")
        axes.legend(frameon=False, fontsize=8)
        figure.savefig(path, format="svg", metadata={"Date": None})


def baselines(models: Mapping[str, Sequence[Run]]) -> dict[str, float]:
    """The mean of each baseline over all runs that have it."""
    found: dict[str, list[float]] = defaultdict(list)
    for runs in models.values():
        for run in runs:
            for name, value in run.get("baselines", {}).items():
                if value is not None:
                    found[name].append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def table(what: str, models: Mapping[str, Sequence[Run]]) -> str:
    """A Markdown table of one task; the bar of each model and the margin stand beside its test value."""
    lines = [
        f"### {what}",
        "",
        "| model | parameters | minutes, threads | steps | test | bar + margin | learned |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in models.items():
        first, (mean, spread) = runs[0], mean_and_spread(tested(runs))
        bar = bar_of(runs, models)
        asked = "" if bar is None else f"{first['bar']} {bar[0]:.3f} + {first['margin']:g}"
        asked = asked.replace("+", "-") if first["lower_is_better"] else asked
        steps = f"{sum(run['steps'] for run in runs) / len(runs):,.0f}"
        cells = [name, f"{first['parameters']:,}", f"{first['minutes']:.2g}, {first['threads']}", steps]
        cells += [f"{first['metric']} {mean:.3f} ± {spread:.3f} ({seeds(runs)})", asked, verdict(runs, models)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {name} | | | | {value:.3f} | | baseline |" for name, value in baselines(models).items()]
    return "\n".join(lines)


def file_of(what: str) -> str:
    """A file name.

    Example:
        >>> file_of("Translation, English-German")
        'translation-english-german.svg'
    """
    return "-".join("".join(sign if sign.isalnum() else " " for sign in what.lower()).split()) + ".svg"


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw everything in a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    out = given.out or given.folder
    out.mkdir(parents=True, exist_ok=True)
    for what, models in read(given.folder).items():
        draw(what, models, out / file_of(what))
        print(table(what, models), end="\n\n")


if __name__ == "__main__":
    main()
