"""From end to end; timings are never asserted. One test starts the process that measures, the others pretend."""

import json
import os

import pytest
import torch

import regard
from regard.advice import chores, keeping, workshop
from regard.advice.question import Question, facts
from regard.advice.recommend import recommend
from regard.cli.recommend import print_recommendation
from regard.tasks.documents import InputError

SMALL = {"dim": 16, "num_heads": 2, "budget": 30.0, "threads": 1}
COMMAND = {**SMALL, "dtype": "float32"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path))
    monkeypatch.setattr("regard.bench.turns.SHORTEST", 1e-3)
    return tmp_path / "recommend"


@pytest.fixture
def asked(monkeypatch):
    """Chores that are done in this process, and counted."""
    done = []

    def do(self, chore):
        done.append(chore["kind"])
        with torch.random.fork_rng():
            return chores.perform(chore)

    monkeypatch.setattr(chores, "_timer", None)
    monkeypatch.setattr(chores.gc, "collect", lambda: None)  # half a second, in a process that has loaded so much
    monkeypatch.setattr(workshop.Workshop, "open", lambda self: None)
    monkeypatch.setattr(workshop.Workshop, "do", do)
    return done


def test_in_a_process_of_its_own(cache):
    state, said = torch.get_rng_state(), []
    answer = recommend(256, causal=True, mechanisms=["local:window=8"], **SMALL, say=said.append)
    assert torch.equal(torch.get_rng_state(), state)
    assert said[0] == "starting"
    assert any("memory of full" in line for line in said)
    assert {row.label for row in answer.rows} == {"full", "local:window=8"}
    for row in answer.rows:
        assert row.status == "measured", row
        assert row.seconds > 0
        assert row.memory_bytes > 0
    assert answer["full"].relative == 1
    assert answer.crossovers.keys() == {"local:window=8"}
    layer = eval(answer.call, {"regard": regard})
    assert layer(torch.zeros(1, 5, 16)).shape == (1, 5, 16)
    assert len(os.listdir(cache)) == 1


def test_threads_of_the_process_that_forks_stop_nobody(cache, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    answer = recommend(512, mechanisms=["local:window=8"], dim=128, num_heads=2, threads=2, budget=20.0)
    assert [row.status for row in answer.rows] == ["measured"] * 2


def test_the_second_answer_is_kept_and_takes_other_limits(asked, cache):
    first = recommend(64, mechanisms=["local", "linformer"], **SMALL)
    assert not first.kept
    count = len(asked)
    again = recommend(64, mechanisms=["local", "linformer"], **SMALL)
    assert len(asked) == count
    assert again.kept
    assert again.rows == first.rows
    assert f"measured {first.measured} and kept since then" in " ".join(str(again).split())
    none = recommend(64, mechanisms=["local", "linformer"], max_memory=1, **SMALL)
    fits = [row for row in first.rows if not row.memory_bytes]
    assert len(asked) == count
    assert bool(none.name) == bool(fits)
    assert {row.status for row in none.rows} <= {"over memory", "measured"}
    assert not recommend(64, mechanisms=["local", "linformer"], refresh=True, **SMALL).kept
    assert not recommend(80, mechanisms=["local", "linformer"], **SMALL).kept
    assert len(os.listdir(cache)) == 2


def test_a_damaged_file_is_told_and_measured_anew(asked, cache):
    recommend(64, mechanisms=["local"], **SMALL)
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes()[:-10])
    count = len(asked)
    answer = recommend(64, mechanisms=["local"], **SMALL)
    assert len(asked) > count
    assert not answer.kept
    assert "is damaged" in answer.notes[0]
    assert "measured anew" in " ".join(str(answer).split())
    assert recommend(64, mechanisms=["local"], **SMALL).kept
    older = path.read_text().replace(keeping.SCHEMA, "regard.recommend/0")
    for content in ("", "[]", older, '{"schema": "regard.recommend/1", "points": 3}'):
        path.write_text(content)
        with pytest.raises(ValueError, match="is damaged"):
            keeping.load(path)


def test_where_nothing_can_be_kept_the_answer_says_so(asked, cache, monkeypatch):
    def full(path, kept):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("regard.advice.recommend.store", full)
    answer = recommend(64, mechanisms=["local"], **SMALL)
    assert "not kept: No space left on device" in answer.notes[0]


def test_another_machine_asks_anew(monkeypatch):
    question = Question(sides=(64,))
    here = keeping.path_of(question)
    assert keeping.path_of(Question(sides=(64,), threads=2)) != here
    monkeypatch.setattr(keeping.native_library, "missing", lambda: "hidden")
    assert keeping.path_of(question) != here


