"""What one sees while the race runs: one bar per entrant, or plain lines where there is no terminal."""

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from regard.race.entrants import Entrant
from regard.race.outcome import Outcome
from regard.tasks.task import Metric


class Bars:
    """One bar per entrant with loss, tokens per second and the time that is left; a context manager.

    Args:
        console: where to draw; without a terminal every point of the curve becomes a line instead.
        entrants: all of them, so that those to come are seen.
        metric: how quality is written.
        unit: of the training loss ("bits per byte", or "nats" for a classifier).
    """

    def __init__(self, console: Console, entrants: tuple[Entrant, ...], metric: Metric, unit: str) -> None:
        self.console, self.metric, self.unit = console, metric, unit
        self.live = console.is_terminal
        self.progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("[progress.percentage]{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[told]}"),
            console=console,
            disable=not self.live,
            expand=True,
        )
        self.tasks: dict[str, TaskID] = {
            entrant.label: self.progress.add_task(escape(entrant.label), total=1.0, start=False, told="")
            for entrant in entrants
        }

    def __enter__(self) -> "Bars":
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def started(self, entrant: Entrant) -> None:
        """Start the entrant's bar."""
        self.progress.start_task(self.tasks[entrant.label])
        self._told(entrant, "starting")
        self._line(f"{entrant.label}: starting")

    def event(self, entrant: Entrant, event: dict[str, Any]) -> None:
        """Show where training is."""
        self.progress.update(self.tasks[entrant.label], completed=min(1.0, event["spent"]))
        speed = event["tokens"] / event["seconds"] if event["seconds"] else 0.0
        if event["kind"] == "step":
            left = event["seconds"] * (1 / event["spent"] - 1) if event["spent"] else 0.0
            told = f"loss {event['loss']:.3f} {self.unit}  {speed:>7,.0f} positions/s  {max(0.0, left):>3.0f} s left"
            self._told(entrant, told)
        elif event["kind"] == "point":
            told = f"{self.metric.name} {event['quality']:.{self.metric.digits}f}, {speed:,.0f} positions/s"
            self._line(f"{entrant.label}: step {event['steps']:,}, {event['seconds']:.1f} s, {told}")
        elif event["kind"] == "resumed":
            self._line(f"{entrant.label}: going on from step {event['steps']:,}")

    def ended(self, entrant: Entrant, outcome: Outcome) -> None:
        """Show how it ended."""
        if outcome.quality is None:
            told = f"{outcome.status}: {outcome.error}" if outcome.error else outcome.status
        else:
            told = f"{self.metric.name} {outcome.quality:.{self.metric.digits}f}  after {outcome.steps:,} steps"
            self.progress.update(self.tasks[entrant.label], completed=1.0)
        self._told(entrant, told)
        self._line(f"{entrant.label}: {told}")

    def _told(self, entrant: Entrant, text: str) -> None:
        self.progress.update(self.tasks[entrant.label], told=escape(text))

    def _line(self, text: str) -> None:
        if not self.live:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)
