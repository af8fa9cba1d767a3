"""One model in training: AdamW, warm-up and cosine by the share of the budget, and a state that resumes bit for bit."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from regard.tasks.task import Part, Task
from regard.train.budget import Budget, rate_factor
from regard.train.checkpoint import CheckpointError

WEIGHT_DECAY, BETAS, CLIP = 0.1, (0.9, 0.95), 1.0


class DivergedError(RuntimeError):
    """The loss is no longer a number."""


@dataclass
class Progress:
    """What training has used up so far; ``seconds`` is training time only."""

    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0


@dataclass(frozen=True)
class Judgement:
    """Held-out quality, each example as (document, score, amount) for the bootstrap, and further figures."""

    quality: float
    units: list[tuple[str, float, float]] = field(default_factory=list[tuple[str, float, float]])
    further: dict[str, float] = field(default_factory=dict[str, float])


class Trainer:
    """Trains ``model`` on ``task`` until ``budget`` is spent.

    Args:
        model: a :class:`regard.models.transformer.TransformerEncoder` or its like; every ``loss/*`` it tells is added.
        task: batches, loss and scores.
        budget: steps or seconds.
        rate: the peak learning rate.
        device: "auto" lets Accelerate choose, "cpu" forbids it.
    """

    def __init__(
        self, model: nn.Module, task: Task, budget: Budget, *, rate: float, device: Literal["auto", "cpu"] = "auto"
    ) -> None:
        self.accelerator = Accelerator(cpu=device == "cpu")
        self.task, self.budget, self.rate = task, budget, rate
        decayed = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
        plain = [parameter for parameter in model.parameters() if parameter.ndim < 2]
        groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=rate, betas=BETAS)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.progress = Progress()

    @property
    def spent(self) -> float:
        """The share of the budget that is used up."""
        return self.budget.spent(steps=self.progress.steps, seconds=self.progress.seconds)

    def step(self) -> float:
        """One step of training.

        Returns:
            The loss in nats, before the step.

        Raises:
            DivergedError: it is not finite.
        """
        start = time.perf_counter()
        batch = self.task.batch(self.progress.steps).to(self.accelerator.device)
        for group in self.optimizer.param_groups:
            # half a step ahead: at the very start the rate would be 0, and the first step of a budget in seconds lost
            group["lr"] = self.rate * rate_factor(self._middle_of_step())
        prediction, told = self.model(batch.tokens, **batch.options, return_aux=True)
        loss = self.task.loss(prediction, batch)
        extra = [value for name, value in told.items() if name.startswith("loss/")]
        self.accelerator.backward(sum(extra, loss))
        self.accelerator.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        value = loss.item()
        self.progress.steps += 1
        self.progress.tokens += batch.positions
        self.progress.seconds += time.perf_counter() - start
        if value != value or abs(value) == float("inf"):
            raise DivergedError(f"the loss is {value} at step {self.progress.steps:,}")
        return value

    def judge(self, part: Part) -> Judgement:
        """Quality on a held-out part; leaves every random state as it was."""
        names, amounts, rows, sums = list[str](), list[float](), list[Tensor](), dict[str, float]()
        self.model.eval()
        with torch.no_grad(), torch.random.fork_rng():
            for batch in self.task.held_out(part):
                batch = batch.to(self.accelerator.device)
                prediction = self.model(batch.tokens, **batch.options)
                rows.append(self.task.scores(prediction, batch).double().cpu())
                names += batch.units
                amounts += batch.amounts
                for name, values in self.task.further(prediction, batch).items():
                    sums[name] = sums.get(name, 0.0) + float(values.double().sum())
        self.model.train()
        scores, told = self.task.tally(torch.cat(rows))
        units = list(zip(names, scores.tolist(), amounts, strict=True))
        amount = sum(amounts)
        quality = sum(score for _, score, _ in units) / amount
        if quality != quality or abs(quality) == float("inf"):
            raise DivergedError(f"held-out {self.task.metric.name} is {quality} at step {self.progress.steps:,}")
        return Judgement(quality, units, {name: total / amount for name, total in sums.items()} | told)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and facts for a checkpoint: model, optimiser, random state, and what is used up."""
        tensors = {f"model/{name}": tensor for name, tensor in self._bare.state_dict().items()}
        for number, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{name}": value for name, value in values.items()}
        tensors["random/cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["random/cuda"] = torch.cuda.get_rng_state()
        return tensors, {"progress": asdict(self.progress)}

    def resume(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned.

        Raises:
            CheckpointError: it belongs to another model.
        """
        weights = {name.removeprefix("model/"): tensor for name, tensor in tensors.items() if name.startswith("model/")}
        try:
            self._bare.load_state_dict(weights)
        except RuntimeError as error:
            raise CheckpointError(
                f"the checkpoint belongs to another model: {str(error).splitlines()[-1].strip()}"
            ) from error
        state = self.optimizer.state_dict()
        state["state"] = {}
        for path, tensor in tensors.items():
            if path.startswith("optimizer/"):
                _, number, name = path.split("/")
                state["state"].setdefault(int(number), {})[name] = tensor
        self.optimizer.load_state_dict(state)
        torch.set_rng_state(tensors["random/cpu"])
        if "random/cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random/cuda"])
        self.progress = Progress(**facts["progress"])

    @property
    def _bare(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)

    def _middle_of_step(self) -> float:
        """The share of the budget at the middle of the coming step, judged by the mean step so far."""
        steps, seconds = self.progress.steps, self.progress.seconds
        typical = seconds / steps if steps else 0.01 * (self.budget.seconds or 0.0)
        return self.budget.spent(steps=steps, seconds=seconds) + 0.5 * self.budget.spent(steps=1, seconds=typical)
