"""The content of ``bench.json``; docs/bench-schema.md describes it."""

import os
from dataclasses import asdict
from datetime import datetime
from typing import Any

from regard.bench.curves import crossover, exponent
from regard.bench.runner import Runner
from regard.race.entrants import YARDSTICK, Entrant, Field
from regard.race.machine import machine

SCHEMA = "regard.bench/1"


def gather(runner: Runner, field: Field, load: list[float]) -> dict[str, Any]:
    """Everything that is known so far.

    Args:
        runner: with its points.
        field: who was asked for.
        load: the load averages of the machine before anything ran.
    """
    return {
        "schema": SCHEMA,
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "interrupted": runner.interrupted,
        "settings": asdict(runner.settings),
        "clock": runner.settings.clock,
        "machine": machine() | {"load_before": load, "load_after": load_average()},
        "entrants": [_entrant(entrant, runner) for entrant in field.entrants],
        "absent": [{"name": name, "reason": reason} for name, reason in field.absent],
    }


def load_average() -> list[float]:
    """How busy the machine was in the last 1, 5 and 15 minutes; empty where the system does not tell."""
    return [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else []


def seconds_of(points: list[dict[str, Any]], clock: str) -> dict[int, float]:
    """Seconds by length, of those lengths that were measured."""
    return {point["length"]: point[f"{clock}_seconds"] for point in points if point["status"] == "measured"}


def _entrant(entrant: Entrant, runner: Runner) -> dict[str, Any]:
    points = [asdict(point) for point in runner.points[entrant.label]]
    dense = [asdict(point) for point in runner.points[YARDSTICK]]
    seconds = seconds_of(points, runner.settings.clock)
    fitted = exponent(seconds)
    crossed = None if entrant.label == YARDSTICK else crossover(seconds, seconds_of(dense, runner.settings.clock))
    return {
        "label": entrant.label,
        "mechanism": entrant.name,
        "options": entrant.options,
        "title": entrant.card.title,
        "paper": entrant.card.paper,
        "cost": entrant.card.cost,
        "exponent": fitted and asdict(fitted),
        "crossover": crossed and asdict(crossed),
        "points": points,
    }
