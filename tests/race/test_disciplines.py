"""What every task brings to the race, and what is said of those that can be guessed."""

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import get_args

import pytest
import torch

from regard.cli.app import TaskName
from regard.race.bar import bar_of
from regard.race.build import build
from regard.race.disciplines import DISCIPLINES
from regard.race.disciplines.translation import SECONDS
from regard.race.entrants import CONTROL, Entrant, Field
from regard.race.event import describe
from regard.race.job import Job
from regard.race.leaderboard import show
from regard.race.looking import choose_passage
from regard.race.outcome import Outcome
from regard.race.page import render
from regard.race.results import assemble, command
from regard.race.settings import DEFAULT_SECONDS, Settings
from regard.tasks.documents import InputError

GENERATED = ["listops", "pathfinder", "copy", "recall"]


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGARD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def prepared(task, **given):
    settings = Settings.of({"task": task, "smoke": True, "mechanisms": ("local",), **given})
    return settings, settings.discipline.prepare(settings)


def test_the_command_line_names_them_all():
    assert get_args(TaskName) == tuple(DISCIPLINES)
    with pytest.raises(InputError, match="--task chess is unknown: lm, classify, listops"):
        Settings(task="chess", steps=1)


@pytest.mark.parametrize("name", DISCIPLINES)
def test_the_usual_settings_fit_the_task(name):
    usual = Settings.of({"task": name})
    assert usual.steps is None
    runs = len(usual.discipline.field(usual.length)) + 1
    assert 0 < usual.seconds * runs <= max(9 * DEFAULT_SECONDS, 5 * SECONDS)
    assert Settings.of({"task": name, "steps": 3}).seconds is None
    assert Settings.of({"task": name, "seconds": 3.0, "smoke": True}).steps is None
    smoke = Settings.of({"task": name, "smoke": True})
    assert (smoke.seconds, smoke.steps is None) == (None, False)
    full = {"task": name, "scale": "full"}
    if "scale" in usual.discipline.takes:
        assert Settings.of(full) != usual
    else:
        with pytest.raises(InputError, match=f"--task {name} takes no --scale"):
            Settings.of(full)


def test_the_benchmark_has_its_sizes():
    listops = Settings.of({"task": "listops", "scale": "full"})
    assert (listops.length, listops.steps, listops.seconds) == (2000, 5000, None)
    assert Settings.of({"task": "copy", "scale": "full"}).length == 1024
    assert Settings.of({"task": "pathfinder", "scale": "full"}).steps == 62_400


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"task": "listops", "files": ("book.txt",)}, "--task listops takes no files"),
        ({"task": "copy", "horizon": 24}, "--task copy takes no --horizon"),
        ({"horizon": 24}, "--task lm takes no --horizon"),
        ({"task": "series", "smoke": True, "ngram": 4}, "--ngram 4: a step of a series is read by itself"),
        ({"task": "series", "files": ("a.csv", "b.csv")}, "--task series takes one CSV file, got 2"),
        ({"task": "series", "smoke": True, "horizon": 5000}, "a window of --length 24 and --horizon 5,000"),
        ({"task": "listops", "length": 20}, "--length 20 leaves too few different expressions: at least 32"),
        ({"task": "pathfinder", "length": 512}, r"--length 512: .* 32 x 32 = 1024 pixels"),
        ({"task": "copy", "length": 33}, "--length 33: 0 w 0 w has an even number"),
        ({"task": "recall", "length": 400}, "--length 400: .* a multiple of 4 up to 208"),
    ],
)
def test_what_a_task_cannot_be_given_is_refused(given, words):
    def ask():
        settings = Settings.of(given)
        settings.discipline.prepare(settings)

    with pytest.raises(InputError, match=words):
        ask()


@pytest.mark.parametrize("name", GENERATED)
def test_data_models_and_scores_fit_each_other(name):
    settings, found = prepared(name)
    _, again = prepared(name)
    _, other = prepared(name, seed=1)
    assert found.fingerprint == again.fingerprint != other.fingerprint
    task = found.task
    assert task.length == settings.length
    model = build(Entrant("full"), settings, task)
    batch = task.batch(0)
    assert torch.isfinite(task.loss(model(batch.tokens, key_mask=batch.key_mask), batch))
    for held in task.held_out("validation"):
        scores = task.scores(model(held.tokens, key_mask=held.key_mask), held)
        assert scores.shape == (len(held.units),)
        assert len(held.units) == len(held.amounts)
    figures = found.baselines()
    assert found.bar in figures
    assert all(0 <= value <= 1 for value in figures.values())
    passage = choose_passage(task, settings.num_heads)
    assert len(task.spell(passage)) == len(passage)
    assert (name == "pathfinder") == (not passage)


