"""The tables of the page: the leaderboard, and quality at equal steps and equal time."""

from typing import Any

from regard.race.leaderboard import bar_line, baselines_line, behind, figure, further, megabytes, milliseconds, quality
from regard.race.page.parts import note, row, section, sentence, table, words_row

_LEARNED = {True: "learned", False: "not learned", None: ""}


def leaderboard(told: dict[str, Any]) -> str:
    """All entrants, the best first; then what is marked, what is absent, and what needs no attention."""
    better = "less" if told["metric"]["lower_is_better"] else "more"
    heads = [
        "mechanism",
        f"{told['metric']['name']} ({better} is better)",
        *further(told),
        "behind the best",
        "training positions/s",
        "ms per step = attention + rest",
        "peak MB above base",
        "parameters",
        "steps",
    ]
    notes = [f"* {entry['label']} is {entry['mark']}." for entry in told["entrants"] if entry["mark"]]
    notes.append(sentence(baselines_line(told)))
    if told.get("bar"):
        notes.append(sentence(bar_line(told)))
    if told["absent"]:
        gone = "; ".join(f"{entry['name']}: {entry['reason']}" for entry in told["absent"])
        notes.append(f"Not in the race: {gone}.")
    return section("Leaderboard", table(heads, [_row(entry, told) for entry in told["entrants"]]), *map(note, notes))


def published(told: dict[str, Any]) -> str:
    """What others reached; empty where nobody has published anything that can stand beside this task."""
    found = told.get("published")
    if not found:
        return ""
    digits = told["metric"]["digits"] + 1
    rows = [row([name, f"{value:.{digits}f}"]) for name, value in found["rows"]]
    heads = ["model", f"{told['metric']['name']}, as published"]
    return section("Published figures", note(f"{found['source']}. {found['remark']}"), table(heads, rows))


def equal(told: dict[str, Any]) -> str:
    """Validation quality of all where the slowest ended; empty if nobody got there."""
    digits, steps, seconds = told["metric"]["digits"], told["equal_steps"], told["equal_seconds"]
    if steps["at"] is None:
        return ""
    rows = [
        row([label, *(_number(axis["quality"].get(label), digits) for axis in (steps, seconds))])
        for label in steps["quality"]
    ]
    heads = ["mechanism", f"after {steps['at']:,.0f} steps", f"after {seconds['at']:,.3g} s of training"]
    remark = (
        f"{told['metric']['name'].capitalize()} on the validation part, read from the curves where the entrant that "
        "came least far ended. The learning rate follows each entrant's own budget, so where a faster entrant is read "
        "before its end, it stands at an earlier point of its schedule."
    )
    return section("Equal steps, equal time", table(heads, rows), note(remark))


def _row(entry: dict[str, Any], told: dict[str, Any]) -> str:
    name = f"{entry['label']}{' *' if entry['mark'] else ''}\n{entry['title']}"
    if entry["status"] != "finished":
        words = f"{entry['status']}: {entry['error']}" if entry["error"] else entry["status"]
        return words_row([name, quality(entry, told)], words, 6 + len(further(told)))
    cells = [
        name,
        f"{quality(entry, told)}\n{_LEARNED[entry.get('learned')]}",
        *(figure(entry, other, told) for other in further(told)),
        behind(entry, told).replace(" [", "\n["),
        f"{entry['tokens_per_second']:,.0f}",
        milliseconds(entry).replace(" = ", "\n"),
        megabytes(entry),
        f"{entry['parameters']:,}",
        f"{entry['steps']:,}",
    ]
    return row(cells, picked=entry["label"] == told["verdict"]["pick"])


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
