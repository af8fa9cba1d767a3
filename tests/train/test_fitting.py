import json
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from regard.tasks.documents import Document, InputError
from regard.tasks.language import LanguageModelling
from regard.tasks.split import Split
from regard.train.budget import Budget
from regard.train.checkpoint import write_checkpoint
from regard.train.fitting import fit, is_fitted, read_fitted, sentence
from regard.train.trainer import DivergedError

FACTS = {"kind": "toy", "data": "two words", "sizes": (8, 2)}


class Toy(nn.Module):
    """With dropout, so that random states matter."""

    def __init__(self, dim=8):
        super().__init__()
        self.embedding, self.out, self.drop = nn.Embedding(256, dim), nn.Linear(dim, 256), nn.Dropout(0.5)

    def forward(self, tokens, *, key_mask=None, return_aux=False):
        y = self.out(self.drop(self.embedding(tokens)))
        return (y, {}) if return_aux else y


def task():
    texts = (b"to be or not to be " * 20, b"not", b"be or")
    train, validation, test = (Document(text.decode()[:3], text) for text in texts)
    return LanguageModelling(Split((train,), (validation,), (test,), ""), length=8, batch=2, seed=0)


def fitted(folder, *, seed=7, dim=8, steps=6, facts=FACTS, model=None, **options):
    torch.manual_seed(seed)
    return fit(model or Toy(dim), task(), folder, Budget(steps=steps), rate=1e-2, facts=facts, **options)


def interrupt_at(step):
    def tell(trainer, loss):
        if trainer.progress.steps == step:
            os.kill(os.getpid(), signal.SIGINT)

    return tell


def test_what_was_interrupted_goes_on_bit_for_bit(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    fitted(tmp_path / "whole")
    steps, told = [], interrupt_at(3)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "parts", tell=lambda trainer, loss: (steps.append(loss), told(trainer, loss)))
    assert len(steps) == 3
    assert signal.getsignal(signal.SIGINT) is before
    assert not is_fitted(tmp_path / "parts")
    with pytest.raises(InputError, match="unfinished training of 3 steps"):
        read_fitted(tmp_path / "parts", "toy")
    fitted(tmp_path / "parts", seed=99, tell=lambda trainer, loss: steps.append(loss))
    assert len(steps) == 6
    whole, parts = (read_fitted(tmp_path / name, "toy") for name in ("whole", "parts"))
    assert whole[0].keys() == Toy().state_dict().keys()
    assert all(torch.equal(tensor, parts[0][name]) for name, tensor in whole[0].items())
    assert whole[1]["training"]["test"] == parts[1]["training"]["test"]
    assert whole[1] == {
        **json.loads(json.dumps(FACTS)),
        "training": {**whole[1]["training"], "budget": "6 steps", "steps": 6},
    }


def test_the_second_ctrl_c_does_not_wait(tmp_path):
    def twice(trainer, loss):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "model", tell=twice)
    assert list((tmp_path / "model").iterdir()) == []


def test_a_finished_training_returns_at_once(tmp_path):
    first = fitted(tmp_path)
    assert is_fitted(tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = fitted(tmp_path, seed=1, tell=lambda trainer, loss: pytest.fail("trained again"))
    assert again.progress == first.progress
    assert torch.equal(again.model.out.weight, first.model.out.weight)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files


def test_the_test_part_is_judged_where_only_that_was_left(tmp_path, monkeypatch):
    judge = LanguageModelling.held_out
    monkeypatch.setattr(LanguageModelling, "held_out", lambda self, part: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path)
    assert not is_fitted(tmp_path)
    monkeypatch.setattr(LanguageModelling, "held_out", judge)
    fitted(tmp_path, tell=lambda trainer, loss: pytest.fail("a seventh step"))
    assert is_fitted(tmp_path)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"facts": {**FACTS, "data": "a book"}}, "data 'two words', not data 'a book'"),
        ({"facts": {**FACTS, "rank": 3}}, "rank None, not rank 3"),
        ({"steps": 9}, "budget '6 steps', not budget '9 steps'"),
        ({"dim": 4}, "belongs to another model"),
    ],
)
def test_another_training_is_refused(tmp_path, other, words):
    fitted(tmp_path)
    with pytest.raises(InputError, match=words):
        fitted(tmp_path, **other)


def test_folders_without_a_model_of_the_kind_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds no trained model"):
        read_fitted(tmp_path / "none", "toy")
    assert not is_fitted(tmp_path / "none")
    fitted(tmp_path / "toy")
    with pytest.raises(InputError, match="holds a model of toy, not of speech"):
        read_fitted(tmp_path / "toy", "speech")
    (tmp_path / "other").mkdir()
    write_checkpoint(tmp_path / "other", {"model/w": torch.zeros(1)}, {"progress": {}})
    with pytest.raises(InputError, match="checkpoint of something else"):
        fitted(tmp_path / "other")
    (tmp_path / "file").write_text("a file")
    with pytest.raises(InputError, match="file is not a folder"):
        fitted(tmp_path / "file")
    with pytest.raises(InputError, match="cannot write into"):
        fitted(Path("/proc/nothing-can-be-here"))


@pytest.mark.parametrize("damage", ["cut", "gone", "words"])
def test_damaged_files_are_named(tmp_path, damage):
    fitted(tmp_path)
    weights = next(tmp_path.glob("*.safetensors"))
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "gone":
        weights.unlink()
    else:
        (tmp_path / "checkpoint.json").write_text("{")
    for call in (lambda: fitted(tmp_path), lambda: read_fitted(tmp_path, "toy"), lambda: is_fitted(tmp_path)):
        with pytest.raises(InputError, match="to train again"):
            call()


def test_checkpoints_are_written_every_so_often(tmp_path):
    seen = []
    fitted(tmp_path, every=0.0, tell=lambda trainer, loss: seen.append(len(list(tmp_path.glob("*.json")))))
    assert seen == [0, 1, 1, 1, 1, 1]


def test_divergence_names_the_folder_and_keeps_what_was_before(tmp_path):
    class Failing(Toy):
        steps = 0

        def forward(self, tokens, **options):
            self.steps += 1
            y, told = super().forward(tokens, **options)
            return (y * float("nan") if self.steps == 3 else y), told

    with pytest.raises(DivergedError, match=r"training into .* diverged: the loss is nan at step 3; delete it"):
        fitted(tmp_path, model=Failing(), every=0.0)
    assert json.loads((tmp_path / "checkpoint.json").read_bytes())["progress"]["steps"] == 2


def test_the_sentence_says_seconds_of_a_budget_in_steps(tmp_path):
    fitted(tmp_path)
    told = sentence(read_fitted(tmp_path, "toy")[1])
    assert told.startswith("trained on two words for 0 s (6 steps); held out: bits per byte ")
