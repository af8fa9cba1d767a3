"""Small models, trained on demand in the background and kept in the cache folder."""

import contextlib
import hashlib
import queue
import shutil
import threading
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regard.explore.choice import DIM, Choice, takes
from regard.explore.lessons import Repeats, Shapes, Text
from regard.tasks.cache import cache_folder
from regard.tasks.documents import InputError
from regard.tasks.task import Task
from regard.train.budget import Budget
from regard.train.fitting import fit, is_fitted, read_fitted, sentence
from regard.train.trainer import DivergedError, Trainer

Kind = Literal["text", "sequence", "image"]
KINDS: tuple[Kind, ...] = ("text", "sequence", "image")
DEPTH = 2
RATES = {"text": 3e-3, "sequence": 1e-2, "image": 3e-3}
FORMAT = 1
"""Of the lessons and the models; another one leaves the old files alone."""


class Turn:
    """One computation at a time: times are not disturbed, and random states are nobody else's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def taken(self) -> Generator[None]:
        """Wait for the turn, and have it."""
        with self._lock:
            yield

    def offer(self) -> None:
        """Let somebody else have it for once; called by who has it."""
        self._lock.release()
        threading.Event().wait(0.001)  # who waits gets it now, as nobody else asks for it
        self._lock.acquire()


@dataclass
class State:
    """How far a training is.

    Attributes:
        status: "untrained", "waiting", "training", "trained" or "failed".
        share: of the budget that is spent.
        words: for people.
    """

    status: str = "untrained"
    share: float = 0.0
    words: str = ""


class Trainings:
    """The models of this page.

    Args:
        budget: of each training.
        turn: what trainings share with everything else that computes.
    """

    def __init__(self, budget: Budget, turn: Turn) -> None:
        self.budget, self.turn = budget, turn
        self._states: dict[Path, State] = {}
        self._jobs: queue.Queue[tuple[Path, Choice, Kind]] = queue.Queue()
        self._door = threading.Lock()
        threading.Thread(target=self._work, name="explore trainings", daemon=True).start()

    def state(self, choice: Choice, kind: Kind) -> State:
        """How far the training of this choice is; from the cache folder where it is not from now.

        Raises:
            InputError: a mechanism that does not work on this kind of input.
        """
        if reason := hindrance(choice, kind):
            raise InputError(reason)
        folder = self._folder(choice, kind)
        with self._door:
            if folder not in self._states and (kept := _kept(folder)) is not None:
                self._states[folder] = State("trained", 1.0, sentence(kept[1]))
            return self._states.get(folder, State())

    def start(self, choice: Choice, kind: Kind) -> State:
        """Ask for the training; nothing happens where it was asked for already.

        Raises:
            InputError: as :meth:`state`, or parameters that the mechanism refuses.
        """
        found = self.state(choice, kind)
        if found.status in ("waiting", "training", "trained"):
            return found
        with self.turn.taken():
            _model(choice, kind, _task(choice, kind))
        folder = self._folder(choice, kind)
        with self._door:
            self._states[folder] = State("waiting", 0.0, "waits for its turn")
        self._jobs.put((folder, choice, kind))
        return self._states[folder]

    def model(self, choice: Choice, kind: Kind) -> tuple[nn.Module, Task]:
        """The trained model where there is one, else one with its first weights; and its task.

        Raises:
            InputError: as :meth:`start`.
        """
        trained = self.state(choice, kind).status == "trained"
        folder, task = self._folder(choice, kind), _task(choice, kind)
        model = _model(choice, kind, task)
        if trained:
            try:
                model.load_state_dict((_kept(folder) or ({}, {}))[0])
            except RuntimeError:  # somebody deleted it, or it is of another version of the mechanism
                shutil.rmtree(folder, ignore_errors=True)
                self._states.pop(folder, None)
        return model.eval(), task

    def _folder(self, choice: Choice, kind: Kind) -> Path:
        text = f"{kind}:{choice.key}:{self.budget}"
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return cache_folder() / "explore" / f"{FORMAT}-{kind}-{choice.name}-{digest}"

    def _work(self) -> None:
        while True:
            folder, choice, kind = self._jobs.get()
            try:
                with self.turn.taken():
                    self._train(folder, choice, kind)
            except (InputError, DivergedError) as error:
                self._states[folder] = State("failed", 0.0, str(error))
            except Exception as error:  # the page must hear of it, and go on
                self._states[folder] = State("failed", 0.0, f"{type(error).__name__}: {error}")

    def _train(self, folder: Path, choice: Choice, kind: Kind) -> None:
        task = _task(choice, kind)

        def tell(trainer: Trainer, loss: float) -> None:
            share = min(1.0, trainer.spent)
            words = f"step {trainer.progress.steps:,}, loss {loss * task.loss_scale:.2f} {task.loss_unit}"
            self._states[folder] = State("training", share, words)
            self.turn.offer()

        torch.manual_seed(0)
        facts = {"kind": "explore", "data": task.name, "choice": choice.key}
        fit(_model(choice, kind, task), task, folder, self.budget, rate=RATES[kind], facts=facts, tell=tell, every=1e9)
        self._states[folder] = State("trained", 1.0, sentence(read_fitted(folder, "explore")[1]))


def _kept(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Weights and facts of a finished training; a damaged one is thrown away, for it can be made again."""
    try:
        return read_fitted(folder, "explore") if is_fitted(folder) else None
    except InputError:
        shutil.rmtree(folder, ignore_errors=True)
        return None


def hindrance(choice: Choice, kind: str) -> str:
    """Why the mechanism has no map of this kind of input; empty where it has one.

    Example:
        >>> hindrance(Choice("halonet"), "text")
        'halonet works on maps of pixels: choose Image above to see where it looks'
    """
    data = choice.card.data
    if data == "pair":
        return (
            f"{choice.name} attends from one input to another, so it has no map of a single {kind}: "
            "below is what it does to two random ones"
        )
    if data == "map" and kind != "image":
        return f"{choice.name} works on maps of pixels: choose Image above to see where it looks"
    return ""


def _task(choice: Choice, kind: Kind) -> "Text | Repeats | Shapes":
    if kind == "image":
        return Shapes()
    return (Text if kind == "text" else Repeats)(causal=choice.causal)


def _model(choice: Choice, kind: Kind, task: Task) -> nn.Module:
    """The model that learns, with its first weights.

    Raises:
        InputError: parameters that the mechanism refuses.
    """
    options = dict(choice.options)
    about = choice.card
    if kind == "image" and about.causal is not None and (about.data != "map" or takes(choice.name, "causal")):
        options["causal"] = choice.causal
    try:
        torch.manual_seed(0)
        model = task.model(DIM, DEPTH, choice.num_heads, choice.name, **options)
        probe = next(iter(task.held_out("validation"))).first(1)
        with torch.no_grad():
            model.eval()(probe.tokens)
        return model.train()
    except (ValueError, TypeError, NotImplementedError) as error:
        raise InputError(" ".join(str(error).split())) from error
