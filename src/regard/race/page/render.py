"""The page: the pick first, then the leaderboard, the curves, patterns and maps, and how it was measured."""

from collections.abc import Mapping
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from regard.race.page.board import equal, leaderboard, published
from regard.race.page.figures import curves, patterns
from regard.race.page.gallery import gallery
from regard.race.page.looks import looks
from regard.race.page.parts import definitions, note, section, sentence
from regard.race.settings import Settings


def render(results: Mapping[str, Any]) -> str:
    """The whole page as HTML; it loads nothing from anywhere."""
    told = dict(results)
    frame, style, script = _own("frame.html"), _own("style.css"), _own("hover.js") + _own("look.js")
    parts = (
        *(_head(told), _pick(told), leaderboard(told), published(told), curves(told), equal(told)),
        *(gallery(told), patterns(told), looks(told), _how(told)),
    )
    title = escape(f"Which attention? {told['data']['name']}")
    return Template(frame).substitute(title=title, style=style, script=script, main="\n".join(parts))


def _own(name: str) -> str:
    return files("regard.race.page").joinpath(name).read_text("utf-8")


def _head(told: dict[str, Any]) -> str:
    settings = Settings.from_json(told["settings"])
    discipline = settings.discipline
    finished = sum(entry["status"] == "finished" for entry in told["entrants"])
    lead = (
        f"{finished} of {len(told['entrants'])} mechanisms finished: the same small Transformer, {discipline.goal}, "
        f"{settings.budget} of training each."
    )
    stopped = note("The race was interrupted; what follows is what there is.") if told["interrupted"] else ""
    return f"<h1>{escape(discipline.question)}</h1>\n<p>{escape(told['data']['name'])}</p>\n{note(lead)}{stopped}"


def _pick(told: dict[str, Any]) -> str:
    verdict = told["verdict"]
    reason = f"<p>{escape(sentence(verdict['reason']))}</p>"
    if not verdict["pick"]:
        return f'<div class="pick"><strong>No pick</strong>{reason}</div>'
    title = f"{'Best' if verdict['measured'] else 'Our pick'}: {verdict['pick']}"
    return f'<div class="pick"><strong>{escape(title)}</strong>{reason}<pre>{escape(verdict["call"])}</pre></div>'


def _how(told: dict[str, Any]) -> str:
    items = _items(told)
    remark = (
        "Peak memory is that of the process while it trained, less what it held before the model existed. Milliseconds "
        "are means over training; attention and rest divide them as on a few steps timed afterwards. The interval "
        f"behind the best is a paired bootstrap over held-out {items}: it tells whether other {items} would change "
        "the order, not whether another seed or a busier machine would."
    )
    command = f"<p>Run it again:</p><pre>{escape(told['command'])}</pre>"
    return section("How it was measured", definitions(_facts(told)), command, note(remark))


def _items(told: dict[str, Any]) -> str:
    """What quality is a mean over; files of before there were other tasks do not say it."""
    return told["metric"].get("items", "documents")


def _facts(told: dict[str, Any]) -> dict[str, str]:
    settings, machine, data = Settings.from_json(told["settings"]), told["machine"], told["data"]
    items, unit = _items(told), data.get("unit", "bytes")
    parts = [f"{name} {part['documents']:,} {items}, {part['bytes']:,} {unit}" for name, part in data["parts"].items()]
    return {
        "data": f"{data['name']}, fingerprint {data['sha256'][:16]}",
        "split": f"{data['split']} ({'; '.join(parts)})",
        "remarks": "; ".join(data["remarks"]),
        "model": f"depth {settings.depth}, dim {settings.dim}, {settings.num_heads} heads, learned positions, "
        f"{settings.intake(unit)} at the input",
        "training": f"{settings.budget}, {settings.portion(unit)}, AdamW, warm-up and "
        f"cosine, peak rate {settings.learning_rate:g}",
        "shared": f"data order and every weight outside the attention, from seed {settings.seed}",
        "machine": f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads "
        f"{machine['accelerator']}",
        "memory base": ", ".join(
            f"{entry['label']} {entry['memory']['base'] / 1e6:,.0f} MB" for entry in told["entrants"] if entry["memory"]
        ),
        "software": f"regard {machine['regard']}, torch {machine['torch']}, Python {machine['python']}, "
        f"{machine['system']}",
        "not counted": ", ".join(
            f"{entry['label']} {entry['evaluation_seconds']:.1f} s of evaluation"
            for entry in told["entrants"]
            if entry["steps"]
        ),
        "made": told["created"],
    }
