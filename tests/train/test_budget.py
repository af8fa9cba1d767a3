import pytest

from regard.tasks.documents import InputError
from regard.train.budget import Budget, parse_seconds, rate_factor


@pytest.mark.parametrize(("text", "seconds"), [("60s", 60), ("90", 90), ("1.5m", 90), ("2 min", 120), ("1h", 3600)])
def test_reads_times(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "fast", "10 parsecs", "s", "1e3s"])
def test_refuses_what_is_no_time(text):
    with pytest.raises(InputError, match="is not a time: write 90, 60s, 2m or 1h"):
        parse_seconds(text)


@pytest.mark.parametrize("budget", [{}, {"steps": 1, "seconds": 1.0}, {"steps": 0}, {"steps": -3}, {"seconds": -1.0}])
def test_refuses_what_is_no_budget(budget):
    with pytest.raises(InputError, match=r"--steps|--budget"):
        Budget(**budget)


def test_the_rate_rises_falls_and_never_ends():
    factors = [rate_factor(number / 1000) for number in range(1300)]
    top = factors.index(max(factors))
    assert (top, factors[top]) == (100, 1.0)
    assert factors[:101] == sorted(factors[:101])
    assert factors[100:] == sorted(factors[100:], reverse=True)
    assert factors[1000] == factors[1299] == pytest.approx(0.05)
    assert Budget(seconds=4.0).spent(steps=100, seconds=1.0) == 0.25
