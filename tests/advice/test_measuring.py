"""Order, culling and budget, with a workshop that only pretends: times are powers of the length."""

from dataclasses import replace

import pytest

from regard.advice import measuring
from regard.advice.field import choose
from regard.advice.measuring import Measuring
from regard.advice.question import Question
from regard.advice.workshop import Workshop
from regard.race.entrants import parse

QUESTION = Question(sides=(1024,), dim=16, num_heads=2)


class Pretence(Workshop):
    """Seconds of a call at a length, by label: factor times (length / 1024) ** power."""

    def __init__(self, **curves):
        self.curves, self.asked, self.told, self.clock = curves, [], {}, 0.0

    def open(self):
        self.clock += 1000  # to load is not to measure
        self.opened = True

    def seconds(self, label, length):
        factor, power = self.curves[label]
        return factor * (length / 1024) ** power

    def do(self, chore):
        assert self.opened
        length = chore["question"]["sides"][0]
        labels = [name for name, _ in chore["entrants"]]
        self.asked.append((chore["kind"], length, labels))
        if told := self.told.get((chore["kind"], length)):
            if isinstance(told, BaseException):
                raise told
            return told
        if chore["kind"] == "probe":
            self.clock += self.seconds(labels[0], length)
            return {
                "status": "measured",
                "error": "",
                "memory_bytes": length,
                "seconds": self.seconds(labels[0], length),
            }
        found = {label: [self.seconds(label, length)] * chore["rounds"] for label in labels}
        self.clock += 3 * sum(map(sum, found.values()))
        return {"over": False, "seconds": {k: {"cpu": v, "wall": v, "error": ""} for k, v in found.items()}}


def asking(**others):
    return replace(QUESTION, **others)


@pytest.fixture
def measure(monkeypatch):
    def run(pretence, question=QUESTION):
        monkeypatch.setattr(measuring.time, "monotonic", lambda: pretence.clock)
        entrants = parse(["full", *(label for label in pretence.curves if label != "full")])
        found = Measuring(question, entrants, lambda line: None, pretence)
        found.run()
        return found

    return run


def statuses(found, label):
    return [point.status for point in found.points[label].values()]


def test_lengths_ascend_and_memory_comes_before_time(measure):
    pretence = Pretence(full=(0.1, 2), local=(0.01, 1))
    found = measure(pretence)
    assert pretence.asked == [
        ("turns", 64, ["full", "local"]),
        ("turns", 256, ["full", "local"]),
        ("probe", 1024, ["full"]),
        ("probe", 1024, ["local"]),
        ("turns", 1024, ["full", "local"]),
    ]
    assert statuses(found, "local") == ["measured"] * 3
    point = found.points["local"][1024]
    assert point.memory_bytes == 1024
    assert point.turns == pytest.approx([0.01] * len(point.turns))
    assert 3 <= len(point.turns) <= 7


def test_whoever_cannot_win_is_left_out_and_a_slow_starter_is_not(measure):
    # at 64 coda takes 256 times as long as full and bpt 8 times; full grows by 256 until 1024, the others by 16
    found = measure(Pretence(full=(0.1, 2), coda=(1.6, 1), bpt=(0.05, 1)))
    assert statuses(found, "coda") == ["measured", "left out", "left out"]
    assert found.points["coda"][1024].error == "too far behind plain softmax at 64"
    assert statuses(found, "bpt") == ["measured"] * 3
    named = measure(Pretence(full=(0.1, 2), coda=(1.6, 1)), asking(mechanisms=("coda",)))
    assert statuses(named, "coda") == ["measured"] * 3


def test_plain_softmax_goes_first_and_the_budget_has_room_for_the_fastest(measure):
    # a call of full takes 2 s, so that memory and the fewest turns take 12 of 20; one of local takes 4 s
    pretence = Pretence(full=(2.0, 2), local=(4.0, 2), bpt=(0.1, 1))
    found = measure(pretence, asking(budget=20.0))
    assert [labels for kind, length, labels in pretence.asked if length == 1024] == [["full"], ["bpt"], ["full", "bpt"]]
    assert found.points["local"][1024].status == "no room"
    assert found.points["local"][1024].error == "no room at 1k in the budget of 20 s"


def test_shorter_lengths_have_a_share_of_the_budget(measure):
    # at 256 a call takes 0.3 s or 0.9 s; four times each, twelve or four of them in 15 s of 60
    for factor, number in ((2.4, 12), (7.2, 4)):
        pretence = Pretence(**dict.fromkeys(("full", *"abcdefghijk"), (factor, 1.5)))
        found = measure(pretence)
        assert [len(labels) for kind, n, labels in pretence.asked if (kind, n) == ("turns", 256)] == [number]
        assert found.points["k"][256].status == ("measured" if number == 12 else "no room")


