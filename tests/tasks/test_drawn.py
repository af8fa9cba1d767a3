import pytest
import torch

from regard.tasks.copying import SYMBOLS, Copying
from regard.tasks.documents import InputError
from regard.tasks.drawn import HELD_OUT, UNASKED
from regard.tasks.recall import KEYS, VALUES, Recall

TASKS = [Copying(length=20, batch=5, seed=3), Recall(length=24, batch=5, seed=3)]


@pytest.mark.parametrize("task", TASKS)
def test_steps_are_new_and_parts_stay(task):
    assert torch.equal(task.batch(4).tokens, task.batch(4).tokens)
    assert not torch.equal(task.batch(4).tokens, task.batch(5).tokens)
    other = type(task)(length=task.length, batch=5, seed=4)
    assert not torch.equal(task.batch(4).tokens, other.batch(4).tokens)
    assert task.digest() == type(task)(length=task.length, batch=9, seed=3).digest() != other.digest()
    first, again = (torch.cat([batch.tokens for batch in task.held_out("test")]) for _ in range(2))
    assert torch.equal(first, again)
    assert len(first) == HELD_OUT["test"]
    assert task.sizes()["test"] == (512, 512 * task.length)


@pytest.mark.parametrize("task", TASKS)
def test_inputs_and_targets_are_one_step_apart(task):
    for batch in (task.batch(0), *task.held_out("validation")):
        assert batch.tokens.shape == batch.targets.shape == (len(batch.tokens), task.length - 1)
        asked = batch.targets[:, :-1] != UNASKED
        assert torch.equal(batch.targets[:, :-1][asked], batch.tokens[:, 1:][asked])


def test_copying_asks_for_the_second_w():
    tokens, told = TASKS[0].part("test")
    w = tokens[:, 1:10]
    assert torch.equal(tokens, torch.cat((0 * w[:, :1], w, 0 * w[:, :1], w), 1))
    assert (told[:, :11] == UNASKED).all()
    assert torch.equal(told[:, 11:], w)
    assert (int(w.min()), int(w.max())) == (1, SYMBOLS)


def test_recall_asks_for_the_value_beside_the_key():
    tokens, told = TASKS[1].part("test")
    for row, answers in zip(tokens.tolist(), told.tolist(), strict=True):
        pairs = dict(zip(row[0:12:2], row[1:12:2], strict=True))
        assert len(pairs) == 6, "no key comes twice"
        assert all(key < len(KEYS) <= value < len(KEYS + VALUES) for key, value in pairs.items())
        assert sorted(row[12::2]) == sorted(pairs), "each is asked once"
        assert [pairs[query] for query in row[12::2]] == row[13::2]
        assert answers == [UNASKED] * 12 + [token for value in row[13::2] for token in (UNASKED, value)]
    assert (tokens[:, 12::2] != tokens[:, 0:12:2]).any(), "in another order"


@pytest.mark.parametrize("task", TASKS)
def test_scores_count_what_is_asked(task):
    for batch in task.held_out("test"):
        right = torch.nn.functional.one_hot(batch.targets.clamp(min=0), task.vocab_size).float()
        amounts = torch.tensor(batch.amounts).double()
        assert torch.equal(task.scores(right, batch), amounts)
        assert task.scores(-right, batch).sum() == 0
        assert task.loss(100 * right, batch) < 1e-6
        one_wrong = right.clone()
        place = (batch.targets[0] != UNASKED).nonzero()[0, 0]
        one_wrong[0, place] = -right[0, place]
        assert task.scores(one_wrong, batch)[0] == amounts[0] - 1
    assert {task: 9.0, TASKS[1]: 6.0}[task] == batch.amounts[0]


def test_baselines_are_what_guessing_gives():
    copy, recall = (task.baselines() for task in TASKS)
    assert copy["chance"] == 1 / 127
    assert recall["chance"] == 1 / 42
    tokens, _ = TASKS[1].part("test")
    hits = 0
    for row in tokens.tolist():
        values = row[1:12:2]
        hits += max(values.count(value) for value in values)
    assert recall["most frequent value"] == pytest.approx(hits / (6 * len(tokens)))
    w = TASKS[0].part("test")[0][:, 1:10].tolist()
    assert copy["most frequent symbol"] == pytest.approx(sum(max(map(row.count, row)) for row in w) / (9 * len(w)))


def test_passages_have_one_sign_a_token():
    copy, recall = TASKS
    assert copy.spell(copy.passage(20))[0] == " "
    assert len(copy.spell(copy.passage(20))) == 20
    spelled = recall.spell(recall.passage(100))
    assert len(spelled) == 24
    assert set(spelled[0::2]) <= set(KEYS)
    assert set(spelled[1::2]) <= set(VALUES)
    assert not set(KEYS) & set(VALUES)
    assert len(KEYS + VALUES) == 94


def test_sizes_that_cannot_be():
    for length in (2, 9):
        with pytest.raises(InputError, match=rf"--length {length}: 0 w 0 w has an even number of tokens"):
            Copying(length=length, batch=1, seed=0)
    for length in (0, 22, 212):
        with pytest.raises(InputError, match=rf"--length {length}: .*a multiple of 4 up to 208"):
            Recall(length=length, batch=1, seed=0)
