"""``--task fewshot``: which words and data it takes, who races, and that a race is whole."""

import pytest
import torch
from PIL import Image

from regard.race.bar import bar_of
from regard.race.build import build
from regard.race.disciplines.fewshot import FIELD
from regard.race.entrants import Entrant, choose
from regard.race.job import Job
from regard.race.settings import Settings
from regard.tasks.documents import InputError
from tests.tasks.pictures_here import write_pictures

TINY = {"steps": 2, "dim": 8, "depth": 1, "num_heads": 2, "batch": 2, "device": "cpu"}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "cache"))


def prepared(*files, **given):
    settings = Settings.of({"task": "fewshot", "files": files or None, **TINY, **given})
    return settings, settings.discipline.prepare(settings)


def own(folder, classes=5, each=8):
    for k in range(classes):
        (folder / f"class{k}").mkdir(parents=True)
        for number in range(each):
            Image.new("L", (16, 16), 40 * k + number).save(folder / f"class{k}" / f"{number}.png")
    return str(folder)


@pytest.mark.parametrize("mechanism", ["full", "cross_attention_fewshot", "co_attention"])
def test_a_job_runs_to_its_end(tmp_path, mechanism):
    settings = Settings.of({"task": "fewshot", "smoke": True, "steps": 2, "device": "cpu"})
    outcome = Job(settings, Entrant(mechanism), tmp_path).run()
    assert (outcome.status, outcome.attention_map) == ("finished", {})
    assert outcome.milliseconds["attention"] > 0
    assert 0 <= outcome.quality <= 1
    assert len(outcome.shown["answers"]) == len(outcome.shown["looked"]) == 6


def test_in_the_format_of_mnist(tmp_path):
    folder = str(write_pictures(tmp_path, train=60, test=40))
    settings, found = prepared(folder, length=6)
    assert found.name.endswith("in the format of MNIST, 4-way 1-shot")
    assert found.task.queries == 3  # four pictures of each class are given for test
    assert found.fingerprint == prepared(folder, length=6)[1].fingerprint
    for number, images in found.task.found.parts["train"].items():
        assert int(images.max()) < 60 <= int(found.task.found.parts["validation"][number].min())
    figures = found.baselines()
    assert set(figures) == {"chance", "nearest mean image", "prototype network"}
    assert all(0 <= value <= 1 for value in figures.values())
    assert bar_of(found, figures).baseline == "nearest mean image"
    model = build(Entrant("full"), settings, found.task)
    batch = found.task.batch(0)
    assert torch.isfinite(found.task.loss(model(batch.tokens, **batch.options), batch))


def test_images_of_the_users_own(tmp_path):
    folder = own(tmp_path / "pictures")
    _, found = prepared("2-shot", folder, length=16)
    assert found.name.endswith("2-way 2-shot")
    parts = found.task.found.parts
    assert {part: len(members) for part, members in parts.items()} == {"train": 3, "validation": 3, "test": 2}
    assert all(len(images) == 3 for images in parts["validation"].values())
    assert not set(torch.cat([*parts["train"].values()]).tolist()) & set(
        torch.cat([*parts["validation"].values()]).tolist()
    )
    assert "are unseen; learned from are class" in found.rule


@pytest.mark.parametrize(
    ("files", "given", "words"),
    [
        (("0-shot",), {}, "0-shot: a class needs an example"),
        ((), {"ngram": 2}, "--ngram 2: a pixel of an image is read by itself"),
        (("/nowhere",), {}, "/nowhere is not a folder"),
    ],
)
def test_what_it_cannot_be_given(files, given, words):
    with pytest.raises(InputError, match=words):
        prepared(*files, **given)


def test_too_few_classes_or_images(tmp_path):
    with pytest.raises(InputError, match="3 classes: --task fewshot learns from two at least"):
        prepared(own(tmp_path / "few", classes=3), length=16)
    with pytest.raises(InputError, match="has 8 different images: 12 are the least for 5-shot"):
        prepared("5-shot", own(tmp_path / "small"), length=16)
    digits = tmp_path / "digits"
    digits.mkdir()
    with pytest.raises(InputError, match="--length 28: these images have 6 x 6 pixels"):
        prepared(str(write_pictures(digits)))
    with pytest.raises(InputError, match="a class has 2 images of one part: 3 are the least for 2-shot"):
        prepared("2-shot", str(digits), length=6)


def test_who_goes_from_one_to_another_races():
    field = choose(Settings.of({"task": "fewshot"}))
    assert [entrant.label for entrant in field.entrants] == list(FIELD)
    assert field.absent == ()
    named = choose(Settings.of({"task": "fewshot", "mechanisms": ("axial", "linear_transformer", "co_attention")}))
    assert [entrant.name for entrant in named.entrants] == ["full", "linear_transformer", "co_attention"]
    assert named.absent == (("axial", "attends within one input, not from one to another"),)
