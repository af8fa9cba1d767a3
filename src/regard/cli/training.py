"""Training as a command shows it: a bar with the loss and the time left, or lines where there is no terminal."""

from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from torch import nn

from regard.cli.display import say
from regard.tasks.documents import InputError
from regard.tasks.task import Task
from regard.train.budget import Budget
from regard.train.fitting import fit
from regard.train.trainer import DivergedError, Trainer

LINES = 10
"""Without a terminal: one line each time this share of the budget is spent."""


def train_shown(
    console: Console,
    model: nn.Module,
    task: Task,
    folder: Path,
    budget: Budget,
    *,
    rate: float,
    facts: dict[str, Any],
    every: float = 30.0,
    device: Literal["auto", "cpu"] = "cpu",
) -> Trainer:
    """:func:`regard.train.fitting.fit` with what one wants to see of it.

    Args:
        console: where to draw.
        model, task, folder, budget, rate, facts, every, device: of the training.

    Raises:
        InputError: what is in the folder does not fit, or training diverged.
        KeyboardInterrupt: Ctrl-C; what was done is kept, and it was said how to go on.
    """
    shown = _Shown(console, task, budget)
    say(console, f"training into {folder} for {budget}: {facts['data']}")
    try:
        with shown.progress:
            trainer = fit(model, task, folder, budget, rate=rate, facts=facts, every=every, tell=shown, device=device)
    except DivergedError as error:
        raise InputError(str(error)) from error
    except KeyboardInterrupt:
        if (folder / "checkpoint.json").exists():
            say(console, f"what was learned is kept in {folder}: the same command goes on from there")
        raise
    return trainer


class _Shown:
    """Called after each step."""

    def __init__(self, console: Console, task: Task, budget: Budget) -> None:
        self.console, self.task, self.budget = console, task, budget
        self.lines: int | None = None
        self.loss = 0.0
        live = console.is_terminal
        self.progress = Progress(
            BarColumn(bar_width=None),
            TextColumn("[progress.percentage]{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[told]}"),
            console=console,
            disable=not live,
            expand=True,
        )
        self.bar = self.progress.add_task("", total=1.0, told="")

    def __call__(self, trainer: Trainer, loss: float) -> None:
        self.loss = loss if self.lines is None else 0.95 * self.loss + 0.05 * loss
        spent, done = min(1.0, trainer.spent), trainer.progress
        shown = f"loss {self.loss * self.task.loss_scale:.3f} {self.task.loss_unit}"
        left = done.seconds * (1 / spent - 1)
        told = f"step {done.steps:,}  {shown}  {left:>3.0f} s left"
        self.progress.update(self.bar, completed=spent, told=told)
        line = int(spent * LINES)
        if not self.console.is_terminal and line != self.lines:
            say(self.console, f"{spent:4.0%}  {told}")
        self.lines = line
