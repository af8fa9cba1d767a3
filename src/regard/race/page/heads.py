"""``heads.html``: one cell for each head of a model, with what it does and its map on real sentences."""

import json
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from regard.inspect.head_report import Example, Head, HeadsReport
from regard.race.page.looks import image
from regard.race.page.parts import definitions, note, section

KINDS = ("positional", "syntactic", "rare words")

WORDS = {
    "confidence": "the mean of each word's largest weight",
    "offset": "the relative place that is looked at most often, and by how many of the words",
    "best arc": "the relation that the head follows most above the relation's own most frequent offset",
    "rare words": "how many of the words look at the rarest word of their sentence, or at one of the two rarest",
    "importance": "what the loss would feel of a gate on the head",
    "gate": "what the head's output is multiplied by",
}


def render_heads(report: HeadsReport, *, model: str, data: str) -> str:
    """The whole page as HTML; it loads nothing from anywhere.

    Args:
        report: from :func:`regard.inspect.heads`.
        model, data: their names.
    """
    frame, style, script = _own("frame.html"), _own("style.css") + _own("heads.css"), _own("heads.js")
    parts = (_lead(report, model, data), _controls(report), _cells(report), _about(report), _large(report))
    title = escape(f"What each head does: {model}")
    return Template(frame).substitute(title=title, style=style, script=script, main="\n".join(parts))


def _own(name: str) -> str:
    return files("regard.race.page").joinpath(name).read_text("utf-8")


def _lead(report: HeadsReport, model: str, data: str) -> str:
    counts = ", ".join(f"{len(report.of_kind(kind))} {kind}" for kind in KINDS if _asked(report, kind))
    lead = (
        f"{len(report.heads)} heads in {len(report.layers)} layer{'s' * (len(report.layers) > 1)}: {counts}. "
        f"Counted on {report.sentences:,} sentences, {report.words:,} words of {data}."
    )
    return f"<h1>What each head does</h1>\n<p>{escape(model)}</p>\n{note(lead)}{''.join(map(note, report.remarks))}"


def _asked(report: HeadsReport, kind: str) -> bool:
    """Whether heads could be given this role at all."""
    asked = {"syntactic": any(head.best for head in report.heads), "rare words": report.thresholds["rare-word share"]}
    return bool(asked.get(kind, True))


def _controls(report: HeadsReport) -> str:
    """How the cells are ordered, and which sentence they show."""
    orders = {"layer": "layer", "role": "role", "confidence": "confidence"}
    orders |= {"importance": "importance"} if any(head.importance is not None for head in report.heads) else {}
    orders |= {"gate": "gate"} if any(head.gate is not None for head in report.heads) else {}
    order = "".join(f'<option value="{value}">{words}</option>' for value, words in orders.items())
    shown = "".join(
        f'<option value="{number}">{escape(_short(example))}</option>' for number, example in enumerate(report.examples)
    )
    sentence = f'<label>Sentence <select id="sentence">{shown}</select></label>' if shown else ""
    return f'<form class="controls"><label>Order by <select id="order">{order}</select></label>{sentence}</form>'


def _short(example: Example) -> str:
    text = " ".join(example.words)
    return text if len(text) <= 90 else text[:89] + "\N{HORIZONTAL ELLIPSIS}"


def _cells(report: HeadsReport) -> str:
    cells: list[str] = []
    for number, layer in enumerate(report.layers):
        cells.append(f'<h3 class="layer">{escape(layer)}</h3>')
        cells += [_cell(head, number, report) for head in report.heads if head.layer == layer]
    remark = (
        "Queries downwards, keys to the right; each row has its full colour at its largest weight. Open a map to read "
        "its words."
    )
    return section("Heads", note(remark), f'<div id="heads">{"".join(cells)}</div>')


def _cell(head: Head, layer: int, report: HeadsReport) -> str:
    name = f"{head.layer}, head {head.number}"
    pictures = "".join(
        f'<span class="on" data-sentence="{number}"{" hidden" if number else ""}>'
        f"{image(example.maps[head.layer][head.number], name)}</span>"
        for number, example in enumerate(report.examples)
    )
    keys = {
        "layer": layer,
        "head": head.number,
        "role": KINDS.index(head.kinds[0]) if head.kinds else len(KINDS),
        "confidence": head.confidence,
        "importance": 0.0 if head.importance is None else head.importance,
        "gate": 0.0 if head.gate is None else head.gate,
    }
    data = "".join(f' data-{key}="{value:.6g}"' for key, value in keys.items())
    badges = "".join(f'<li class="{head.kinds[0].partition(" ")[0]}">{escape(role)}</li>' for role in _roles(head))
    roles = f'<ul class="roles">{badges}</ul>' if badges else '<p class="quiet">no role</p>'
    button = f'<button type="button" class="open" aria-label="{escape(name, quote=True)}: larger">{pictures}</button>'
    title = f'<h4><span class="where">{escape(head.layer)}, </span>head {head.number}</h4>'
    return f'<article class="cell"{data}>{button}{title}{roles}{definitions(_facts(head))}</article>'


def _roles(head: Head) -> list[str]:
    """The first two roles, and how many more there are."""
    more = [f"and {len(head.roles) - 2} more"] if len(head.roles) > 2 else []
    return [*head.roles[:2], *more]


def _facts(head: Head) -> Mapping[str, str]:
    best = head.best
    return {
        "confidence": f"{head.confidence:.2f}",
        "offset": f"{head.offset_share:.0%} at {head.offset:+}",
        "best arc": "" if best is None else f"{best}: {best.accuracy:.0%}, any offset {best.baseline:.0%}",
        "rare words": "" if head.rarest is None else f"{head.rarest:.0%}, one of two {head.two_rarest:.0%}",
        "importance": "" if head.importance is None else f"{head.importance:.3g}",
        "gate": "" if head.gate is None else f"{head.gate:.2f}",
    }


def _about(report: HeadsReport) -> str:
    told: dict[str, Any] = report.thresholds
    thresholds = {
        "positional": f"one offset takes at least {told['positional share']:.0%} of the words; tried: "
        + ", ".join(f"{offset:+d}" for offset in told["offsets"]),
        "syntactic": f"a relation is followed at least {100 * told['syntactic margin']:g} points more often than its "
        f"most frequent offset would; counted: {', '.join(told['relations'])}",
        "rare words": "a role for nobody: the paper names no threshold"
        if told["rare-word share"] is None
        else f"at least {told['rare-word share']:.0%} of the words look at the rarest one",
    }
    remark = (
        "Roles as in Voita et al. 2019, arXiv:1905.09418, section 5. Counted between words: attention to a word is the "
        "sum over its tokens, attention from a word their mean; tokens of no word are left out."
    )
    return section("How it was counted", definitions(thresholds), definitions(WORDS), note(remark))


def _large(report: HeadsReport) -> str:
    """The window in which a map is read, and the words of the sentences."""
    words = json.dumps([example.words for example in report.examples], ensure_ascii=False).replace("<", "\\u003c")
    return (
        '<dialog id="large" aria-labelledby="large-title"><form method="dialog"><h2 id="large-title"></h2>'
        '<button type="button" id="before" aria-label="head before">\N{LEFTWARDS ARROW}</button>'
        '<button type="button" id="after" aria-label="head after">\N{RIGHTWARDS ARROW}</button>'
        '<button aria-label="close">\N{MULTIPLICATION SIGN}</button></form>'
        '<div class="scroll" id="map" tabindex="0"></div><p id="weight" class="note" aria-live="polite"></p></dialog>'
        f'<script type="application/json" id="words">{words}</script>'
    )