def test_a_bar_is_three_standard_errors_high():
    _, found = prepared("copy")
    bar = bar_of(found, {found.bar: 0.2})
    assert bar.items == 512
    assert bar.margin == pytest.approx(3 * (0.2 * 0.8 / 512) ** 0.5)
    assert not bar.cleared(0.2 + bar.margin)
    assert bar.cleared(0.201 + bar.margin)
    assert bar_of(found, {}) is None
    learned, lost = Outcome("a", quality=0.9), Outcome("b", quality=0.2)
    assert bar.warning([lost, learned, Outcome("c")]) == ""
    assert "nobody has learned anything yet" in bar.warning([lost])


@pytest.mark.parametrize("name", GENERATED)
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one(tmp_path, name):
    given = {"task": name, "smoke": True, "device": "cpu", "steps": 4}
    settings = Settings.of(given)
    folders = [tmp_path / "whole", tmp_path / "parts"]
    for folder in folders:
        folder.mkdir()
    told = []
    whole = Job(settings, Entrant("full"), folders[0], emit=told.append).run()
    calls = iter([False, False, True] + [False] * 9)
    assert Job(settings, Entrant("full"), folders[1], stopped=lambda: next(calls)).run().status == "interrupted"
    parts = Job(settings, Entrant("full"), folders[1], stopped=lambda: next(calls)).run()
    assert (parts.status, parts.quality, parts.units) == ("finished", whole.quality, whole.units)
    assert 0 <= whole.quality <= 1
    assert whole.tokens > 0
    assert ("error" in whole.attention_map, bool(whole.attention_map)) == (False, name != "pathfinder")
    assert any(event["kind"] == "step" and event["loss"] > 0 for event in told)


def finished(label, quality):
    curve = [{"steps": step, "seconds": step / 10, "tokens": step * 64, "quality": quality} for step in (1, 2)]
    units = [(str(number), float(number < quality * 64), 1.0) for number in range(64)]
    return Outcome(
        label, parameters=1000, steps=2, seconds=0.2, tokens=128, curve=curve, quality=quality, units=units,
        evaluation_seconds=0.1, memory={"base": 10**8, "peak": 3 * 10**8}, milliseconds={"attention": 3.0, "rest": 7.0},
    )  # fmt: skip


def test_a_bar_of_a_loss_is_the_baseline_itself(capsys):
    from rich.console import Console

    settings, found = prepared("translation", mechanisms=("full",))
    figures = {"bigram": 1.6, found.bar: 1.5}
    for quality, learned in ((1.45, True), (1.55, False)):
        told = assemble(settings, Field((Entrant("full"),), ()), found, figures, [finished("full", quality)])
        assert (told["bar"]["margin"], told["entrants"][0]["learned"]) == (0.0, learned)
        assert ("nobody has learned anything yet" in told["verdict"]["reason"]) != learned
        show(told, Console(width=200))
        assert "(learned is less than 1.500: the baseline 'same decoder" in " ".join(capsys.readouterr().out.split())


def raced(best):
    settings, found = prepared("listops")
    entrants = (Entrant("full"), Entrant("local"), CONTROL)
    outcomes = [finished("full", best), finished("local", 0.3), Outcome(CONTROL.label, "interrupted")]
    figures = {"majority class": 0.17, "first token": 0.3}
    return assemble(settings, Field(entrants, ()), found, figures, outcomes)


