import mmap

import pytest
import torch
from torch import nn

from regard.tasks.documents import Document
from regard.tasks.language import LanguageModelling
from regard.tasks.split import Split
from regard.train.budget import Budget
from regard.train.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from regard.train.clock import AttentionClock, memory_now, memory_peak
from regard.train.trainer import DivergedError, Trainer


class Toy(nn.Module):
    """A language model with dropout, so that random states matter."""

    def __init__(self, dim=8):
        super().__init__()
        self.embedding, self.out, self.drop = nn.Embedding(256, dim), nn.Linear(dim, 256), nn.Dropout(0.5)

    def forward(self, tokens, *, key_mask=None, return_aux=False):
        y = self.out(self.drop(self.embedding(tokens)))
        return (y, {"loss/extra": self.out.bias.sum() * 0.1, "metric/seen": y.mean()}) if return_aux else y


def task():
    split = Split(
        (Document("a", b"to be or not to be " * 20),), (Document("b", b"not"),), (Document("c", b"be or"),), ""
    )
    return LanguageModelling(split, length=8, batch=2, seed=0)


def trainer(steps=6, dim=8, rate=1e-2):
    torch.manual_seed(7)
    return Trainer(Toy(dim), task(), Budget(steps=steps), rate=rate, device="cpu")


def weights(given):
    return {name: tensor.clone() for name, tensor in given.model.state_dict().items()}


def test_resumes_bit_for_bit(tmp_path):
    whole = trainer()
    losses = [whole.step() for _ in range(6)]
    first = trainer()
    assert [first.step() for _ in range(3)] == losses[:3]
    write_checkpoint(tmp_path, *first.state())
    torch.manual_seed(99)
    second = Trainer(Toy(), task(), Budget(steps=6), rate=1e-2, device="cpu")
    second.resume(*read_checkpoint(tmp_path))
    assert [second.step() for _ in range(3)] == losses[3:]
    assert second.progress.steps == 6
    assert second.progress.tokens == whole.progress.tokens == 6 * 16
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


def test_further_figures_are_means_like_quality():
    class Told(LanguageModelling):
        def further(self, prediction, batch):
            hits = (prediction.argmax(-1) == batch.targets).double().sum(-1)
            return {"hits": hits, "halves": hits / 2}

    given = Told(task().split, length=3, batch=2, seed=0)
    judged = Trainer(Toy(), given, Budget(steps=1), rate=1e-2, device="cpu").judge("test")
    assert judged.further["hits"] == 2 * judged.further["halves"]
    assert 0 <= judged.further["hits"] <= 1
    assert trainer().judge("test").further == {}


def test_judging_changes_nothing():
    plain = trainer()
    losses = [plain.step() for _ in range(4)]
    judged, told = trainer(), []
    for loss in losses:
        assert judged.step() == loss
        told.append(judged.judge("test").quality)
    assert judged.model.training
    units = judged.judge("test").units
    assert [(name, amount) for name, _, amount in units] == [("c", 5.0)]
    assert judged.judge("test").quality == units[0][1] / 5 == told[-1]


def test_extra_losses_of_the_model_are_trained():
    given = trainer(rate=1e-1)
    for _ in range(6):
        given.step()
    other = trainer(rate=1e-1)
    other.model.forward = lambda tokens, **options: (Toy.forward(other.model, tokens), {})
    for _ in range(6):
        other.step()
    assert weights(given)["out.bias"].sum() < weights(other)["out.bias"].sum() - 1


def test_a_loss_that_is_no_number_is_divergence():
    given = trainer()
    with torch.no_grad():
        given.model.out.weight.fill_(float("nan"))
    with pytest.raises(DivergedError, match="the loss is nan at step 1"):
        given.step()
    with pytest.raises(DivergedError, match="held-out bits per byte is nan"):
        given.judge("validation")


def test_refuses_the_checkpoint_of_another_model(tmp_path):
    write_checkpoint(tmp_path, *trainer(dim=4).state())
    with pytest.raises(CheckpointError, match="another model"):
        trainer().resume(*read_checkpoint(tmp_path))


def test_the_clock_counts_only_its_modules():
    class Slow(nn.Module):
        def forward(self, x):
            for _ in range(200):
                x = torch.sin(x)
            return x

    slow, rest = Slow(), nn.Linear(64, 64)
    with AttentionClock([slow]) as clock:
        rest(torch.ones(64, 64)).sum().backward()
        assert clock.seconds == 0
        y = slow(rest(torch.ones(64, 64)))
        forward = clock.seconds
        y.sum().backward()
    assert 0 < forward < clock.seconds
    spent = clock.seconds
    slow(rest(torch.ones(64, 64))).sum().backward()
    assert clock.seconds == spent


def test_memory_is_told_in_bytes():
    before = memory_now()
    with mmap.mmap(-1, 120_000_000) as fresh:  # a tensor might lie in pages that the process holds already
        fresh.write(b"1" * 1000 * 120_000)
        assert memory_now() - before > 60_000_000
    assert memory_peak() >= before + 60_000_000
