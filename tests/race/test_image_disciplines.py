"""What the tasks on images bring to the race."""

import re

import pytest
import torch
from PIL import Image

from regard.race.bar import bar_of
from regard.race.build import build
from regard.race.entrants import CONTROL, Entrant, Field, choose
from regard.race.event import describe
from regard.race.job import Job
from regard.race.page import render
from regard.race.results import assemble, command
from regard.race.settings import Settings
from regard.tasks.documents import InputError
from tests.tasks.pictures_here import write_pictures

TASKS = ["images", "segmentation"]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "cache"))


def prepared(task, **given):
    settings = Settings.of({"task": task, "smoke": True, "device": "cpu", **given})
    return settings, settings.discipline.prepare(settings)


@pytest.mark.parametrize("name", TASKS)
def test_data_models_and_scores_fit_each_other(name):
    settings, found = prepared(name)
    assert found.fingerprint == prepared(name)[1].fingerprint != prepared(name, seed=1)[1].fingerprint
    task, batch = found.task, found.task.batch(0)
    assert (batch.tokens.shape, task.length) == ((settings.batch, 1, settings.length, settings.length), settings.length)
    model = build(Entrant("full"), settings, task)
    assert torch.isfinite(task.loss(model(batch.tokens), batch))
    rows = torch.cat([task.scores(model(held.tokens), held) for held in task.held_out("test")])
    scores, _ = task.tally(rows.double())
    assert scores.shape == (found.sizes["test"][0],)
    figures = found.baselines()
    assert all(0 <= value <= 1 for value in figures.values())
    assert (bar_of(found, figures) is None) == (name == "segmentation"), "no share of single items"


@pytest.mark.parametrize("name", TASKS)
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one(tmp_path, name):
    settings = Settings.of({"task": name, "smoke": True, "device": "cpu", "steps": 4})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    expected = Job(settings, Entrant("axial"), whole).run()
    calls = iter([False, False, True] + [False] * 9)
    assert Job(settings, Entrant("axial"), parts, stopped=lambda: next(calls)).run().status == "interrupted"
    found = Job(settings, Entrant("axial"), parts, stopped=lambda: next(calls)).run()
    assert (found.status, found.quality, found.units) == ("finished", expected.quality, expected.units)
    assert found.tokens == 4 * settings.batch * settings.length**2
    assert found.milliseconds["attention"] > 0
    assert found.attention_map == {}


@pytest.mark.parametrize("name", TASKS)
def test_a_field_of_eight_and_the_control(name):
    settings = Settings.of({"task": name})
    field = choose(settings)
    assert [entrant.label for entrant in field.entrants] == [*settings.discipline.field(settings.length), CONTROL.label]
    assert len(field.entrants) == 9
    assert field.absent == ()
    assert "each patch sees only itself" in field.entrants[-1].mark(settings, "pixels")


def test_places_of_a_map():
    images, sequence = Settings.of({"task": "images"}), Settings.of({"task": "copy"})
    assert (images.sides, images.positions) == ((7, 7), 49)
    assert (sequence.sides, sequence.positions) == ((64,), 64)
    assert Settings.of({"task": "images", "length": 29}).sides == (8, 8)
    assert Settings.of({"task": "segmentation"}).sides == (32, 32)


def test_the_call_is_exact():
    settings = Settings.of({"task": "images", "smoke": True})
    calls = {name: Entrant(name).call(settings) for name in ("axial", "full")}
    assert calls == {
        "axial": 'regard.create("axial", dim=16, num_heads=2)',
        "full": 'regard.models.map_attention("full", dim=16, num_heads=2, max_length=16, causal=False)',
    }
    import regard.models

    for call in calls.values():
        layer = eval(call, {"regard": regard})
        assert layer(torch.zeros(1, 16, 4, 4)).shape == (1, 16, 4, 4)


@pytest.mark.parametrize(
    ("mechanism", "words"),
    [
        ("sasa:stride=2", r"makes maps of shape \(1, 16, 2, 2\) of \(1, 16, 4, 4\)"),
        ("axial:combine=product", "product"),
        ("axial:num_axes=3", r"n_1, n_2, n_3"),
    ],
)
def test_a_variant_that_cannot_be_a_block_is_refused(mechanism, words):
    with pytest.raises(InputError, match=f"{mechanism} cannot race: .*{words}"):
        choose(Settings.of({"task": "images", "smoke": True, "mechanisms": (mechanism,)}))


