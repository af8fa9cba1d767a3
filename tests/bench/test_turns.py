import pytest
import torch

from regard.bench import turns
from regard.bench.settings import Settings
from regard.bench.turns import Seconds, take_turns, workload
from regard.race.entrants import Entrant


@pytest.fixture
def instant(monkeypatch):
    """A clock on which every call takes a second."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(turns, "now", lambda: float(next(ticks)))


def test_everybody_has_a_turn_in_each_round(instant):
    order = []

    def builder(name):
        return lambda: order.append(name.upper()) or (lambda: order.append(name))

    seconds = {}
    take_turns({name: builder(name) for name in "abc"}, 2, seconds)
    assert "".join(order) == "AaBbCc" + "abc" * 2
    assert [len(found.wall) for found in seconds.values()] == [2, 2, 2]
    assert seconds["a"].medians[1] == 1.0


def test_short_calls_are_repeated_within_a_turn():
    calls = []
    seconds = {}
    take_turns({"quick": lambda: lambda: calls.append(1)}, 1, seconds)
    assert len(calls) > 1000
    assert 0 < seconds["quick"].medians[1] < 1e-3


def test_the_median_does_not_mind_one_slow_turn():
    assert Seconds([1.0, 9.0, 2.0], [3.0, 4.0, 50.0]).medians == (2.0, 4.0)


def test_who_fails_has_no_more_turns_and_the_others_go_on(instant):
    def fails():
        raise RuntimeError("out of\ndate")

    later = iter([lambda: None, fails])
    seconds = {}
    builders = {"never": fails, "later": lambda: lambda: next(later)(), "fine": lambda: lambda: None}
    take_turns(builders, 2, seconds)
    assert seconds["never"].error == seconds["later"].error == "RuntimeError: out of date"
    assert seconds["never"].wall == []
    assert len(seconds["fine"].wall) == 2


def test_ctrl_c_leaves_the_turns_that_were_had(instant):
    def pressed():
        raise KeyboardInterrupt

    later = iter([lambda: None, lambda: None, pressed])
    seconds = {}
    with pytest.raises(KeyboardInterrupt):
        take_turns({"one": lambda: lambda: next(later)()}, 5, seconds)
    assert len(seconds["one"].wall) == 1


@pytest.mark.parametrize("backward", [False, True])
def test_a_workload_is_a_layer_on_a_random_input(backward):
    settings = Settings(dim=16, num_heads=2, batch=3, backward=backward, causal=True, dtype="float64")
    result = workload(Entrant("local", {"window": 2}), 9, settings)()
    if backward:
        assert result[0].shape == (3, 9, 16)
        assert all(gradient is not None and gradient.dtype is torch.float64 for gradient in result)
        assert len(result) == 1 + 8
    else:
        assert result.shape == (3, 9, 16)
        assert not result.requires_grad
