"""Train a task's model into a folder: with checkpoints, resumed where it stopped, judged once at the end.

What the folder holds is one checkpoint of :mod:`regard.train.checkpoint`. Its facts say what was trained on what, for
how long, and, as soon as training is finished, what it reached on the test part.
"""

import json
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from regard.tasks.documents import InputError
from regard.tasks.task import Task
from regard.train.budget import Budget
from regard.train.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from regard.train.trainer import DivergedError, Trainer

Tell = Callable[[Trainer, float], None]


def fit(
    model: nn.Module,
    task: Task,
    folder: Path,
    budget: Budget,
    *,
    rate: float,
    facts: Mapping[str, Any],
    every: float = 30.0,
    tell: Tell = lambda trainer, loss: None,
    device: Literal["auto", "cpu"] = "cpu",
) -> Trainer:
    """Train until the budget is spent; go on where the folder has an unfinished training, return where it is finished.

    Args:
        model: in training mode; its weights are replaced by those of the folder where there are any.
        task: as the trainer takes it; its test part is judged once, at the end.
        folder: made if it is not there.
        budget: of the whole training, with what was done before.
        rate: the peak learning rate.
        facts: what was trained on what, as JSON: ``kind`` (such as "speech") and ``data`` at least.
        every: seconds between checkpoints; the last step is always kept, also that before a Ctrl-C.
        tell: called after each step with the trainer and the loss.
        device: as the trainer takes it.

    Returns:
        The trainer, with the trained model.

    Raises:
        InputError: the folder holds another training, a damaged one, or no folder can be there.
        DivergedError: the loss is no number any more; the checkpoint before that stays.
        KeyboardInterrupt: Ctrl-C, after the step was finished and kept.

    Example:
        >>> import tempfile
        >>> from regard.tasks.recall import Recall
        >>> task = Recall(length=8, batch=2, seed=0)
        >>> model = task.model(8, 1, 2, "full")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     facts = {"kind": "recall", "data": "drawn pairs"}
        ...     _ = fit(model, task, Path(folder), Budget(steps=2), rate=1e-3, facts=facts)
        ...     weights, told = read_fitted(Path(folder), "recall")
        >>> told["training"]["steps"]
        2
    """
    known = json.loads(json.dumps({**facts, "budget": str(budget)}))
    found = _found(folder)
    trainer = Trainer(model, task, budget, rate=rate, device=device)
    if found is not None:
        _check_same(folder, found[1], known)
        try:
            trainer.resume(*found)
        except CheckpointError as error:
            raise InputError(f"{folder}: {error}; give another folder") from error
        if found[1]["fitted"]["test"] is not None:
            return trainer
    with _keeping(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        _train(trainer, folder, known, every, tell)
        judged = trainer.judge("test")
    except DivergedError as error:
        raise DivergedError(f"training into {folder} diverged: {error}; delete it to start again") from error
    _keep(trainer, folder, known, {task.metric.name: judged.quality, **judged.further})
    return trainer


def is_fitted(folder: Path) -> bool:
    """Is there a finished training in the folder?

    Raises:
        InputError: what is there is damaged, or no training of this kind.
    """
    found = _found(folder)
    return found is not None and found[1]["fitted"]["test"] is not None


def read_fitted(folder: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`fit` made.

    Args:
        folder: as it was given to :func:`fit`.
        kind: of model that is wanted.

    Returns:
        The model's weights, for ``load_state_dict``; and the facts, with ``training`` beside what was given:
        ``{"budget": ..., "steps": ..., "seconds": ..., "test": {name of a figure: value, ...}}``.

    Raises:
        InputError: the folder holds no training, an unfinished one, or one of another kind.
    """
    found = _found(folder)
    if found is None:
        raise InputError(f"{folder} holds no trained model")
    tensors, header = found
    fitted = header["fitted"]
    if fitted["facts"].get("kind") != kind:
        raise InputError(f"{folder} holds a model of {fitted['facts'].get('kind')}, not of {kind}: give another folder")
    if fitted["test"] is None:
        spent = f"{header['progress']['steps']:,} steps"
        raise InputError(f"{folder} holds an unfinished training of {spent}: go on with it first")
    training = {name: header["progress"][name] for name in ("steps", "seconds")}
    weights = {name.removeprefix("model/"): tensor for name, tensor in tensors.items() if name.startswith("model/")}
    facts = {**fitted["facts"], "training": {"budget": fitted["facts"]["budget"], **training, "test": fitted["test"]}}
    return weights, {name: value for name, value in facts.items() if name != "budget"}


def sentence(facts: Mapping[str, Any]) -> str:
    """What :func:`read_fitted` told, in one line to stand beside every answer.

    Example:
        >>> training = {"budget": "60 s", "steps": 1234, "seconds": 60.0, "test": {"word error rate": 0.25}}
        >>> sentence({"kind": "speech", "data": "553 prompts", "training": training})
        'trained on 553 prompts for 60 s (1,234 steps); held out: word error rate 0.250'
    """
    training = facts["training"]
    scores = ", ".join(f"{name} {value:.3f}" for name, value in training["test"].items())
    length = training["budget"] if training["budget"].endswith(" s") else f"{training['seconds']:.0f} s"
    return f"trained on {facts['data']} for {length} ({training['steps']:,} steps); held out: {scores}"


def _train(trainer: Trainer, folder: Path, known: dict[str, Any], every: float, tell: Tell) -> None:
    """Step until the budget is spent; what was done is kept every so often, and before a Ctrl-C takes effect."""
    kept = time.monotonic()
    with _deferred_interrupt() as asked:
        while trainer.spent < 1:
            loss = trainer.step()
            tell(trainer, loss)
            if asked() or trainer.spent >= 1 or time.monotonic() - kept >= every:
                _keep(trainer, folder, known, None)
                kept = time.monotonic()
            if asked():
                raise KeyboardInterrupt


def _keep(trainer: Trainer, folder: Path, known: dict[str, Any], test: dict[str, float] | None) -> None:
    tensors, progress = trainer.state()
    with _keeping(folder):
        write_checkpoint(folder, tensors, {**progress, "fitted": {"facts": known, "test": test}})


@contextmanager
def _keeping(folder: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror}") from error


def _found(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The checkpoint of a training in the folder."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    try:
        found = read_checkpoint(folder)
    except (CheckpointError, OSError) as error:
        raise InputError(f"{error}; delete {folder} to train again") from error
    if found is not None and "fitted" not in found[1]:
        raise InputError(f"{folder} holds a checkpoint of something else: give another folder")
    return found


def _check_same(folder: Path, header: dict[str, Any], known: dict[str, Any]) -> None:
    there: dict[str, Any] = header["fitted"]["facts"]
    other = [name for name in known | there if known.get(name) != there.get(name)]
    if other:
        has = ", ".join(f"{name} {there.get(name)!r}" for name in other)
        wanted = ", ".join(f"{name} {known.get(name)!r}" for name in other)
        raise InputError(
            f"{folder} holds a training with {has}, not {wanted}: ask for the same, or give another folder"
        )


@contextmanager
def _deferred_interrupt() -> Generator[Callable[[], bool]]:
    """Ctrl-C waits for the end of a step, for half a step is no state to go on from; the second one does not wait."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: object) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)