def test_maps_cannot_race_on_sequences():
    field = choose(Settings.of({"task": "copy", "smoke": True, "mechanisms": ("axial",)}))
    assert field.absent == (("axial", "works on maps, not on sequences"),)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"task": "images", "smoke": True, "ngram": 2}, "--ngram 2: a patch of an image is read by itself"),
        ({"task": "segmentation", "smoke": True, "ngram": 2}, "--ngram 2: a patch of an image is read by itself"),
        ({"task": "images", "files": ("nowhere",)}, "nowhere is not a folder: --task images takes one"),
        ({"task": "segmentation", "files": ("a", "b")}, "--task segmentation takes one folder, got 2"),
        ({"task": "segmentation", "scale": "full"}, "--task segmentation takes no --scale"),
    ],
)
def test_what_a_task_cannot_be_given_is_refused(given, words):
    def ask():
        settings = Settings.of(given)
        settings.discipline.prepare(settings)

    with pytest.raises(InputError, match=words):
        ask()


def test_a_folder_in_the_format_of_mnist(tmp_path):
    write_pictures(tmp_path, train=60, test=20, side=6, classes=3)
    settings, found = prepared("images", smoke=None, files=(str(tmp_path),), length=6)
    assert found.name == f"{tmp_path}, in the format of MNIST"
    assert {part: count for part, (count, _) in found.sizes.items()} == {"train": 54, "validation": 6, "test": 20}
    assert found.baselines()["linear"] == 1.0
    assert (found.published, found.remarks) == (None, [])
    larger = prepared("images", smoke=None, files=(str(tmp_path),), length=12)[1]
    assert larger.task.batch(0).tokens.shape[2:] == (12, 12)
    assert larger.remarks == ["images are scaled to --length"]
    assert settings.scale == "small"


def test_folders_of_the_user(tmp_path):
    for number in range(6):
        for folder in ("images", "masks"):
            (tmp_path / "tiles" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "classes" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (9, 8), (40 * number, 9, 9))
        image.save(tmp_path / "classes" / "ab"[number % 2] / f"{number}.png")
        image.save(tmp_path / "tiles" / "images" / f"{number}.png")
        Image.new("L", (9, 8), number % 2).save(tmp_path / "tiles" / "masks" / f"{number}.png")
    _, found = prepared("images", smoke=None, files=(str(tmp_path / "classes"),), length=8)
    assert found.name == f"{tmp_path / 'classes'} (2 classes)"
    assert found.sizes["test"] == (2, 128)
    _, found = prepared("segmentation", smoke=None, files=(str(tmp_path / "tiles"),), length=8)
    assert found.name == f"{tmp_path / 'tiles'} (2 classes)"
    assert found.sizes["test"] == (1, 128)
    assert found.remarks == ["12 tiles of 8 x 8 pixels"]
    assert found.task.metric.items == "images"


@pytest.mark.parametrize("name", TASKS)
def test_what_will_be_done_and_what_was_found_are_said_in_the_words_of_the_task(tmp_path, name):
    settings, found = prepared(name)
    lines = []
    describe(settings, found, lines.append)
    patch, items = settings.discipline.patch, found.task.metric.items
    assert f"test 16 {items}" in lines[0]
    assert f"patches of {patch} x {patch} pixels at the input" in lines[-1]
    step = f"{settings.batch} x {settings.length} x {settings.length} pixels a step"
    assert step in lines[-1]
    field = Field((Entrant("full"), Entrant("axial")), ())
    outcomes = []
    for entrant in field.entrants:
        (tmp_path / entrant.slug).mkdir()
        outcomes.append(Job(settings, entrant, tmp_path / entrant.slug).run())
    told = assemble(settings, field, found, found.baselines(), outcomes)
    page = render(told)
    for words in (step, f"patches of {patch} x {patch} pixels", f"over held-out {items}", settings.discipline.question):
        assert words in page, words
    assert "byte" not in re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.S)
    assert command(settings) == f"regard race --smoke --task {name} --device cpu"
    if name == "segmentation":
        assert "<th>IoU disc</th>" in page
        assert told["entrants"][0]["further"].keys() == {"IoU ground", "IoU disc", "IoU square", "IoU cross"}