def test_a_call_that_takes_longer_than_expected_has_no_turns(measure):
    pretence = Pretence(full=(0.1, 2), local=(0.1, 2))
    pretence.told["probe", 1024] = {"status": "measured", "error": "", "memory_bytes": 1, "seconds": 60.0}
    found = measure(pretence)
    assert statuses(found, "full") == ["measured", "measured", "no room"]
    assert found.points["full"][1024].memory_bytes == 1


def test_without_time_nobody_has_turns(measure):
    found = measure(Pretence(full=(50.0, 0), local=(50.0, 0)), asking(budget=1.0))
    assert statuses(found, "full") == ["measured", "no room", "no room"]


def test_what_goes_wrong_alone_has_no_turns(measure):
    pretence = Pretence(full=(0.1, 2))
    pretence.told["probe", 1024] = {"status": "out of memory", "error": "killed by the system"}
    found = measure(pretence)
    assert found.points["full"][1024].status == "out of memory"
    assert found.points["full"][1024].error == "killed by the system"
    assert ("turns", 1024, ["full"]) not in pretence.asked


def test_errors_among_the_turns_and_a_lost_process_are_told(measure):
    pretence = Pretence(full=(0.1, 2), local=(0.1, 2))
    pretence.told["turns", 64] = {"status": "crashed", "error": "its process ended with code -11"}
    fine = {"cpu": [1.0], "wall": [1.0], "error": ""}
    pretence.told["turns", 256] = {
        "over": True,
        "seconds": {
            "full": {"cpu": [0.1], "wall": [0.1], "error": ""},
            "local": {"cpu": [], "wall": [], "error": "ValueError: no"},
        },
    }
    pretence.told["turns", 1024] = {"over": True, "seconds": {"full": fine}}
    found = measure(pretence)
    assert found.points["full"][64].error == found.points["local"][64].error == "its process ended with code -11"
    assert statuses(found, "full") == ["crashed", "measured", "measured"]
    assert found.points["local"][256].error == "ValueError: no"
    assert "no room at 1k in the budget" in found.points["local"][1024].error


def test_ctrl_c_keeps_what_is_there(measure):
    pretence = Pretence(full=(0.1, 2), local=(0.1, 2))
    pretence.told["probe", 1024] = KeyboardInterrupt()
    found = measure(pretence)
    assert found.interrupted
    assert statuses(found, "full") == ["measured", "measured", "interrupted"]


def who(*mechanisms, **asked):
    field = choose(Question(sides=(64,), dim=16, num_heads=2, mechanisms=mechanisms, **asked))
    return [entrant.label for entrant in field.entrants], dict(field.absent)


def test_who_comes_into_question():
    able, absent = who(causal=True)
    assert able[0] == "full"
    assert "local" in able
    assert absent["linformer"] == "not causal: every mixture has seen the future"
    assert "causal by selection only" in absent["reformer"]
    assert who("reformer", causal=True)[0] == ["full", "reformer"]
    assert who("reformer", context=32)[1]["reformer"] == "attends within one sequence, not to another"
    assert "no memory" in who("linformer", streaming=True)[1]["linformer"]
    with pytest.raises(ValueError, match=r"local:window=-1 cannot be measured"):
        who("local:window=-1")
    with pytest.raises(ValueError, match=r"did you mean local"):
        who("lokal")


def test_maps_take_mechanisms_on_maps_and_on_pixels():
    labels = {entrant.label for entrant in choose(Question(sides=(8, 9), dim=16, num_heads=2)).entrants}
    assert {"full", "axial", "criss_cross", "linear_transformer"} <= labels


def test_the_shorter_sizes():
    assert [size.where for size in QUESTION.sizes()] == ["64", "256", "1k"]
    assert [size.where for size in Question(sides=(100,)).sizes()] == ["100"]
    assert [size.where for size in Question(sides=(300,)).sizes()] == ["75", "300"]
    assert [size.where for size in Question(sides=(64, 48)).sizes()] == ["16x12", "32x24", "64x48"]
    assert [size.context for size in Question(sides=(4096,), context=8).sizes()] == [1, 2, 8]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sides": (0,)}, "length=0 is not positive"),
        ({"dim": 10}, "dim=10 cannot be shared equally by num_heads=8"),
        ({"sides": (8, 8), "causal": True}, "causal is asked of sequences only"),
        ({"sides": (8, 8), "context": 3}, "context is asked of sequences only"),
        ({"device": "abacus"}, "abacus cannot be used"),
        ({"device": "meta"}, "device=meta cannot be timed"),
        ({"dtype": "int64"}, "dtype=int64 is no dtype"),
        ({"budget": float("nan")}, "budget=nan is not positive"),
    ],
)
def test_questions_without_sense_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        Question(**{"sides": (64,), **given})
