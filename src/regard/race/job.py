"""One entrant's whole run: build, resume, train, judge, measure; told step by step through ``emit``."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regard.race.build import build
from regard.race.entrants import Entrant
from regard.race.looking import choose_passage, look
from regard.race.outcome import Outcome
from regard.race.settings import Settings
from regard.race.showing import show
from regard.tasks.documents import InputError
from regard.train.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from regard.train.clock import AttentionClock, device_memory_peak, memory_now, memory_peak, now
from regard.train.trainer import Judgement, Trainer

CURVE = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
"""Shares of the budget at which the held-out curve is drawn."""

CHECKPOINT_SECONDS = 3.0
PROFILED_STEPS = 3

Emit = Callable[[dict[str, Any]], None]


class Job:
    """One entrant at work in its folder.

    Args:
        settings: of the race.
        entrant: who runs.
        folder: for checkpoints; it exists.
        fingerprint: of the data that the race was started with; empty: not compared.
        emit: told every step, every point of the curve and every checkpoint.
        stopped: asked before every step; True ends the run with a checkpoint.
    """

    def __init__(
        self,
        settings: Settings,
        entrant: Entrant,
        folder: Path,
        *,
        fingerprint: str = "",
        emit: Emit = lambda event: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.settings, self.entrant, self.folder = settings, entrant, folder
        self.emit, self.stopped = emit, stopped
        prepared = settings.discipline.prepare(settings)
        if fingerprint and prepared.fingerprint != fingerprint:
            raise InputError("the text has changed since the race began")
        warm_up()
        self.passage = choose_passage(prepared.task, settings.num_heads)
        self.outcome = Outcome(entrant.label, memory={"base": memory_now()})
        model = build(entrant, settings, prepared.task)
        self.outcome.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.trainer = Trainer(
            model, prepared.task, settings.budget, rate=settings.learning_rate, device=settings.device
        )
        self.outcome.device = str(self.trainer.accelerator.device)
        self._saved = time.perf_counter()
        self._resume()
        self._tell("ready", pid=os.getpid(), parameters=self.outcome.parameters)

    def run(self) -> Outcome:
        """Train to the end of the budget, or until told to stop."""
        while self.trainer.spent < 1 and not self.stopped():
            loss = self.trainer.step()
            self._tell("step", loss=loss * self.trainer.task.loss_scale)
            if self.trainer.spent >= CURVE[min(len(self.outcome.curve), len(CURVE) - 1)]:
                self._point()
                self._save()
            elif time.perf_counter() - self._saved > CHECKPOINT_SECONDS:
                self._save()
        if self.trainer.spent < 1:
            self.outcome.status = "interrupted"
            self._save()
        else:
            self._finish()
        return self.outcome

    def _finish(self) -> None:
        """Judge on the test part, look and measure; memory first, because none of this is part of training."""
        self._save()
        self.outcome.memory |= {"peak": memory_peak(), "device": device_memory_peak()}
        judgement = self._judge("test")
        self.outcome.quality, self.outcome.units = judgement.quality, judgement.units
        self.outcome.further = judgement.further
        self._count()
        if self.passage:
            self.outcome.attention_map = look(self.trainer.model, self.passage)
        if gallery := self.trainer.task.gallery():
            self.outcome.shown = show(self.trainer.model, gallery)
        self.outcome.milliseconds = profile(self.trainer)

    def _point(self) -> None:
        """Add a point to the curve; if a step went past several shares, they share the point."""
        quality = self._judge("validation").quality
        while len(self.outcome.curve) < len(CURVE) and self.trainer.spent >= CURVE[len(self.outcome.curve)]:
            self.outcome.curve.append({**asdict(self.trainer.progress), "quality": quality})
        self._tell("point", quality=quality)

    def _judge(self, part: Any) -> Judgement:
        start = now()
        judgement = self.trainer.judge(part)
        self.outcome.evaluation_seconds += now() - start
        return judgement

    def _resume(self) -> None:
        """Take up the checkpoint in the folder, if there is one; a copy from another race or entrant is refused."""
        found = read_checkpoint(self.folder)
        if found is None:
            return
        tensors, facts = found
        check_owner(self.folder, facts, self.settings, self.entrant)
        self.trainer.resume(tensors, facts)
        self.outcome.curve, self.outcome.evaluation_seconds = facts["curve"], facts["evaluation_seconds"]
        self.outcome.resumed = facts["resumed"] + 1
        self._tell("resumed")

    def _save(self) -> None:
        tensors, facts = self.trainer.state()
        self._count()
        told = asdict(self.outcome)
        kept = {
            name: told[name] for name in ("label", "curve", "evaluation_seconds", "resumed", "parameters", "memory")
        }
        write_checkpoint(self.folder, tensors, {"settings": self.settings.digest, **kept, **facts})
        self._saved = time.perf_counter()
        self._tell("checkpoint")

    def _count(self) -> None:
        progress = self.trainer.progress
        self.outcome.steps, self.outcome.seconds, self.outcome.tokens = (
            progress.steps,
            progress.seconds,
            progress.tokens,
        )

    def _tell(self, kind: str, **facts: Any) -> None:
        self.emit({"kind": kind, "spent": self.trainer.spent, **asdict(self.trainer.progress), **facts})


def warm_up() -> None:
    """Take one step with a tiny model: what torch loads at its first step belongs to no entrant's time or memory."""
    with torch.random.fork_rng():
        model = nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def check_owner(folder: Path, facts: dict[str, Any], settings: Settings, entrant: Entrant) -> None:
    """Refuse a checkpoint that another race or another entrant wrote.

    Raises:
        CheckpointError: it names the folder and the owner.
    """
    if facts.get("label") != entrant.label:
        raise CheckpointError(f"the checkpoint in {folder} belongs to {facts.get('label')!r}, not to {entrant.label!r}")
    if facts.get("settings") != settings.digest:
        raise CheckpointError(f"the checkpoint in {folder} belongs to a race with other settings")


def profile(trainer: Trainer, steps: int = PROFILED_STEPS) -> dict[str, float]:
    """Milliseconds of a training step inside and outside the attention modules.

    Runs after everything else, because these are real steps: the model is worth nothing afterwards.
    """
    modules = [module for name, module in trainer.model.named_modules() if name.endswith(".attention")]
    trainer.step()
    start, inside = now(), 0.0
    with suppress(RuntimeError), AttentionClock(modules) as clock:  # a layer that modifies its input bears no hooks
        for _ in range(steps):
            trainer.step()
        inside = clock.seconds
    total = now() - start
    return {"attention": 1000 * inside / steps, "rest": 1000 * (total - inside) / steps} if inside else {}
