"""``--task translation``: which data it takes, and that a race on it is whole."""

import pytest
import torch

from regard.race.build import build
from regard.race.disciplines.translation import BLIND, FIELD
from regard.race.entrants import Entrant, choose
from regard.race.job import Job
from regard.race.settings import Settings
from regard.race.showing import exhibit
from regard.tasks.documents import InputError

pytest.importorskip("tokenizers")
pytest.importorskip("sacrebleu")


def prepared(*files, **given):
    given = {"steps": 2, "dim": 8, "depth": 1, "num_heads": 2, "batch": 2, "device": "cpu", **given}
    settings = Settings.of({"task": "translation", "files": files or None, "smoke": not files or None, **given})
    return settings, settings.discipline.prepare(settings)


def write_lines(folder, name, count, repeat=1):
    for language, word in (("en", "line"), ("de", "Zeile")):
        lines = [
            f"{word} {name} {number} " + " ".join(str(7919 * number * k) for k in range(repeat))
            for number in range(count)
        ]
        (folder / f"{name}.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder / f"{name}.en"), str(folder / f"{name}.de")


def test_a_race_from_numbers_in_words(tmp_path):
    settings, found = prepared()
    assert choose(settings).absent == ()
    assert found.sizes == found.task.sizes()
    figures = found.baselines()
    assert set(figures) == {"unigram", "bigram", BLIND}
    assert all(value is not None for value in figures.values())
    shown = exhibit(found.task.gallery())
    outcome = Job(settings, Entrant("luong"), tmp_path, fingerprint=found.fingerprint).run()
    assert outcome.quality > 0
    assert set(outcome.shown) == {"answers", "looked"}
    assert len(outcome.shown["answers"]) == len(shown["inputs"]) > 1
    assert all("chrF" in answer["words"] for answer in outcome.shown["answers"])
    assert all(sight["picture"] for sight in outcome.shown["looked"])
    assert outcome.milliseconds["attention"] > 0


def test_everything_but_the_mechanism_begins_alike():
    settings, found = prepared()
    full, other = (build(Entrant(name), settings, found.task).state_dict() for name in ("full", "bahdanau"))
    same = [name for name in full if name in other and torch.equal(full[name], other[name])]
    assert {name for name in full if "blocks.0.attention" not in name} <= set(same)
    assert not {name for name in other if "bahdanau" in name}


def test_more_kinds_of_tokens_than_bytes():
    settings, found = prepared()
    assert found.task.vocab_size > 256
    batch = found.task.batch(0)
    batch.tokens[:, -1] = found.task.vocab_size - 1
    prediction = build(Entrant("full"), settings, found.task)(batch.tokens, **batch.options)
    assert prediction.shape[-1] == found.task.vocab_size
    assert torch.isfinite(found.task.loss(prediction, batch))


def test_the_users_files_and_folders(tmp_path):
    _, two = prepared(*write_lines(tmp_path, "both", 40))
    assert two.rule.startswith("whole groups")
    for name, count in (("train", 30), ("val", 4), ("test", 5)):
        write_lines(tmp_path / "", name, count)
    _, folder = prepared(str(tmp_path))
    assert folder.rule == "by the names of the files"
    assert {part: size for part, (size, _) in folder.sizes.items()} == {"train": 30, "validation": 4, "test": 5}
    assert folder.fingerprint != two.fingerprint


@pytest.mark.parametrize(
    ("files", "given", "words"),
    [
        (("a", "b", "c"), {}, "two files of lines or one folder, got 3 names"),
        (("a.en",), {}, "a.en is neither"),
        (("a.en", "a.de"), {}, "a.en does not exist"),
        ((), {"ngram": 2}, "--ngram 2: a subword is read by itself"),
    ],
)
def test_what_it_cannot_be_about(files, given, words):
    with pytest.raises(InputError, match=words):
        prepared(*files, **given)


def test_the_users_long_sentences_are_refused_and_a_folder_without_help_is_told(tmp_path):
    files = write_lines(tmp_path, "long", 30, repeat=20)
    with pytest.raises(InputError, match=r"sentences have more than --length 12 subwords"):
        prepared(*files, length=12)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="help in en-US is missing"):
        prepared(str(tmp_path / "empty"))


def test_the_field_can_race():
    settings, _ = prepared(mechanisms=FIELD)
    found = choose(settings)
    assert len(found.entrants) == len(FIELD)
    refused = choose(Settings.of({"task": "translation", "smoke": True, "mechanisms": ("local", "cbam")})).absent
    assert dict(refused)["local"] == "attends within one input, not from one to another"
    assert dict(refused)["cbam"] == "works on maps, not on pairs"
