"""The pictures of the page: curves, quality against memory, and patterns."""

import math
from html import escape
from typing import Any

from regard.race.entrants import Entrant
from regard.race.leaderboard import megabytes
from regard.race.page.charts import Level, Series, chart
from regard.race.page.parts import figure, note, section
from regard.race.page.pictures import picture
from regard.race.settings import Settings


def curves(told: dict[str, Any]) -> str:
    """Held-out quality against time and steps; final quality against memory."""
    name = told["metric"]["name"]
    figures = (
        figure(f"Held-out {name} against training time", _lines(told, "seconds", "seconds of training")),
        figure(f"Held-out {name} against steps", _lines(told, "steps", "steps")),
        figure(f"Final {name} against memory", _memory(told)),
    )
    remark = (
        "The curves are drawn on the validation part, the leaderboard is judged on the test part. "
        "Touch a point for its numbers."
    )
    return section("Curves", f'<div class="charts">{"".join(figures)}</div>', note(remark))


def patterns(told: dict[str, Any]) -> str:
    """Who looks at whom, in the sizes of this race."""
    settings = Settings.from_json(told["settings"])
    remark = (
        f"Queries downwards, keys to the right, {settings.positions:,} positions; a darker cell lets more pairs "
        "through. Where no pairs are formed the formula stands instead; random blocks are another draw than the "
        "model's."
    )
    cards = "".join(_card(entry, settings) for entry in told["entrants"])
    return section("Who looks at whom", note(remark), f'<div class="patterns">{cards}</div>')


def _card(entry: dict[str, Any], settings: Settings) -> str:
    drawing = picture(Entrant(entry["mechanism"], entry["options"]), settings)
    about = ", ".join(part for part in (entry["cost"] and f"cost {entry['cost']}", entry["paper"]) if part)
    title = f"<h3>{escape(entry['label'])}</h3><figcaption>{escape(about)}</figcaption>"
    return f'<figure><div class="maps">{drawing}</div>{title}</figure>'


def _lines(told: dict[str, Any], axis: str, words: str) -> str:
    digits, name = told["metric"]["digits"], told["metric"]["name"]
    series = [
        Series(
            entry["label"],
            number,
            [(point[axis], point["quality"]) for point in entry["curve"]],
            [
                f"{entry['label']}\n{point['quality']:.{digits}f} {name}\n"
                f"step {point['steps']:,}, {point['seconds']:.3g} s"
                for point in entry["curve"]
            ],
        )
        for number, entry in enumerate(told["entrants"])
        if entry["curve"]
    ]
    levels = [Level(level, value) for level, value in told["baselines"].items() if value is not None]
    return chart(series, levels, x=words, y=name, from_zero=True, ceiling=_ceiling(told))


def _ceiling(told: dict[str, Any]) -> float:
    """Where less is better the first points tower over all that matters: draw what is not far above the worst end."""
    ends = [entry["curve"][-1]["quality"] for entry in told["entrants"] if entry["curve"]]
    return 1.2 * max(ends) if ends and told["metric"]["lower_is_better"] else math.inf


def _memory(told: dict[str, Any]) -> str:
    digits, name = told["metric"]["digits"], told["metric"]["name"]
    series = [
        Series(
            entry["label"],
            number,
            [(entry["memory_above_base"] / 1e6, entry["quality"])],
            [f"{entry['label']}\n{entry['quality']:.{digits}f} {name}\n{megabytes(entry)} MB above base"],
        )
        for number, entry in enumerate(told["entrants"])
        if entry["quality"] is not None
    ]
    return chart(series, [], x="peak MB above base", y=name, lines=False, from_zero=True)
