import pytest

from regard.advice.measuring import Point
from regard.advice.question import parse_bytes
from regard.advice.verdict import decide, rows_of

LIMITS = {"max_memory": None, "max_seconds": None}


def measured(*turns, memory=1000):
    return Point("measured", memory_bytes=memory, turns=list(turns))


def answer(points, absent=(), **limits):
    rows = rows_of({label: {64: point} for label, point in points.items()}, absent, 64, **{**LIMITS, **limits})
    return (*decide(rows, "64"), rows)


PLAIN = measured(1.0, 2.0, 3.0)  # the machine grew busier from round to round


def test_a_lead_counts_within_a_round():
    name, sentence, rows = answer({"full": PLAIN, "local": measured(0.5, 1.0, 1.5)})
    assert name == "local"
    assert "0.50 of the time of plain softmax (full) at 64" in sentence
    assert [(row.label, row.relative, row.spread) for row in rows] == [("local", 0.5, 0.0), ("full", 1.0, 0.0)]


@pytest.mark.parametrize(
    ("turns", "named"),
    [
        ((0.9, 0.9, 1.8), False),  # 0.9, 0.45, 0.6: ahead by 0.4, spread 0.45
        ((0.6, 1.2, 0.9), True),  # 0.6, 0.6, 0.3: ahead by 0.4, spread 0.3
        ((0.95, 1.9, 2.85), False),  # always 0.95: certain, and not worth it
        ((2.0, 4.0, 6.0), False),
    ],
)
def test_noise_is_no_lead(turns, named):
    name, sentence, _ = answer({"full": PLAIN, "local": measured(*turns)})
    assert name == ("local" if named else "full")
    assert named or "plain softmax (full): nothing else is clearly faster at 64. local comes nearest" in sentence


def test_a_noisy_first_does_not_hide_a_clear_second():
    noisy, clear = measured(0.2, 1.9, 0.3), measured(0.5, 1.0, 1.5)
    assert answer({"full": PLAIN, "bpt": noisy, "local": clear})[0] == "local"


def test_plain_softmax_alone_is_the_answer():
    words = "plain softmax (full): nothing else was measured within the limits at 64."
    assert answer({"full": PLAIN})[:2] == ("full", words)
    more = " 1 found no room in the budget of measuring: a larger one may tell more."
    assert answer({"full": PLAIN, "local": Point("no room", "the reason")})[:2] == ("full", words + more)


def test_limits_rule_out():
    points = {"full": measured(1.0, memory=9000), "local": measured(0.1, memory=8000), "bpt": measured(2.0)}
    name, sentence, rows = answer(points, max_memory=5000)
    assert name == "bpt"
    assert "plain softmax (full): over memory (0.009 MB of 0.005 MB)" in sentence
    assert [(row.label, row.status) for row in rows] == [
        ("bpt", "measured"),
        ("local", "over memory"),
        ("full", "over memory"),
    ]
    name, sentence, rows = answer(points, max_seconds=0.05)
    assert name == ""
    assert "Nothing that was measured at 64 stays within the limits" in sentence
    assert {row.status for row in rows} == {"over time"}
    assert answer(points, max_seconds=1.5)[0] == "local"


def test_plain_softmax_may_be_beyond_measure():
    points = {"full": Point("left out", "a call would take about 70 s"), "local": measured(0.1)}
    name, sentence, rows = answer(points, [("linformer", "not causal")])
    assert name == "local"
    assert "plain softmax (full): left out (a call would take about 70 s)" in sentence
    assert rows[0].relative is None
    assert (rows[-1].label, rows[-1].status, rows[-1].reason) == ("linformer", "cannot", "not causal")


def test_nothing_measured_is_no_answer():
    name, sentence, _ = answer({"full": Point()})
    assert (name, sentence) == ("", "Nothing was measured at 64.")


def test_crossovers_are_read_from_all_lengths():
    points = {
        "full": {64: measured(1.0), 256: measured(16.0)},
        "local": {64: measured(2.0), 256: measured(8.0)},
        "bpt": {64: measured(2.0), 256: Point("left out", "too far behind")},
    }
    rows = {row.label: row for row in rows_of(points, [], 256, **LIMITS)}
    assert rows["local"].crossover == "128"
    assert rows["bpt"].crossover == "not up to 64"
    assert rows["full"].crossover == ""
    assert rows["bpt"].reason == "too far behind"


@pytest.mark.parametrize("given", ["4 bananas", "", "GB", "-1GB", "0", "4GBs"])
def test_memory_in_words_is_understood_or_refused(given):
    assert (parse_bytes("4GB"), parse_bytes("2g"), parse_bytes("1MiB"), parse_bytes(17)) == (
        4 * 10**9,
        2 * 10**9,
        2**20,
        17,
    )
    with pytest.raises(ValueError, match=r"is no amount of memory: write 4GB"):
        parse_bytes(given)