def test_a_race_says_who_has_learned_anything(capsys):
    from rich.console import Console

    told = raced(0.9)
    assert told["bar"] == {
        "baseline": "first token",
        "value": 0.3,
        "margin": pytest.approx(0.1718, abs=1e-4),
        "items": 64,
        "lower_is_better": False,
    }
    assert {entry["label"]: entry["learned"] for entry in told["entrants"]} == {
        "full": True, "local": False, "local:window=0": None,
    }  # fmt: skip
    assert "nobody has learned" not in told["verdict"]["reason"]
    assert "over 64 expressions" in told["verdict"]["reason"]
    show(told, Console(width=160))
    words = " ".join(capsys.readouterr().out.split())
    assert "learned: full; not learned: local (learned is more than 0.472: the baseline 'first token'" in words
    assert "published, accuracy (Long Range Arena" in words
    assert "Reformer 0.3727" in words
    assert "the control: each token sees only itself" in words
    assert "but nobody has learned anything yet" in raced(0.4)["verdict"]["reason"]


def test_the_page_of_a_generated_task():
    page = render(raced(0.9))
    for words in (
        "<h1>Which attention computes nested lists?</h1>",
        "give the value of the expression",
        "Published figures",
        "accuracy, as published",
        "0.3727",
        "Learned: full; not learned: local",
        "0.900<small>learned</small>",
        "0.300<small>not learned</small>",
        "2 x 32 tokens a step",
        "over held-out expressions",
        "352 expressions",
    ):
        assert words in page, words
    assert "byte" not in re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.S)


def test_further_figures_have_a_column(capsys):
    from rich.console import Console

    told = raced(0.9)
    told["entrants"][0]["further"] = {"MAE": 0.456}
    page = render(told)
    assert page.count("<th>MAE</th>") == 1
    assert page.count("<td>0.456</td>") == 1
    assert '<td class="words" colspan="7">interrupted</td>' in page
    assert "<th>MAE</th>" not in render(raced(0.9))
    show(told, Console(width=200))
    printed = capsys.readouterr().out
    assert "MAE" in printed
    assert "0.456" in printed


def test_the_schema_names_what_these_tasks_add():
    text = (Path(__file__).parents[2] / "docs" / "results-schema.md").read_text()
    documented = set(re.findall(r"`([a-z_0-9]+)`", text))
    told = raced(0.9)
    for part in (told["bar"], told["published"], told["data"], told["metric"], told["settings"], told["entrants"][0]):
        assert set(part) <= documented


def test_what_will_be_done_is_said_in_the_words_of_the_task():
    lines = []
    settings, found = prepared("pathfinder")
    describe(settings, found, lines.append)
    assert "test 32 images 32,768 pixels" in lines[0]
    assert "2 x 1,024 pixels a step" in lines[-1]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"task": "listops"}, "regard race --task listops"),
        ({"task": "listops", "scale": "full", "seed": 2}, "regard race --task listops --scale full --seed 2"),
        ({"task": "recall", "smoke": True, "length": 24}, "regard race --smoke --task recall --length 24"),
        ({"task": "pathfinder", "seconds": 60.0}, "regard race --task pathfinder --budget 60s"),
        ({"task": "series", "horizon": 48}, "regard race --task series --horizon 48"),
    ],
)
def test_the_command_repeats_the_race(given, line):
    assert command(Settings.of(given)) == line


def test_a_series_is_forecast_beside_what_needs_no_network(tmp_path):
    settings, found = prepared("series", device="cpu")
    outcome = Job(settings, Entrant("local"), tmp_path).run()
    assert outcome.further["mean absolute error"] > 0
    figures = found.baselines()
    assert [name.split(" (mean absolute error")[0] for name in figures] == [
        "last value", "the same as a day before", "linear"
    ]  # fmt: skip
    told = assemble(settings, Field((Entrant("local"),), ()), found, figures, [outcome])
    assert told["metric"]["name"] == "mean squared error"
    assert "linear (mean absolute error" in render(told)
    assert (told["bar"], told["published"]) == (None, None)


def test_a_known_recording_stands_beside_its_published_figures(tmp_path):
    path = tmp_path / "ETTh1.csv"
    start, rows = datetime(2016, 7, 1), 20 * 30 * 24
    lines = ["date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT"]
    for row in range(rows):
        values = ",".join(f"{(row * (column + 3)) % 97}" for column in range(7))
        lines.append(f"{start + timedelta(hours=row):%Y-%m-%d %H:%M:%S},{values}")
    path.write_text("\n".join(lines))
    settings = Settings.of({"task": "series", "files": (str(path),), "horizon": 48})
    found = settings.discipline.prepare(settings)
    assert found.published.rows == (("Informer (mean absolute error 0.625)", 0.685),)
    assert found.rule.startswith("by time, as for Informer")
