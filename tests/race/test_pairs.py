"""``--task pairs``: which data it takes, and that a race on pairs is whole."""

import pytest
import torch

from regard.race.bar import bar_of
from regard.race.build import build
from regard.race.disciplines.pairs import BAR, FIELD, RIVALS
from regard.race.entrants import Entrant, choose
from regard.race.job import Job
from regard.race.settings import Settings
from regard.tasks.documents import InputError

TINY = {"task": "pairs", "steps": 2, "dim": 8, "depth": 1, "num_heads": 2, "batch": 2, "length": 64, "device": "cpu"}


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGARD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def prepared(**given):
    settings = Settings.of({**TINY, **given})
    return settings, settings.discipline.prepare(settings)


def test_numbers_in_words_need_no_data():
    settings, found = prepared(smoke=True)
    assert found.fingerprint == prepared(smoke=True, seed=1)[1].fingerprint
    assert found.bar == BAR
    figures = found.baselines()
    assert set(RIVALS) | {BAR, "the same without attention", "the most common label", "length ratio"} == set(figures)
    assert all(0 <= value <= 1 for value in figures.values())
    assert bar_of(found, figures).baseline == BAR
    model = build(Entrant("full"), settings, found.task)
    batch = found.task.batch(0)
    assert torch.isfinite(found.task.loss(model(batch.tokens, **batch.options), batch))
    assert found.sizes == found.task.sizes()


def test_pairs_of_the_users_own(tmp_path):
    rows = [f"{number % 3}\tone {number}\tother {number}\n" for number in range(60)]
    path = tmp_path / "mine.tsv"
    path.write_text("".join(rows))
    _, found = prepared(files=(str(path),))
    assert found.task.num_classes == 3
    assert found.name == f"{path} (0 or 1 or 2)"
    with pytest.raises(InputError, match="--length 1 subwords"):
        prepared(files=(str(path),), length=1)


def test_pages_of_help(tmp_path):
    for language, end in (("en-US", ""), ("de", "e")):
        folder = tmp_path / language / "text"
        folder.mkdir(parents=True)
        for page in range(12):
            lines = [f'<p id="par_id{n}">word{end} {page} {n}</p>' for n in range(4)]
            (folder / f"{page}.html").write_text(f"<html>{''.join(lines)}</html>")
    _, found = prepared(files=(str(tmp_path),))
    assert found.sizes["train"][0] > found.sizes["test"][0] > 0
    assert found.task.classes == ["another", "translation"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ngram": 2, "smoke": True}, "--ngram 2: a subword is read by itself"),
        ({"files": ("a.tsv", "b.tsv")}, "takes one file of lines .* got 2"),
        ({"files": ("/nowhere.tsv",)}, "nowhere.tsv"),
    ],
)
def test_what_pairs_cannot_be_given(given, words):
    with pytest.raises(InputError, match=words):
        prepared(**given)


def test_who_goes_from_one_sentence_to_another_races():
    settings = Settings.of({**TINY, "mechanisms": ("local", "bahdanau", "linear_transformer")})
    found = choose(settings)
    assert {entrant.name for entrant in found.entrants} == {"full", "bahdanau", "linear_transformer"}
    assert [name for name, _ in found.absent] == ["local"]
    field = choose(Settings.of({"task": "pairs"}))
    assert [entrant.name for entrant in field.entrants] == list(FIELD)
    assert not field.absent


@pytest.mark.parametrize("name", ["full", "abcnn"])
def test_a_job_runs_to_its_end(tmp_path, name):
    settings = Settings.of({"task": "pairs", "smoke": True, "steps": 2, "device": "cpu"})
    outcome = Job(settings, Entrant(name), tmp_path).run()
    assert outcome.status == "finished"
    assert 0 <= outcome.quality <= 1
    assert outcome.milliseconds["attention"] > 0
