"""Episodes: which images stand where, that classes are split, and what is shown of them."""

import pytest
import torch
from torch.testing import assert_close

from regard.tasks.fewshot import ClassPool, Episodes, draw, nearest, unseen
from regard.tasks.task import Batch

NAMES = tuple("abcdefghij")


def pool(each=12, side=8):
    """Images whose grey is their number; numbers tell the class."""
    count = len(NAMES) * each
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, side, side).contiguous()
    members = {"train": {}, "validation": {}, "test": {}}
    for k in range(len(NAMES)):
        numbers = torch.arange(k * each, (k + 1) * each)
        if k in unseen(NAMES):
            members["test"][k] = numbers
        else:
            members["train"][k], members["validation"][k] = numbers[:-4], numbers[-4:]
    return ClassPool(images, NAMES, members)


def task(**options):
    return Episodes(pool(), **{"shots": 2, "queries": 3, "batch": 5, "seed": 0, "test_episodes": 60, **options})


def numbers(found, images):
    """Which image stands where."""
    middle = found.scale.undo(images.flatten(0, 1))[:, 0, 4, 4] * 255
    return middle.round().long().view(images.shape[:2])


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_an_episode_has_different_images_of_its_classes_in_their_order(part):
    found = task()
    batch = found.batch(3) if part == "train" else next(iter(found.held_out(part)))
    queries = 3 if part == "train" else 1
    query, support = numbers(found, batch.tokens), numbers(found, batch.context)
    assert batch.targets.shape == query.shape == (len(query), found.ways * queries)
    for row in range(len(query)):
        seen = torch.cat((query[row], support[row])).tolist()
        assert len(set(seen)) == len(seen)
        classes = [int(number) // 12 for number in support[row]]
        assert classes == [k for k in classes[::2] for _ in range(2)]
        assert [classes[2 * k] for k in batch.targets[row].tolist()] == [int(number) // 12 for number in query[row]]
        members = torch.cat([*found.found.parts[part].values()]).tolist()
        assert set(seen) <= set(members)


def test_classes_to_be_tested_on_are_in_no_episode_to_learn_from():
    found = task()
    learned = {int(n) // 12 for step in range(40) for n in numbers(found, found.batch(step).context).flatten()}
    tested = {int(n) // 12 for batch in found.held_out("test") for n in numbers(found, batch.context).flatten()}
    validated = {
        int(n) // 12 for batch in found.held_out("validation") for n in numbers(found, batch.context).flatten()
    }
    assert learned == validated == set(range(10)) - set(unseen(NAMES))
    assert tested == set(unseen(NAMES))
    assert len(tested) == found.ways == 4


def test_episodes_depend_on_seed_and_step_and_those_of_a_part_on_nothing():
    def first(found, step=0):
        return numbers(found, found.batch(step).context)

    assert_close(first(task()), first(task()), rtol=0, atol=0)
    assert not torch.equal(first(task()), first(task(), 1))
    assert not torch.equal(first(task()), first(task(seed=1)))
    parts = [torch.cat([batch.context for batch in task(seed=seed).held_out("test")]) for seed in (0, 1)]
    assert_close(*parts, rtol=0, atol=0)
    assert len(parts[0]) == 60
    units = [unit for batch in task().held_out("test") for unit in batch.units]
    assert len(set(units)) == 60


def test_scores_are_shares_of_right_answers():
    targets = torch.tensor([[0, 1, 2], [0, 1, 2]])
    batch = Batch(torch.zeros(2, 3, 1, 8, 8), targets)
    scores = torch.eye(3)[torch.tensor([[0, 1, 0], [2, 2, 2]])]
    assert_close(task().scores(scores, batch), torch.tensor([2 / 3, 1 / 3]).double())
    assert task().loss(10 * scores, batch) > task().loss(10 * torch.eye(3)[targets], batch)


def test_the_nearest_mean_image():
    support = torch.tensor([0.0, 2.0, 10.0, 20.0]).view(1, 4, 1, 1, 1)
    query = torch.tensor([7.0, 9.0]).view(1, 2, 1, 1, 1)
    batch = Batch(query, torch.zeros(1, 2), context=support)
    assert nearest(batch, 2).tolist() == [[[-6.0, -8.0], [-8.0, -6.0]]]
    figures = task().baselines()
    assert figures["chance"] == 1 / 4
    assert figures["nearest mean image"] > 0.9  # greys of a class are near each other


def test_what_there_is_to_see():
    found = task()
    gallery = found.gallery()
    assert len(gallery.inputs) == len(gallery.truths) == 6
    assert gallery.inputs[0].picture.shape == (8 + 2 + 2 * 8 + 2, 4 * 8 + 3 * 2, 3)
    query = numbers(found, gallery.batch.tokens)[:, 0]
    assert [sight.words for sight in gallery.truths] == [NAMES[int(number) // 12] for number in query]
    model = found.model(8, 1, 2, "full").eval()
    answers, looked = gallery.ask(model)
    assert looked[0].picture.shape == (8, 8, 3)
    assert answers[0].words.split()[0] in gallery.inputs[0].words.removeprefix("one of: ").split(", ")
    wrong = torch.zeros(6, 1, 4).scatter(2, 3 - gallery.batch.targets[..., None], 9.0)
    assert [sight.right for sight in gallery.answers(wrong)] == [False] * 6


def test_who_is_unseen_depends_on_names_alone():
    assert [NAMES[k] for k in unseen(NAMES)] == sorted(NAMES[::-1][k] for k in unseen(NAMES[::-1]))
    assert len(unseen(NAMES)) == 4
    assert len(unseen(NAMES[:4])) == 2


def test_draw_takes_each_once():
    drawn = draw(torch.tensor([5, 6, 7, 8]), 3, torch.Generator().manual_seed(0)).tolist()
    assert len(set(drawn)) == 3
    assert set(drawn) <= {5, 6, 7, 8}
