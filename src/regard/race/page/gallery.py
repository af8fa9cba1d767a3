"""A few held-out examples: what they show, what is true, what everybody answered, and where they looked."""

from html import escape
from typing import Any

from regard.race.page.parts import note, section


def gallery(told: dict[str, Any]) -> str:
    """A table with a column for each example; empty for tasks without anything to see."""
    shown = told["data"].get("gallery")
    entries = [entry for entry in told["entrants"] if entry.get("shown")]
    if not shown or not entries:
        return ""
    remark = (
        "The same examples of the test part for everybody. Below each answer stands where it came from: "
        f"{shown['looking']}."
    )
    rows = [_row("input", shown["inputs"]), _row("truth", shown["truths"])]
    rows += [row for entry in entries for row in _entrant(entry)]
    legend = "".join(
        f'<span class="swatch"><i style="background:{escape(colour, quote=True)}"></i>{escape(name)}</span>'
        for name, colour in shown["legend"]
    )
    table = f'<div class="scroll"><table class="gallery"><tbody>{"".join(rows)}</tbody></table></div>'
    return section("What it sees", note(remark), f"<p>{legend}</p>" if legend else "", table)


def _entrant(entry: dict[str, Any]) -> list[str]:
    found = entry["shown"]
    if "error" in found:
        return [f'<tr><th>{escape(entry["label"])}</th><td colspan="99">no answers: {escape(found["error"])}</td></tr>']
    return [_row(entry["label"], found["answers"]), _row("where it looked", found["looked"], small=True)]


def _row(title: str, sights: list[dict[str, Any]], *, small: bool = False) -> str:
    words = escape(title).replace(":", ":<wbr>").replace(",", ",<wbr>")  # where a long label may go on below
    heading = f"<small>{words}</small>" if small else words
    return f"<tr><th>{heading}</th>{''.join(_cell(title, sight) for sight in sights)}</tr>"


def _cell(title: str, sight: dict[str, Any]) -> str:
    kind = {True: ' class="right"', False: ' class="wrong"', None: ""}[sight["right"]]
    words = {True: "✓ ", False: "✗ ", None: ""}[sight["right"]] + sight["words"]
    source = f"data:image/png;base64,{sight['picture']}"
    picture = f'<img src="{source}" alt="{escape(title, quote=True)}">' if sight["picture"] else ""
    return f"<td{kind}>{picture}{f'<small>{escape(words)}</small>' if words else ''}</td>"