def test_the_table_reads_well_and_travels_as_json(asked):
    answer = recommend(64, causal=True, mechanisms=["local", "linformer"], **SMALL)
    lines = str(answer).splitlines()
    assert max(map(len, lines)) <= 80
    assert " ".join(lines[:2]).startswith(
        "64 tokens, causal, forward and backward, batch 1, dim 16, 2 heads, float32 on"
    )
    assert "not measured:" in lines
    assert any("not causal: every mixture has seen the future" in line for line in lines)
    assert "Mechanisms are different functions" in str(answer)
    told = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
    assert told["schema"] == "regard.recommend/1"
    assert [row["label"] for row in told["rows"]] == [row.label for row in answer.rows]
    assert answer["linformer"].status == "cannot"
    with pytest.raises(KeyError, match="no candidate 'lokal'; there are"):
        answer["lokal"]


def test_maps_and_other_sequences(asked):
    answer = recommend((8, 9), data="map", mechanisms=["axial", "linformer"], backward=False, **SMALL)
    assert {row.label: row.status for row in answer.rows} == dict.fromkeys(["full", "axial", "linformer"], "measured")
    layer = eval(answer.call, {"regard": regard})
    assert layer(torch.zeros(1, 16, 8, 9)).shape == (1, 16, 8, 9)
    answer = recommend(64, context=96, mechanisms=["linformer", "local"], **SMALL)
    assert answer["linformer"].status == "measured"
    assert "max_length=96" in answer.call or answer.name == "full"


def test_wrong_arguments_are_refused_in_words():
    for length, data, words in [
        ((8, 8), "sequence", r"takes one number of tokens"),
        (64, "map", r'length=64, but data="map" takes \(height, width\)'),
        (64, "set", r"neither"),
        ((8.0, 8.0), "map", r"no whole numbers"),
    ]:
        with pytest.raises(InputError, match=words):
            recommend(length, data=data)
    with pytest.raises(InputError, match="max_seconds=0 is not positive"):
        recommend(64, max_seconds=0)


def test_errors_and_memory_of_a_chore():
    question = Question(sides=(8,), dim=16, num_heads=2)
    chore = {"kind": "probe", "entrants": [["linformer", {"rank": -1}]], "question": facts(question), "limit": 60.0}
    told = chores.perform(chore)
    chores._timer(chores.signal.ITIMER_REAL, 0)
    assert told["status"] == "crashed"
    assert told["error"]


@pytest.mark.skipif(chores._timer is None, reason="the system has no such timer")
def test_turns_end_when_the_time_is_over():
    question = Question(sides=(64,), dim=16, num_heads=2)
    told = chores.turns([*map(chores.Entrant, ["full", "local"])], question, rounds=10**6, limit=1.0)
    assert told["over"]
    assert len(told["seconds"]["full"]["cpu"]) > 1
    assert chores.signal.getsignal(chores.signal.SIGALRM) == chores.signal.SIG_DFL


@pytest.mark.skipif(not workshop.FORKS, reason="forks only on Linux")
@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("os.kill(os.getpid(), 9)", "out of memory"),
        ("os.kill(os.getpid(), 14)", "too slow"),
        ("os._exit(3)", "crashed"),
    ],
)
def test_a_child_that_dies_is_told(monkeypatch, code, status):
    monkeypatch.setattr(chores, "perform", lambda chore: exec(code, {"os": os}))
    assert workshop._in_a_child({"limit": 3.0})["status"] == status


def test_on_the_command_line(asked, capsys):
    given = {**COMMAND, "mechanisms": ["local"]}
    assert print_recommendation(given, length="64", context=None, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["question"].startswith("64 tokens")
    assert print_recommendation({**given, "mechanisms": ["axial"]}, length="8x8", context=None, as_json=False) == 0
    assert "maps of 8x8" in capsys.readouterr().out
    assert print_recommendation({**given, "max_seconds": 1e-9}, length="64", context=None, as_json=False) == 1
    assert "stays within the limits" in capsys.readouterr().out
    with pytest.raises(InputError, match="--length 3y: write a number of tokens such as 8k, or 64x48"):
        print_recommendation(given, length="3y", context=None, as_json=False)
    with pytest.raises(InputError, match="--context 1k,2k: write"):
        print_recommendation(given, length="64", context="1k,2k", as_json=False)


def test_ctrl_c_prints_what_there_is_and_keeps_nothing(asked, capsys, cache, monkeypatch):
    real = workshop.Workshop.do

    def stopped(self, chore):
        if chore["kind"] == "probe":
            raise KeyboardInterrupt
        return real(self, chore)

    monkeypatch.setattr(workshop.Workshop, "do", stopped)
    assert print_recommendation({**COMMAND, "mechanisms": ["local"]}, length="256", context=None, as_json=False) == 130
    told = capsys.readouterr().out
    assert "Stopped before the end" in told
    assert "Nothing was measured at 256" in told
    assert not cache.exists()
