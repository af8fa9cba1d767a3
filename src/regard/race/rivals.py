"""Networks that are no entrants, trained as long as one: what they reach stands among the baselines."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from regard.tasks.task import Task
from regard.train.trainer import DivergedError, Trainer

if TYPE_CHECKING:
    from regard.race.settings import Settings


def trained(settings: "Settings", task: Task, make: Callable[[], nn.Module]) -> float | None:
    """The quality of a rival on the test part after the budget of an entrant; None where it did not get through it.

    Args:
        settings: of the race, whose seed draws the rival too.
        task: what it learns.
        make: makes it.
    """
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        trainer = Trainer(make(), task, settings.budget, rate=settings.learning_rate, device=settings.device)
        try:
            while trainer.spent < 1:
                trainer.step()
            return trainer.judge("test").quality
        except DivergedError:
            return None
