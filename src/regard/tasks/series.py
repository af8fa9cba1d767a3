"""Forecasting: the next steps of several variables from the last ones, as Informer measures it.

Zhou et al. 2020, arXiv:2012.07436, section 4: every variable is standardised by its mean and deviation in the training
part; a window of the past is read, and the mean squared and the mean absolute error of all variables over the horizon
are averaged over all windows whose horizon lies in the test part. Windows may begin before it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.models.forecaster import TransformerForecaster
from regard.tasks.documents import InputError
from regard.tasks.recordings import Recording
from regard.tasks.task import Batch, Metric, Part, Task, step_generator

VALIDATION_WINDOWS = 256
"""For the curves."""

JUDGED_VALUES = 1 << 21
"""Values of past and future per batch when judging."""

RIDGE = 1e-3
"""Of the linear baseline: this much of the mean square of its inputs is added to the diagonal."""

DAY = timedelta(days=1)

INFORMER = {
    ("ETTh1", 24): (0.577, 0.549),
    ("ETTh1", 48): (0.685, 0.625),
    ("ETTh1", 168): (0.931, 0.752),
    ("ETTh1", 336): (1.128, 0.873),
    ("ETTh1", 720): (1.215, 0.896),
    ("ETTh2", 24): (0.720, 0.665),
    ("ETTh2", 48): (1.457, 1.001),
    ("ETTh2", 168): (3.489, 1.515),
    ("ETTh2", 336): (2.723, 1.340),
    ("ETTh2", 720): (3.467, 1.473),
}
"""What Informer's authors published, multivariate: (recording, horizon) -> (MSE, MAE)."""


@dataclass(frozen=True)
class TimeSplit:
    """Where a recording is cut: rows 0 to ``train``, on to ``validation``, on to ``test``; and the rule in words."""

    train: int
    validation: int
    test: int
    rule: str


