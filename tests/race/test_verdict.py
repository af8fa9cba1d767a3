import pytest
import torch

from regard.race.outcome import Outcome
from regard.race.results import at_equal, interpolate
from regard.race.verdict import difference, judge, memory, ranked
from regard.tasks.task import Metric

BITS = Metric("bits per byte", lower_is_better=True, digits=3)
HITS = Metric("accuracy", lower_is_better=False, digits=3)


def outcome(label, scores, tokens=1000, seconds=1.0, peak=100, status="finished", names=None):
    names = names or [f"d{number}" for number in range(len(scores))]
    units = [(name, float(score), 10.0) for name, score in zip(names, scores, strict=True)]
    quality = sum(scores) / (10 * len(scores)) if status == "finished" else None
    return Outcome(
        label, status, quality=quality, units=units, tokens=tokens, seconds=seconds, memory={"base": 50, "peak": peak}
    )


def scores(shift, noise=1.0, count=40, seed=0):
    return (30 + shift + noise * torch.randn(count, generator=torch.Generator().manual_seed(seed))).tolist()


def test_a_clear_winner_is_named():
    verdict = judge([outcome("b", scores(1)), outcome("a", scores(0)), outcome("c", scores(2))], BITS)
    assert (verdict.pick, verdict.measured) == ("a", True)
    assert [gap.label for gap in verdict.differences] == ["b", "c"]
    assert all(gap.separated for gap in verdict.differences)
    assert "over 40 documents" in verdict.reason


def test_pairing_finds_what_the_spread_hides():
    hard = scores(0, noise=10)
    gap = difference(outcome("a", hard), outcome("b", [score + 0.1 for score in hard]), BITS)
    assert gap.separated
    assert gap.value == pytest.approx(0.01)
    unpaired = difference(outcome("a", hard), outcome("b", scores(0.1, noise=10, seed=1)), BITS)
    assert unpaired.high - unpaired.low > 10 * (gap.high - gap.low)


def test_without_a_measurable_difference_the_cheapest_is_picked():
    field = [
        outcome("a", scores(0, seed=1), tokens=1000),
        outcome("b", scores(0.01, seed=2), tokens=5000),
        outcome("c", scores(9, seed=3), tokens=90_000),
    ]
    verdict = judge(field, BITS)
    assert (verdict.pick, verdict.measured) == ("b", False)
    assert "no measurable difference in this budget between" in verdict.reason
    assert "c" not in verdict.reason.partition("(")[0].split("between")[1]
    slower = [outcome("a", scores(0, seed=1), peak=100), outcome("b", scores(0.01, seed=2), peak=60)]
    assert judge(slower, BITS).pick == "b"


def test_accuracy_turns_the_sign():
    verdict = judge([outcome("low", scores(0)), outcome("high", scores(2))], HITS)
    assert (verdict.pick, verdict.measured) == ("high", True)
    assert verdict.differences[0].value == pytest.approx(0.2)


def test_documents_are_resampled_whole():
    """Forty pieces of five documents tell as much as five documents do."""
    names = [f"d{number // 8}" for number in range(40)]
    shifts = [[0.0, 4.0, -3.0, 2.0, -2.5][number // 8] for number in range(40)]
    best = outcome("a", [30.0] * 40, names=names)
    other = outcome("b", [30 + shift for shift in shifts], names=names)
    whole = difference(best, other, BITS)
    assert "over 5 documents" in whole.over
    pieces = difference(outcome("a", [30.0] * 40), outcome("b", [30 + shift for shift in shifts]), BITS)
    assert whole.high - whole.low > 2 * (pieces.high - pieces.low)
    alone = difference(outcome("a", [30.0] * 4, names=["d"] * 4), outcome("b", [31.0] * 4, names=["d"] * 4), BITS)
    assert "over 4 pieces of 1 document" in alone.over


def test_those_that_failed_are_not_ranked():
    field = [
        outcome("a", scores(0), status="crashed"),
        outcome("b", scores(1)),
        outcome("c", scores(0), status="killed"),
    ]
    assert [one.label for one in ranked(field, BITS)] == ["b"]
    assert judge(field, BITS).reason == "it is the only one that finished"
    assert judge(field[:1], BITS).pick == ""


def test_different_examples_are_not_compared():
    with pytest.raises(ValueError, match="a and b were judged on different examples"):
        difference(outcome("a", [1.0]), outcome("b", [1.0], names=["x"]), BITS)


def test_memory_is_above_the_base_or_on_the_device():
    assert memory(outcome("a", [1.0], peak=80)) == 30
    assert memory(Outcome("a", memory={"base": 50, "peak": 80, "device": 7})) == 7


def test_reads_curves_between_their_points():
    curve = [{"steps": 10.0, "seconds": 1.0, "quality": 4.0}, {"steps": 20.0, "seconds": 3.0, "quality": 3.0}]
    assert interpolate(curve, "steps", 15) == 3.5
    assert interpolate(curve, "seconds", 1.5) == 3.75
    assert interpolate(curve, "steps", 5) is None
    assert interpolate(curve, "steps", 20) == 3.0
    slow, fast = outcome("slow", [1.0]), outcome("fast", [2.0])
    slow.curve, fast.curve = curve, [{"steps": 15.0, "seconds": 1.0, "quality": 5.0}, {**curve[1], "steps": 100.0}]
    assert at_equal([slow, fast], "steps", BITS) == {
        "at": 20.0,
        "quality": {"slow": 3.0, "fast": pytest.approx(4.882, abs=1e-3)},
    }
    assert at_equal([], "steps", BITS) == {"at": None, "quality": {}}


def test_the_control_is_never_picked_but_always_told():
    field = [outcome("a", scores(0)), outcome("b", scores(1)), outcome("none", scores(2))]
    verdict = judge(field, BITS, control="none")
    assert verdict.pick == "a"
    assert verdict.reason.endswith("without attention the same model reaches 3.192")
    assert [gap.label for gap in verdict.differences] == ["b", "none"]
    field[2] = outcome("none", scores(-1))
    verdict = judge(field, BITS, control="none")
    assert verdict.pick == "a"
    assert "attention has gained nothing yet" in verdict.reason
    assert verdict.differences[-1].value == pytest.approx(-0.1)
    assert judge(field[2:], BITS, control="none").pick == ""
