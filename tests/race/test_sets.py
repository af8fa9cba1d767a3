"""``--task sets`` and ``--task pixels``: which words and data they take, and that a race on them is whole."""

import pytest
import torch

from regard.race.bar import bar_of
from regard.race.build import build
from regard.race.disciplines.sets import FIELD
from regard.race.entrants import CONTROL, Entrant, choose
from regard.race.job import Job
from regard.race.settings import Settings
from regard.tasks.documents import InputError
from tests.tasks.pictures_here import write_pictures

TINY = {"steps": 2, "dim": 8, "depth": 1, "num_heads": 2, "batch": 2, "length": 24, "device": "cpu"}


def prepared(*files, task="sets", **given):
    settings = Settings.of({"task": task, "files": files or None, **TINY, **given})
    return settings, settings.discipline.prepare(settings)


@pytest.fixture
def folder(tmp_path):
    return str(write_pictures(tmp_path))


@pytest.mark.parametrize("word", ["clusters", "max", "fashion"])
def test_a_word_says_which_question(word, folder):
    files = (word, folder) if word == "fashion" else (word,)
    settings, found = prepared(*files)
    _, again = prepared(*files)
    assert found.fingerprint == again.fingerprint
    model = build(Entrant("set_transformer", {"num_inducing": 3}), settings, found.task)
    batch = found.task.batch(0)
    assert torch.isfinite(found.task.loss(model(batch.tokens, key_mask=batch.key_mask), batch))
    figures = found.baselines()
    assert {"deep sets, mean", "deep sets, sum", "deep sets, max"} < figures.keys()
    assert all(value is not None for value in figures.values())
    assert (bar_of(found, figures) is None) == (word != "fashion"), "only an accuracy has a bar"
    assert found.sizes == found.task.sizes()


def test_clusters_need_no_word():
    assert prepared()[1].fingerprint == prepared("clusters")[1].fingerprint != prepared(seed=1)[1].fingerprint


@pytest.mark.parametrize(
    ("files", "given", "words"),
    [
        (("min",), {}, "about one of clusters, max, fashion, not 'min'"),
        (("max", "here"), {}, "max of --task sets takes nothing behind it, got here"),
        (("fashion", "a", "b"), {}, "takes at most one folder behind it, got a, b"),
        ((), {"ngram": 2}, "--ngram 2: a point of a set is read by itself"),
        (("fashion", "/nowhere"), {}, "Fashion-MNIST is missing"),
    ],
)
def test_what_sets_cannot_be_about(files, given, words):
    with pytest.raises(InputError, match=words):
        prepared(*files, **given)


def test_who_works_on_sets_or_sequences_races():
    settings = Settings.of(
        {"task": "sets", "mechanisms": ("kronecker", "linear_transformer", "set_transformer"), **TINY}
    )
    found = choose(settings)
    names = {entrant.name for entrant in found.entrants}
    assert names == {"full", "set_transformer", "linear_transformer"}
    assert ("kronecker", "works on maps, not on sets") in found.absent
    field = choose(Settings.of({"task": "sets"})).entrants
    assert [entrant.label.split(":")[0] for entrant in field] == [*(name.split(":")[0] for name in FIELD), "local"]
    assert CONTROL in field
    call = next(entrant for entrant in field if entrant.name == "set_transformer").call(settings)
    assert call.startswith('regard.create("set_transformer", dim=8')


@pytest.mark.parametrize("task", ["sets", "pixels"])
def test_a_job_runs_to_its_end(tmp_path, task):
    settings = Settings.of({"task": task, "smoke": True, "steps": 2, "device": "cpu"})
    outcome = Job(settings, Entrant("full"), tmp_path).run()
    assert (outcome.status, outcome.attention_map) == ("finished", {})
    assert outcome.milliseconds["attention"] > 0
    assert outcome.quality < 0 if task == "sets" else 0 < outcome.quality < 10


def picture(path, side=9, shade=0):
    from PIL import Image

    Image.new("RGB", (side, side + 2), (shade, shade, shade)).save(path)


def test_pixels_of_the_users_own(tmp_path):
    for number in range(12):
        picture(tmp_path / f"{number}.png", shade=20 * number)
    (tmp_path / "note.txt").write_text("no image")
    settings, found = prepared(str(tmp_path), task="pixels", length=16)
    assert {part: count for part, (count, _) in found.sizes.items()} == {"train": 10, "validation": 1, "test": 1}
    assert any("left out 1 " in remark for remark in found.remarks)
    assert "4 x 4 grey pixels" in found.name
    assert settings.length == found.task.length == 16
    assert len(found.task.found.train.unique()) == 10


def test_pixels_in_the_format_of_mnist(folder):
    _, found = prepared(folder, task="pixels", length=36)
    assert {part: count for part, (count, _) in found.sizes.items()} == {"train": 55, "validation": 5, "test": 20}
    figures = found.baselines()
    assert figures["uniform"] == 8 > figures["shades of each pixel"]
    with pytest.raises(InputError, match="--length 16: these images have 6 x 6 = 36 pixels"):
        prepared(folder, task="pixels", length=16)


def test_what_pixels_cannot_be_given(tmp_path):
    with pytest.raises(InputError, match="--length 50: the pixels of an image with equal sides"):
        prepared(task="pixels", length=50, smoke=True)
    picture(tmp_path / "one.png")
    with pytest.raises(InputError, match=r"1 images in .*: at least 10 are needed"):
        prepared(str(tmp_path), task="pixels", length=16)