def split_by_time(recording: Recording) -> TimeSplit:
    """70 % to learn from, 10 % for validation, 20 % for test, in the order of time; ETT files as Informer cuts them.

    Those are known by their names, ETTh1.csv and so on, and have 12, 4 and 4 months of 30 days; the rest is left out.
    """
    rows = len(recording.values)
    kind = known_as(recording)
    if kind:
        month = 30 * (DAY // recording.step)
        if rows >= 20 * month:
            return TimeSplit(
                12 * month, 16 * month, 20 * month, "by time, as for Informer: 12, 4 and 4 months of 30 days"
            )
    train, test = int(0.7 * rows), int(0.2 * rows)
    return TimeSplit(train, rows - test, rows, "by time: the first 70 % to learn from, the last 20 % for test")


def known_as(recording: Recording) -> str:
    """ETTh1, ETTh2, ETTm1 or ETTm2, where a file of this name has the seven variables; else empty."""
    stem = recording.name.removesuffix(".csv")
    known = stem in ("ETTh1", "ETTh2", "ETTm1", "ETTm2") and recording.columns[-1] == "OT"
    return stem if known and len(recording.columns) == 7 else ""


class Forecasting(Task):
    """Forecast ``horizon`` steps of all variables from the last ``length`` steps.

    A step of the past is its standardised values followed by its time marks; a target is the standardised values of a
    step to come.

    Args:
        recording: the data.
        split: where it is cut.
        length: steps of the past.
        horizon: steps to come.
        batch: windows per step of training.
        seed: of the order of the windows.
        test_windows: judge on an even selection of so many windows of the test part; None: on all, as is usual.

    Raises:
        InputError: a part is too short for a window, or a horizon that is not positive.
    """

    metric = Metric("mean squared error", lower_is_better=True, digits=3, items="stretches of time")
    unit, loss_unit = "steps", "MSE"

    def __init__(
        self,
        recording: Recording,
        split: TimeSplit,
        *,
        length: int,
        horizon: int,
        batch: int,
        seed: int,
        test_windows: int | None = None,
    ) -> None:
        if horizon < 1:
            raise InputError(f"--horizon {horizon}: it must be 1 step or more")
        self.recording, self.split = recording, split
        self.length, self.horizon, self.rows, self.seed = length, horizon, batch, seed
        self.num_classes = len(recording.columns)
        self.judged: dict[Part, int | None] = {"validation": VALIDATION_WINDOWS, "test": test_windows}
        known = recording.values[: split.test]
        train = known[: split.train]
        self.mean, deviation = train.mean(0), train.std(0, correction=0)
        self.deviation = torch.where(deviation > 0, deviation, 1.0)  # a variable that never moves
        self.values = ((known - self.mean) / self.deviation).float()
        self.steps = torch.cat((self.values, recording.marks(split.test).float()), 1)
        bounds = {"train": (0, split.train), "validation": (split.train, split.validation)}
        bounds["test"] = (split.validation, split.test)
        self.starts = {part: self._windows(part, *rows) for part, rows in bounds.items()}

    def _windows(self, part: str, first: int, last: int) -> Int[Tensor, " W"]:
        """Where the horizons of a part begin: all of them within it, each with a past before it."""
        first_start = max(first, self.length)
        starts = torch.arange(first_start, max(first_start, last - self.horizon + 1))
        if not len(starts):
            need = self.horizon + (self.length if part == "train" else 0)
            raise InputError(
                f"the {part} part has {last - first:,} steps, but a window of --length {self.length:,} and --horizon "
                f"{self.horizon:,} needs {need:,}: choose smaller ones, or record longer"
            )
        return starts

    def model(self, dim: int, depth: int, num_heads: int, mechanism: str, **options: Any) -> nn.Module:
        """An encoder of the past with a linear head."""
        sizes = (self.steps.shape[1], self.num_classes, self.horizon)
        return TransformerForecaster(*sizes, dim, depth, num_heads, self.length, mechanism, **options)

    def batch(self, step: int) -> Batch:
        """``batch`` training windows drawn uniformly by a generator that depends on seed and step alone."""
        starts = self.starts["train"]
        chosen = torch.randint(len(starts), (self.rows,), generator=step_generator(self.seed, step))
        return self._batch(starts[chosen])

    def held_out(self, part: Part) -> Iterator[Batch]:
        """The windows of a part, or an even selection of them, in the order of time."""
        starts, limit = self.starts[part], self.judged[part]
        if limit is not None and len(starts) > limit:
            starts = starts[(torch.arange(limit) * len(starts)) // limit]
        size = max(1, JUDGED_VALUES // ((self.length + self.horizon) * self.steps.shape[1]))
        for some in starts.split(size):
            yield self._batch(some)

    def loss(self, prediction: Tensor, batch: Batch) -> Float[Tensor, ""]:
        """Mean squared error."""
        return F.mse_loss(prediction.float(), batch.targets)

    def scores(self, prediction: Tensor, batch: Batch) -> Float[Tensor, " B"]:
        """The mean squared error of each window."""
        return (prediction.double() - batch.targets).square().mean((1, 2))

    def further(self, prediction: Tensor, batch: Batch) -> dict[str, Float[Tensor, " B"]]:
        """The mean absolute error of each window."""
        return {"mean absolute error": (prediction.double() - batch.targets).abs().mean((1, 2))}

    def sizes(self) -> dict[str, tuple[int, int]]:
        """(stretches of one horizon in which windows begin their forecast, steps) of each part."""
        ends = (0, self.split.train, self.split.validation, self.split.test)
        steps = [after - before for before, after in pairwise(ends)]
        stretches = [len((starts // self.horizon).unique()) for starts in self.starts.values()]
        return dict(zip(self.starts, zip(stretches, steps, strict=True), strict=True))

    def baselines(self) -> dict[str, tuple[float, float]]:
        """(MSE, MAE) on the windows of the test part of what needs no network: see :func:`seasonal`, :func:`linear`."""
        ways: dict[str, Callable[[Tensor], Tensor]] = {"last value": seasonal(1, self.horizon)}
        day = DAY // self.recording.step
        if day > 1 and day <= self.length:
            ways["the same as a day before"] = seasonal(day, self.horizon)
        ways["linear"] = linear(self.values[: self.split.train], self.length, self.horizon)
        return {name: self._errors(way) for name, way in ways.items()}

    def published(self) -> tuple[float, float] | None:
        """(MSE, MAE) that Informer's authors published for this recording and horizon; None: they did not."""
        return INFORMER.get((known_as(self.recording), self.horizon))

    def _errors(self, forecast: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        squared, absolute, count = 0.0, 0.0, 0
        for batch in self.held_out("test"):
            prediction = forecast(batch.tokens[..., : self.num_classes])
            squared += float(self.scores(prediction, batch).sum())
            absolute += float(self.further(prediction, batch)["mean absolute error"].sum())
            count += len(prediction)
        return squared / count, absolute / count

    def _batch(self, starts: Tensor) -> Batch:
        """A row for each start; neighbours share most of their horizon, so a stretch of one horizon is one unit."""
        past = self.steps[starts[:, None] + torch.arange(-self.length, 0)]
        targets = self.values[starts[:, None] + torch.arange(self.horizon)]
        units = tuple(
            f"{self.recording.time(start - start % self.horizon):%Y-%m-%d %H:%M}" for start in starts.tolist()
        )
        return Batch(past, targets, None, units, (1.0,) * len(starts))


def seasonal(period: int, horizon: int) -> Callable[[Tensor], Tensor]:
    """Repeat the last ``period`` steps of the past (B, N, V) over the horizon: (B, P, V); 1: the last value.

    Example:
        >>> seasonal(2, 3)(torch.tensor([[[1.0], [2.0], [3.0]]])).flatten().tolist()
        [2.0, 3.0, 2.0]
    """
    return lambda past: past[:, past.shape[1] - period + torch.arange(horizon) % period]


def linear(train: Float[Tensor, "T V"], length: int, horizon: int) -> Callable[[Tensor], Tensor]:
    """Least squares from the past of a variable to its future, both less the last value: one matrix a variable.

    As NLinear (Zeng et al. 2022, arXiv:2205.13504) with a ridge, solved at once instead of trained.

    Args:
        train: the training part.
        length, horizon: N and P.

    Returns:
        (B, N, V) -> (B, P, V).
    """
    weights = torch.stack([_least_squares(variable, length, horizon) for variable in train.double().unbind(1)])

    def forecast(past: Tensor) -> Tensor:
        last = past[:, -1:].double()
        inputs = F.pad((past - last)[:, :-1].movedim(2, 0), (0, 1), value=1.0)  # (V, B, N)
        return last + (inputs @ weights).movedim(0, 2)

    return forecast


def _least_squares(variable: Float[Tensor, " T"], length: int, horizon: int) -> Float[Tensor, "N P"]:
    """The last row is what is always added."""
    windows = variable.unfold(0, length + horizon, 1)
    windows = windows - windows[:, length - 1 : length]
    inputs, targets = F.pad(windows[:, : length - 1], (0, 1), value=1.0), windows[:, length:]
    gram = inputs.mT @ inputs
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    return torch.linalg.solve(gram, inputs.mT @ targets)
