import pytest
import torch

from regard.explore.lessons import Repeats, Shapes, Text
from regard.tasks.task import step_generator


@pytest.mark.parametrize("lesson", [Text, Repeats])
def test_the_next_byte_or_the_hidden_ones(lesson):
    batch = lesson(causal=True).batch(0)
    assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    filled = lesson(causal=False).batch(0)
    hidden = filled.targets >= 0
    assert (filled.tokens[hidden] == 0).all()
    assert 0.05 < hidden.float().mean() < 0.3
    assert hidden.any(-1).all()
    assert filled.amounts == tuple(hidden.sum(-1).float().tolist())


def test_batches_depend_on_the_step_alone_and_parts_differ():
    task = Repeats(causal=True)
    assert torch.equal(task.batch(3).tokens, Repeats(causal=True).batch(3).tokens)
    assert not torch.equal(task.batch(3).tokens, task.batch(4).tokens)
    first, second = (next(iter(task.held_out(part))).tokens for part in ("validation", "test"))
    assert not torch.equal(first, second)


def test_pieces_come_back():
    windows = Repeats(causal=True).windows(20, None, step_generator(0, 0))
    assert windows.min() >= 32
    assert windows.max() <= 126
    assert all(4 <= len(window.unique()) <= 24 or len(window.unique()) < 4 for window in windows)
    again = 0
    for window in windows.tolist():
        pairs = list(zip(window[:-2], window[1:-1], window[2:], strict=True))
        again += sum(pair in pairs[:place] for place, pair in enumerate(pairs)) / len(pairs)
    assert again / 20 > 0.6, "three letters in a row were mostly there before"


@pytest.mark.parametrize("task", [Text(causal=True), Text(causal=False), Repeats(causal=True), Shapes()])
def test_a_model_reads_a_batch_and_gradients_come_back(task):
    model = task.model(16, 1, 2, "full")
    batch = task.batch(0)
    loss = task.loss(model(batch.tokens), batch)
    loss.backward()
    assert loss.isfinite()
    assert next(model.parameters()).grad.abs().sum() > 0
