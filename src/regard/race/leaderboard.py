"""The leaderboard in the terminal, made from the content of ``results.json``."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def show(results: dict[str, Any], console: Console) -> None:
    """Print the published figures, leaderboard, absentees, baselines and the final line."""
    if published := results.get("published"):
        _say(console, published_line(results))
        _say(console, published["remark"])
    console.print(_table(results))
    for entry in results["entrants"]:
        if entry["mark"]:
            _say(console, f"* {entry['label']} is {entry['mark']}")
        if entry["error"]:
            _say(console, f"{entry['label']} {entry['status']}: {entry['error']}")
    for entry in results["absent"]:
        _say(console, f"not in the race: {entry['name']}: {entry['reason']}")
    _say(console, baselines_line(results))
    if results.get("bar"):
        _say(console, bar_line(results))
    _say(console, pick_line(results), style="bold")


def baselines_line(results: dict[str, Any]) -> str:
    """What needs no attention, in one line."""
    digits = results["metric"]["digits"]
    parts = [
        f"{name} {value:.{digits}f}" if value is not None else f"{name} not measured (the text is too large for that)"
        for name, value in results["baselines"].items()
    ]
    return f"without attention, {results['metric']['name']}: {', '.join(parts)}"


def bar_line(results: dict[str, Any]) -> str:
    """Who has learned anything at all, and what that means."""
    bar = results["bar"]
    told = {True: list[str](), False: list[str](), None: list[str]()}
    for entry in results["entrants"]:
        told[entry["learned"]].append(entry["label"])
    passed, failed = (", ".join(told[learned]) or "none" for learned in (True, False))
    digits = results["metric"]["digits"]
    height = f"{bar['value'] + bar['margin']:.{digits}f}"
    items = f"{bar['items']:,} {results['metric']['items']}"
    if bar["lower_is_better"]:
        rule = f"less than {height}: the baseline {bar['baseline']!r} on {items}"
    else:
        rule = f"more than {height}: the baseline {bar['baseline']!r} and three standard errors of it on {items}"
    return f"learned: {passed}; not learned: {failed} (learned is {rule})"


def published_line(results: dict[str, Any]) -> str:
    """What others reached, in one line."""
    published, digits = results["published"], results["metric"]["digits"]
    figures = ", ".join(f"{name} {value:.{digits + 1}f}" for name, value in published["rows"])
    return f"published, {results['metric']['name']} ({published['source']}): {figures}"


def pick_line(results: dict[str, Any]) -> str:
    """The final line: which mechanism, why, and the call that makes it."""
    verdict = results["verdict"]
    if not verdict["pick"]:
        return f"no pick: {verdict['reason']}"
    return f"pick {verdict['pick']}: {verdict['reason']}\n  {verdict['call']}"


def quality(entry: dict[str, Any], results: dict[str, Any]) -> str:
    """Held-out quality; in brackets the last point of the curve of those that did not finish."""
    digits = results["metric"]["digits"]
    if entry["quality"] is not None:
        return f"{entry['quality']:.{digits}f}"
    return f"({entry['curve'][-1]['quality']:.{digits}f})" if entry["curve"] else "-"


def further(results: dict[str, Any]) -> list[str]:
    """The names of the other figures that entrants have."""
    return list(dict.fromkeys(name for entry in results["entrants"] for name in entry.get("further", ())))


def figure(entry: dict[str, Any], name: str, results: dict[str, Any]) -> str:
    """One of the other figures."""
    value = entry.get("further", {}).get(name)
    return "-" if value is None else f"{value:.{results['metric']['digits']}f}"


def milliseconds(entry: dict[str, Any]) -> str:
    """Of a training step: the mean, and how a few profiled steps divide."""
    if not entry["steps"]:
        return "-"
    mean = 1000 * entry["seconds"] / entry["steps"]
    parts = entry["milliseconds"]
    if not parts:
        return f"{mean:.0f}"
    share = parts["attention"] / (parts["attention"] + parts["rest"])
    return f"{mean:.0f} = {mean * share:.0f} + {mean * (1 - share):.0f}"


def megabytes(entry: dict[str, Any]) -> str:
    """Peak memory above the process's base."""
    return f"{entry['memory_above_base'] / 1e6:,.0f}" if entry["memory_above_base"] else "-"


def behind(entry: dict[str, Any], results: dict[str, Any]) -> str:
    """How far behind the best, with its 95 % interval."""
    digits = results["metric"]["digits"]
    for gap in results["verdict"]["differences"]:
        if gap["label"] == entry["label"]:
            return f"{gap['value']:+.{digits}f} [{gap['low']:+.{digits}f}, {gap['high']:+.{digits}f}]"
    return "best" if entry["quality"] is not None else ""


def _table(results: dict[str, Any]) -> Table:
    table = Table(title=f"{results['data']['name']}", title_justify="left", caption_justify="left", expand=False)
    better = "less" if results["metric"]["lower_is_better"] else "more"
    table.add_column("mechanism", no_wrap=True)
    for name in (
        f"{results['metric']['name']}\n({better} is better)",
        *further(results),
        "behind the best\n[95 % interval]",
        "training\npositions/s",
        "ms per step\n= attention + rest",
        "peak MB\nabove base",
        "parameters",
        "steps",
    ):
        table.add_column(escape(name), justify="right")
    for entry in results["entrants"]:
        label = entry["label"] + (" *" if entry["mark"] else "")
        if entry["status"] in ("finished", "interrupted") and entry["steps"]:
            gap = behind(entry, results) if entry["quality"] is not None else entry["status"]
            others = [figure(entry, name, results) for name in further(results)]
            cells = [quality(entry, results), *others, gap, f"{entry['tokens_per_second']:,.0f}", milliseconds(entry)]
            cells += [megabytes(entry), f"{entry['parameters']:,}", f"{entry['steps']:,}"]
        else:
            cells = [quality(entry, results), entry["status"]]
        table.add_row(escape(label), *(escape(cell) for cell in cells))
    return table


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
