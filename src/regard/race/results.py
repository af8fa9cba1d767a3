"""``results.json``: everything that a race found out; the leaderboard and the page are made from it alone.

The schema is written down in docs/results-schema.md; ``SCHEMA`` changes with it.
"""

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from regard.race.bar import Bar, bar_of
from regard.race.discipline import Prepared
from regard.race.entrants import CONTROL, Entrant, Field
from regard.race.looking import choose_passage
from regard.race.machine import machine
from regard.race.outcome import Outcome
from regard.race.settings import Settings
from regard.race.showing import exhibit
from regard.race.verdict import judge, memory, ranked, speed
from regard.tasks.documents import printable
from regard.tasks.task import Metric
from regard.tasks.writing import write_file

SCHEMA = "regard.race/1"


def assemble(
    settings: Settings,
    field: Field,
    prepared: Prepared,
    baselines: dict[str, float | None],
    outcomes: Sequence[Outcome],
    *,
    interrupted: bool = False,
) -> dict[str, Any]:
    """The content of ``results.json``."""
    metric = prepared.task.metric
    bar = bar_of(prepared, baselines)
    verdict = judge(outcomes, metric, settings.seed, CONTROL.label)
    entrants = {entrant.label: entrant for entrant in field.entrants}
    order = [outcome.label for outcome in ranked(outcomes, metric)]
    order.sort(key=CONTROL.label.__eq__)  # the control stands below whoever it is there for
    order += [outcome.label for outcome in outcomes if outcome.label not in order]
    by_label = {outcome.label: outcome for outcome in outcomes}
    return {
        "schema": SCHEMA,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command(settings),
        "interrupted": interrupted,
        "metric": asdict(metric),
        "settings": asdict(settings),
        "machine": machine(),
        "data": _data(prepared, settings),
        "baselines": baselines,
        "bar": asdict(bar) if bar else None,
        "published": asdict(prepared.published) if prepared.published else None,
        "entrants": [_entry(entrants[label], by_label[label], settings, prepared, bar) for label in order],
        "absent": [{"name": name, "reason": reason} for name, reason in field.absent],
        "equal_steps": at_equal(outcomes, "steps", metric),
        "equal_seconds": at_equal(outcomes, "seconds", metric),
        "verdict": {
            "pick": verdict.pick,
            "measured": verdict.measured,
            "reason": verdict.reason + (bar.warning(by_label.values()) if bar and verdict.pick else ""),
            "call": entrants[verdict.pick].call(settings) if verdict.pick else "",
            "differences": [
                {**asdict(gap), "separated": gap.separated, "from": order[0]} for gap in verdict.differences
            ],
        },
    }


def command(settings: Settings) -> str:
    """The command line that repeats a race."""
    kind = {"smoke": settings.smoke or None, "task": settings.task, "scale": settings.scale}
    usual = asdict(Settings.of(kind)) | {"task": "lm", "scale": "small"}
    words = ["regard", "race", *settings.files]
    if settings.smoke:
        words.append("--smoke")
    for name, value in asdict(settings).items():
        option = f"--{name.replace('_', '-')}"
        if name in ("files", "smoke") or value is None or value == usual[name]:
            continue
        if name == "mechanisms":
            words += [option, ",".join(value)]
        elif name == "seconds":
            words += ["--budget", f"{value:g}s"]
        else:
            words += [option, str(value)]
    return printable(shlex.join(words))


def at_equal(outcomes: Sequence[Outcome], axis: str, metric: Metric) -> dict[str, Any]:
    """Validation quality of all that finished, where the one that came least far along ``axis`` ended.

    Between points of the curve it is interpolated; before the first point it is not known (None).
    """
    finished = ranked(outcomes, metric)
    finished = [outcome for outcome in finished if outcome.curve]
    if not finished:
        return {"at": None, "quality": {}}
    place = min(outcome.curve[-1][axis] for outcome in finished)
    quality = {outcome.label: interpolate(outcome.curve, axis, place) for outcome in finished}
    return {"at": place, "quality": quality}


def interpolate(curve: Sequence[dict[str, float]], axis: str, place: float) -> float | None:
    """The quality at ``place``, on the straight line between the neighbouring points."""
    if curve[0][axis] > place:
        return None
    for left, right in pairwise(curve):
        if left[axis] <= place <= right[axis] and right[axis] > left[axis]:
            share = (place - left[axis]) / (right[axis] - left[axis])
            return left["quality"] + share * (right["quality"] - left["quality"])
    return curve[-1]["quality"]


def write(folder: Path, results: dict[str, Any], page: str) -> None:
    """Write ``results.json`` and ``report.html``, each whole or not at all."""
    write_file(folder / "results.json", json.dumps(results, indent=1, allow_nan=False).encode())
    write_file(folder / "report.html", page.encode())


def _data(prepared: Prepared, settings: Settings) -> dict[str, Any]:
    return {
        "name": prepared.name,
        "sha256": prepared.fingerprint,
        "split": prepared.rule,
        "parts": {part: {"documents": count, "bytes": size} for part, (count, size) in prepared.sizes.items()},
        "unit": prepared.task.unit,
        "remarks": prepared.remarks,
        "passage": prepared.task.spell(choose_passage(prepared.task, settings.num_heads)),
        "gallery": exhibit(prepared.task.gallery()),
    }


def _entry(
    entrant: Entrant, outcome: Outcome, settings: Settings, prepared: Prepared, bar: Bar | None
) -> dict[str, Any]:
    about = entrant.card
    told = asdict(replace(outcome, units=[]))
    told["units"] = [list(unit) for unit in outcome.units]
    return {
        "mechanism": entrant.name,
        "options": entrant.options,
        "call": entrant.call(settings),
        "title": about.title,
        "paper": about.paper,
        "formula": about.formula,
        "cost": about.cost,
        "mark": entrant.mark(settings, prepared.task.unit),
        "learned": bar.cleared(outcome.quality) if bar and outcome.quality is not None else None,
        **told,
        "tokens_per_second": speed(outcome),
        "memory_above_base": memory(outcome),
    }
