import pytest
import torch
from torch import nn
from torch.testing import assert_close

from regard.train.recipe_2017 import LastCheckpoints, noam, recipe_2017, smoothed_loss


def test_the_schedule_has_the_papers_numbers():
    assert noam(1, 512) == pytest.approx(512**-0.5 * 4000**-1.5)
    assert noam(4000, 512) == pytest.approx(512**-0.5 * 4000**-0.5)  # where the two meet
    assert noam(100_000, 512) == pytest.approx(512**-0.5 * 100_000**-0.5)
    rates = [noam(step, 64, warmup=10) for step in range(1, 40)]
    assert rates.index(max(rates)) == 9


def test_the_optimiser_takes_the_rate_of_each_step():
    model = nn.Linear(3, 2)
    optimizer, schedule = recipe_2017(model, dim=16, warmup=3, factor=2.0)
    assert optimizer.defaults["betas"] == (0.9, 0.98)
    assert optimizer.defaults["eps"] == 1e-9
    for step in range(1, 7):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2 * noam(step, 16, 3))
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_the_loss_is_the_cross_entropy_with_smoothed_targets(smoothing):
    logits, targets = torch.randn(2, 3, 7, dtype=torch.float64).float(), torch.tensor([[0, 3, 6], [2, 2, 0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    logits[~mask] = torch.nan
    total = 0.0
    for row, column in mask.nonzero().tolist():
        logs = logits[row, column].log_softmax(-1)
        q = torch.full((7,), smoothing / 7)
        q[targets[row, column]] += 1 - smoothing
        total += float(-(q * logs).sum())
    assert_close(float(smoothed_loss(logits, targets, mask, smoothing)), total / 3, rtol=1e-6, atol=0)
    assert smoothed_loss(logits, targets, mask & False, smoothing) == 0


def test_padding_gets_no_gradient():
    logits = torch.randn(1, 3, 5, requires_grad=True)
    smoothed_loss(logits, torch.zeros(1, 3, dtype=torch.long), torch.tensor([[True, False, True]])).backward()
    assert logits.grad[0, 1].abs().sum() == 0
    assert logits.grad[0, 2].abs().sum() > 0


def test_the_last_checkpoints_are_averaged():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    checkpoints = LastCheckpoints(keep=3)
    with pytest.raises(ValueError, match="no checkpoint"):
        checkpoints.average()
    weights = []
    for step in range(5):
        nn.init.normal_(model[0].weight)
        model[1].num_batches_tracked.fill_(step)
        checkpoints.add(model)
        weights.append(model[0].weight.detach().clone())
    found = checkpoints.average()
    assert len(checkpoints) == 3
    assert_close(found["0.weight"], torch.stack(weights[-3:]).mean(0))
    assert found["1.num_batches_tracked"] == 4
    model.load_state_dict(found)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: noam(0, 8), "step=0"),
        (lambda: smoothed_loss(torch.zeros(1, 2), torch.zeros(1).long(), smoothing=1.0), "smoothing=1.0"),
        (lambda: LastCheckpoints(0), "keep=0"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call()
