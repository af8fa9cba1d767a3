"""The terminal side of a race."""

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.console import Console

from regard.race.discipline import Prepared
from regard.race.entrants import Field
from regard.race.leaderboard import show
from regard.race.progress import Bars
from regard.race.runner import Watcher


class Display:
    """Says what will be done, shows the bars, prints the leaderboard."""

    def __init__(self) -> None:
        self.console = make_console()

    def say(self, line: str) -> None:
        """One line of text."""
        say(self.console, line)

    def watch(self, field: Field, prepared: Prepared) -> AbstractContextManager[Watcher]:
        """One bar per entrant."""
        return Bars(self.console, field.entrants, prepared.task.metric, prepared.task.loss_unit)

    def finish(self, results: dict[str, Any], folder: Path) -> None:
        """The leaderboard and where the files are; the pick is the last line."""
        if results["interrupted"]:
            self.say(f"stopped; go on with: {results['command']} --resume --out {folder}")
        self.say(f"{folder / 'results.json'}  {folder / 'report.html'}")
        show(results, self.console)


def make_console() -> Console:
    """A console that does not break tables where there is no terminal to tell its width."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        return Console(width=160)
    return console


def say(console: Console, line: str) -> None:
    """One line as it is, however long: brackets in names are no markup, and nothing is broken or coloured."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)
