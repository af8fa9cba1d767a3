"""Forecasting: splits, standardising, windows, errors and baselines, on series made here."""

from datetime import datetime, timedelta

import pytest
import torch
from torch.testing import assert_close

from regard.tasks.documents import InputError
from regard.tasks.recordings import Recording, waves
from regard.tasks.series import VALIDATION_WINDOWS, Forecasting, linear, seasonal, split_by_time
from regard.train.budget import Budget
from regard.train.trainer import Trainer


def recording(values, name="mine.csv", step=timedelta(hours=1), columns=None):
    values = torch.as_tensor(values, dtype=torch.float64)
    columns = columns or tuple(f"v{number}" for number in range(values.shape[1]))
    return Recording(name, datetime(2024, 1, 1), step, columns, values)


def made(found=None, **options):
    found = found or waves(200)
    sizes = {"length": 30, "horizon": 5, "batch": 4, "seed": 0}
    return Forecasting(found, split_by_time(found), **(sizes | options))


def test_splits_by_time():
    split = split_by_time(waves(1001))
    assert (split.train, split.validation, split.test) == (700, 801, 1001)
    assert "70 %" in split.rule


@pytest.mark.parametrize(("name", "steps"), [("ETTh1", 1), ("ETTm2", 4)])
def test_ett_files_are_cut_as_informer_does(name, steps):
    columns, step = (*"abcdef", "OT"), timedelta(hours=1) / steps
    month = 30 * 24 * steps
    whole = recording(torch.zeros(20 * month + 7, 7), f"{name}.csv", step, columns)
    split = split_by_time(whole)
    assert (split.train, split.validation, split.test) == (12 * month, 16 * month, 20 * month)
    others = [
        recording(torch.zeros(20 * month - 1, 7), f"{name}.csv", step, columns),
        recording(torch.zeros(20 * month + 7, 7), f"my{name}.csv", step, columns),
        recording(torch.zeros(20 * month + 7, 7), f"{name}.csv", step),
        recording(torch.zeros(20 * month + 7, 8), f"{name}.csv", step, ("x", *columns)),
    ]
    for other in others:
        assert split_by_time(other).test == len(other.values)


def test_what_informer_published_stands_beside_its_own_files():
    values, columns = torch.zeros(20 * 30 * 24, 7), (*"abcdef", "OT")
    found = {name: recording(values, f"{name}.csv", columns=columns) for name in ("ETTh1", "mine")}
    assert made(found["ETTh1"], horizon=24).published() == (0.577, 0.549)
    assert made(found["ETTh1"], horizon=25).published() is None
    assert made(found["mine"], horizon=24).published() is None


def test_standardises_by_the_training_part_alone():
    values = torch.cat((torch.randn(140, 2, dtype=torch.float64) * 3 + 5, torch.full((60, 2), 1e3)))
    values[:, 1] = 4.0
    task = made(recording(values))
    train = values[:140, 0]
    expected = (values[:, 0] - train.mean()) / train.std(correction=0)
    assert_close(task.values[:, 0], expected.float())
    assert not task.values[:, 1].any(), "a variable that never moves"


def test_windows_have_their_whole_horizon_in_their_part():
    task = made()
    first = {part: (int(starts[0]), int(starts[-1])) for part, starts in task.starts.items()}
    assert first == {"train": (30, 135), "validation": (140, 155), "test": (160, 195)}
    assert task.sizes() == {"train": (22, 140), "validation": (4, 20), "test": (8, 40)}, "stretches of 5 steps"
    (batch,) = task.held_out("test")
    assert batch.tokens.shape == (36, 30, 3 + 4)
    assert_close(batch.targets[3], task.values[163:168])
    assert_close(batch.tokens[3, :, :3], task.values[133:163])
    assert_close(batch.tokens[3, :, 3:], task.recording.marks(200)[133:163])
    assert batch.units[0] == batch.units[4] == "2024-01-07 16:00"
    assert batch.units[5] == "2024-01-07 21:00"
    assert len(set(batch.units)) == 8


def test_batches_depend_on_seed_and_step_alone():
    task = made()
    assert_close(task.batch(3).tokens, made().batch(3).tokens, rtol=0, atol=0)
    assert not torch.equal(task.batch(3).tokens, task.batch(4).tokens)
    assert not torch.equal(task.batch(3).tokens, made(seed=1).batch(3).tokens)
    for step in range(20):
        batch = task.batch(step)
        places = [int((task.values == row[0]).all(1).nonzero()) for row in batch.targets]
        assert all(30 <= place <= 135 for place in places)


