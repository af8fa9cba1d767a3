"""What cards and recorded numbers say, in words: rows of tables, badges, links."""

import json
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from regard.registry import Card, Core, Entry

DATA = Path(__file__).parents[1] / "data"
PARITY: dict[str, Any] = json.loads((DATA / "parity.json").read_text())

ON = {
    "sequence": "sequences (B, N, C)",
    "map": "maps (B, C, H, W)",
    "set": "sets (B, N, C)",
    "pair": "two inputs",
}
CAUSAL = {
    "strict": "**strict**: no earlier output changes when a later input changes, shown by perturbing inputs",
    "selection": "**by selection only**: no gradient flows back, but which keys are picked depends on later tokens",
    None: "no",
}
FAMILIES = {
    "softmax": "the softmax over all pairs and its nearest relatives",
    "patterned": "exact softmax over a fixed pattern of pairs",
    "chosen": "the content chooses which pairs meet",
    "linear": "a kernel or a state instead of pairs, in linear time",
    "lowrank": "fewer keys, landmarks or tables instead of all pairs",
    "memory": "something is carried along: memories, slots, relays",
    "gates": "channels, places or heads are weighed",
    "pairs": "two inputs meet",
}


def yes(holds: object) -> str:
    """For a cell of a table."""
    return "yes" if holds else "no"


def _padding(entry: Entry) -> str:
    if "key_mask" in entry.card.refuses:
        return "no mask is taken"
    return "wherever it stands" if entry.card.padding == "anywhere" else "at the end of each axis"


def _fewer_key_heads(entry: Entry) -> str:
    if entry.card.gqa:
        return "yes"
    possible = issubclass(entry.cls, Core) and "num_kv_heads" not in entry.card.refuses
    return "yes, repeated by the layer" if possible else "no"


def _documents(entry: Entry) -> str:
    if entry.card.segments:
        return "yes"
    return "yes, unpacked by the layer" if entry.card.data in ("sequence", "set") else "no"


ROWS: dict[str, tuple[str, Callable[[Entry], str]]] = {
    "data": ("runs on", lambda entry: ON[entry.card.data]),
    "family": ("family", lambda entry: f"{entry.card.family}: {FAMILIES[entry.card.family]}"),
    "cost": ("time for N tokens", lambda entry: entry.card.cost),
    "causal": ("causal", lambda entry: CAUSAL[entry.card.causal]),
    "cross": ("cross attention", lambda entry: yes(entry.card.cross)),
    "gqa": ("fewer key heads (GQA)", _fewer_key_heads),
    "streaming": ("decodes with a memory", lambda entry: yes(entry.card.streaming)),
    "segments": ("packed documents", _documents),
    "padding": ("padding changes nothing", _padding),
    "empty_rows": (
        "a query that may look at nothing gets",
        lambda entry: "0" if entry.card.empty_rows == "zero" else "uniform weights",
    ),
    "stochastic": (
        "differs in training",
        lambda entry: ", ".join(entry.card.stochastic).replace("_", " ") or "nothing",
    ),
    "smooth": ("gradcheck in float64", lambda entry: yes(entry.card.smooth)),
    "compile": ("torch.compile, fullgraph", lambda entry: yes(entry.card.compile)),
    "dynamic": ("one graph for other lengths", lambda entry: yes(entry.card.dynamic)),
    "export": ("torch.export", lambda entry: yes(entry.card.export)),
    "onnx": ("ONNX, equal in onnxruntime", lambda entry: yes(entry.card.onnx)),
    "refuses": (
        "refuses",
        lambda entry: "; ".join(f"`{what}`: {why}" for what, why in entry.card.refuses.items()) or "nothing",
    ),
}
"""What a card says, row by row; title, paper, year, summary and formula stand at the head of a page."""


def card_table(entry: Entry) -> str:
    """All that the card says, in MyST."""
    rows = [f"| {title} | {cell(words(entry))} |" for title, words in ROWS.values()]
    return "\n".join(["| the card | says |", "|---|---|", *rows])


def cell(text: str) -> str:
    """Text that may stand between the bars of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def paper_link(about: Card) -> str:
    """The paper, to be clicked where it has an address."""
    for prefix, address in (("arXiv:", "https://arxiv.org/abs/"), ("doi:", "https://doi.org/")):
        if about.paper.startswith(prefix):
            return f"([{about.paper}]({address}{about.paper.removeprefix(prefix)}), {about.year})"
    return f"({about.paper}, {about.year})"


def badges(name: str, about: Card) -> str:
    """The facts that decide, in one line of HTML."""
    found = PARITY["mechanisms"].get(name)
    causality = {"strict": "strictly causal", "selection": "causal by selection only", None: "never causal"}
    told = [
        ("name", name),
        ("", {"pair": "two inputs"}.get(about.data, f"{about.data}s")),
        ("", causality[about.causal]),
        ("", f"time {about.cost}"),
        ("good", f"{cases(found)} reproduced") if found else ("", "no recorded numbers"),
    ]
    spans = "".join(f'<span class="badge {kind}">{escape(text)}</span>' for kind, text in told)
    return f'```{{raw}} html\n<p class="badges">{spans}</p>\n```'


def cases(found: dict[str, Any]) -> str:
    """How many recorded cases."""
    return "1 recorded case" if found["cases"] == 1 else f"{found['cases']} recorded cases"


def parity(name: str) -> str:
    """What was compared with the authors' code, and how near it came."""
    found = PARITY["mechanisms"].get(name)
    no_code = "Its authors published no code that could be run"
    if not found:
        return f"{no_code}, so there are no recorded numbers; its tests hold it to the equations."
    own = [f"`{source}` ({count})" for source, count in found["sources"].items() if source != "equations"]
    equations = found["sources"].get("equations", 0)
    sources = own + ([f"the paper's equations, as loops in float64 ({equations})"] if equations else [])
    machine, limits = PARITY["machine"], PARITY["limits"]
    gradients = f", gradients within {found['gradients']:.0e}" if found["gradients"] else ""
    return " ".join(
        [
            *([] if own else [f"{no_code}; the paper's equations stand in for it."]),
            f"{cases(found)} of weights, inputs, outputs and gradients, from {', '.join(sources)}.",
            f"Repeated on {PARITY['created'][:10]} on {machine['processor']} with torch {machine['torch']}:",
            f"outputs within {found['outputs']:.0e} of the largest value{gradients}",
            f"(allowed: {limits['outputs']:.0e} and {limits['gradients']:.0e}).",
            f"`regard verify {name}` [repeats them on your machine](../verify.md).",
        ]
    )
