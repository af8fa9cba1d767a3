import pytest
import torch

from regard.race.rivals import trained
from regard.race.settings import Settings


@pytest.fixture
def prepared():
    settings = Settings.of({"task": "pairs", "smoke": True, "steps": 1, "device": "cpu"})
    return settings, settings.discipline.prepare(settings).task


def weights_of(settings, task):
    """The weights that a rival begins with, and what it reaches."""
    begun = []

    def make():
        model = task.model(8, 1, 2, "full")
        begun.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
        return model

    quality = trained(settings, task, make)
    return begun[0], quality


def test_the_seed_of_the_race_draws_the_rival_and_nothing_else_changes(prepared):
    settings, task = prepared
    state = torch.get_rng_state()
    first, quality = weights_of(settings, task)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again, same = weights_of(settings, task)
    assert torch.equal(first, again)
    assert same == quality
    other, _ = weights_of(Settings.of({"task": "pairs", "smoke": True, "steps": 1, "device": "cpu", "seed": 5}), task)
    assert not torch.equal(first, other)


def test_a_rival_that_diverges_has_no_quality(prepared):
    settings, task = prepared

    def make():
        model = task.model(8, 1, 2, "full")
        with torch.no_grad():
            next(model.parameters()).fill_(torch.nan)
        return model

    assert trained(settings, task, make) is None