def test_of_many_windows_an_even_selection_is_judged():
    task = made(waves(4000))
    assert sum(len(batch.targets) for batch in task.held_out("validation")) == VALIDATION_WINDOWS
    assert sum(len(batch.targets) for batch in task.held_out("test")) == len(task.starts["test"]) == 796
    few = torch.cat([batch.targets for batch in made(waves(4000), test_windows=4).held_out("test")])
    assert_close(few, task.values[torch.tensor([0, 199, 398, 597])[:, None] + 3200 + torch.arange(5)])


def test_errors_are_means_over_horizon_variables_and_windows():
    task = made()
    (batch,) = task.held_out("test")
    prediction = batch.targets + torch.tensor([1.0, -2.0, 0.0])
    assert_close(task.scores(prediction, batch), torch.full((36,), 5 / 3, dtype=torch.float64))
    assert_close(task.further(prediction, batch)["mean absolute error"], torch.ones(36, dtype=torch.float64))
    assert_close(task.loss(prediction, batch), torch.tensor(5 / 3))


def test_baselines():
    """A line, and a daily wave: the last value is off by the steps ahead, a day before by a day's rise."""
    hour = torch.arange(400, dtype=torch.float64)
    wave = torch.sin(2 * torch.pi * hour / 24)
    task = made(recording(torch.stack((0.01 * hour, wave), 1)), length=30)
    found = task.baselines()
    rise = 0.01 / float(0.01 * hour[:280].std(correction=0))
    day, last = found["the same as a day before"], found["last value"]
    assert day[0] == pytest.approx((24 * rise) ** 2 / 2, rel=1e-4)
    assert day[1] == pytest.approx(24 * rise / 2, rel=1e-4)
    wave = task.values[:, 1]
    gaps = torch.stack([wave[start : start + 5] - wave[start - 1] for start in range(320, 396)])
    line = rise * torch.arange(1.0, 6.0)
    assert last[0] == pytest.approx(float((line.square().mean() + gaps.square().mean()) / 2), rel=1e-4)
    assert last[1] == pytest.approx(float((line.mean() + gaps.abs().mean()) / 2), rel=1e-4)
    assert found["linear"][0] < 1e-3 * last[0]


def test_no_day_is_repeated_where_there_is_none():
    assert "the same as a day before" not in made(length=20).baselines()
    assert "the same as a day before" not in made(recording(waves(200).values, step=timedelta(days=1))).baselines()
    quarters = made(recording(waves(600).values, step=timedelta(hours=6)), length=20)
    past = torch.arange(20.0)[None, :, None]
    assert "the same as a day before" in quarters.baselines()
    assert seasonal(4, 6)(past).flatten().tolist() == [16, 17, 18, 19, 16, 17]


def test_the_linear_baseline_is_least_squares_a_variable():
    """Against torch.linalg.lstsq with the ridge as further rows; each variable by itself."""
    train = torch.randn(80, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    past = torch.randn(3, 6, 2, dtype=torch.float64)
    forecast = linear(train, 6, 4)(past)
    for variable in range(2):
        windows = torch.stack([train[start : start + 10, variable] for start in range(71)])
        windows = windows - windows[:, 5:6]
        inputs = torch.cat((windows[:, :5], torch.ones(71, 1, dtype=torch.float64)), 1)
        ridge = (1e-3 * inputs.square().sum(0).mean()).sqrt() * torch.eye(6, dtype=torch.float64)
        targets = torch.cat((windows[:, 6:], torch.zeros(6, 4, dtype=torch.float64)))
        weights = torch.linalg.lstsq(torch.cat((inputs, ridge)), targets).solution
        known, last = past[..., variable], past[:, 5:, variable]
        expected = last + torch.cat((known[:, :5] - last, torch.ones(3, 1, dtype=torch.float64)), 1) @ weights
        assert_close(forecast[..., variable], expected, rtol=0, atol=1e-10)


def test_a_part_that_is_too_short_is_refused():
    with pytest.raises(InputError, match=r"the validation part has 20 steps, but .* --horizon 21 needs 21"):
        made(horizon=21)
    with pytest.raises(
        InputError, match=r"the train part has 140 steps, but .* --length 136 and --horizon 5 needs 141"
    ):
        made(length=136)
    with pytest.raises(InputError, match="--horizon 0"):
        made(horizon=0)


def test_a_model_learns_it():
    task = made(waves(1000), batch=16)
    torch.manual_seed(0)
    trainer = Trainer(task.model(16, 1, 2, "full"), task, Budget(steps=60), rate=1e-2, device="cpu")
    before = trainer.judge("test")
    assert before.quality == pytest.approx(task.baselines()["last value"][0], rel=1e-4)
    for _ in range(60):
        trainer.step()
    after = trainer.judge("test")
    assert after.quality < 0.4 * before.quality
    assert after.further["mean absolute error"] < before.further["mean absolute error"]
