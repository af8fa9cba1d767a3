"""Scenes, questions and answers against a second reading of the words; parts, scores and baselines of the task."""

from collections import Counter
from random import Random

import pytest
import torch

from regard.registry import UnsupportedError
from regard.tasks.reasoning import HELD_OUT, Reasoning
from regard.tasks.scene_questions import ANSWERS, KINDS, LONGEST, WORDS, Thing, draw_question, execute
from regard.tasks.scenes import COLOURS, SHAPES, draw_images, draw_scene
from regard.tasks.task import Batch


@pytest.fixture(scope="module")
def questions():
    random = Random("tests")
    return [draw_question(random) for _ in range(100)]


@pytest.fixture
def few(monkeypatch):
    """Short held-out parts: with every argument checked, drawing is slow."""
    for part, count in (("validation", 9), ("test", 12)):
        monkeypatch.setitem(HELD_OUT, part, count)
    monkeypatch.setattr("regard.tasks.reasoning.JUDGED", 4)


def read(words, scene):
    """What is asked, from the words alone, without the rules on ambiguity; one's own words for each phrase."""
    text = " ".join(words).removesuffix(" ?")

    def named(phrase):
        parts = phrase.split()
        shape = (
            parts[-1]
            if parts[-1] in SHAPES
            else {"rings": "ring", "squares": "square", "crosses": "cross"}.get(parts[-1])
        )
        colour = parts[0] if parts[0] in COLOURS else None
        return [t for t in scene if colour in (None, t.colour) and shape in (None, t.shape)]

    def the(phrase, passed=()):
        phrase = phrase.removeprefix("the ")
        if phrase.startswith("thing nearest to "):
            passed = the(phrase.removeprefix("thing nearest to "))
            here = passed[-1]
            others = [t for t in scene if t not in passed]
            return [*passed, min(others, key=lambda t: (t.x - here.x) ** 2 + (t.y - here.y) ** 2)]
        (only,) = named(phrase)
        return [only]

    def beside(phrase):
        for side, sign in (("left of", -1), ("right of", 1), ("above", -2), ("below", 2)):
            if phrase.startswith(side):
                here = the(phrase.removeprefix(side).strip())[-1]
                return [t for t in scene if sign * ((t.x - here.x) if abs(sign) == 1 else (t.y - here.y)) > 0]
        raise AssertionError(phrase)

    def yes(truth):
        return "yes" if truth else "no"

    if text.startswith("what "):
        _, what, _, rest = text.split(" ", 3)
        return getattr(the(rest)[-1], what)
    if text.startswith("how many things are "):
        return str(len(beside(text.removeprefix("how many things are "))))
    if text.startswith("how many "):
        return str(len(named(text.removeprefix("how many ").removesuffix(" are there"))))
    if text.startswith("are there more "):
        left, right = text.removeprefix("are there more ").split(" than ")
        return yes(len(named(left)) > len(named(right)))
    if text.startswith("is there a "):
        rest = text.removeprefix("is there a ")
        for side in ("left of", "right of", "above", "below"):
            if f" {side} " in rest:
                name, place = rest.split(f" {side} ")
                near = beside(f"{side} {place}")
                return yes(any(t in near for t in named(name)))
        return yes(named(rest))
    place, what = text.removeprefix("is ").split(" of the same ")
    first, second = the(place)
    return yes(getattr(first, what) == getattr(second, what))


def test_programs_answer_what_the_words_ask(questions):
    assert len({question.kind for question in questions}) == len(KINDS)
    for question in questions:
        assert read(question.words, question.scene) == question.answer == execute(question.program, question.scene)
        assert question.answer in KINDS[question.kind][1]
        assert set(question.words) <= set(WORDS)


def test_hops_are_counted(questions):
    for question in questions:
        hops = sum(step in ("nearest", "beside") for step, _ in question.program)
        assert hops == KINDS[question.kind][0]
    assert max(len(question.words) for question in questions) == LONGEST


def test_kinds_and_their_answers_are_equally_frequent(questions):
    kinds, answers = Counter(q.kind for q in questions), Counter(q.answer for q in questions)
    assert all(1 <= kinds[kind] <= 20 for kind in KINDS)
    assert abs(answers["yes"] - answers["no"]) < 25
    assert min(answers[str(count)] for count in range(4)) > 1
    assert 8 < sum(answers[colour] for colour in COLOURS) < 40
    rare = Counter(q.answer for q in questions if q.kind == "same colour")
    assert min(rare["yes"], rare["no"]) > 0


def thing(x, y, colour="red", shape="ring"):
    return Thing(colour, shape, x, y, 3.0)


def test_what_is_ambiguous_has_no_answer():
    start = [("filter", ("red", None)), ("unique", None)]
    here, colour = thing(5, 5), ("query", "colour")
    blue, green = thing(15, 5, "blue"), thing(5, 15.2, "green")
    assert execute([*start, colour], (here, blue)) == "red"
    assert execute([*start, colour], (here, thing(15, 5))) is None  # two of them
    assert execute([*start, colour], (blue, green)) is None  # none
    near = [*start, ("nearest", None)]
    assert execute([*near, colour], (here, blue, green)) is None  # as near as each other
    assert execute([*near, colour], (here, blue, thing(5, 16.6, "green"))) == "blue"
    twice = [*near, ("nearest", None), colour]
    assert execute(twice, (here, blue, thing(26.9, 5, "green"))) == "green"  # not back to where it came from
    assert execute(twice, (here, blue)) is None
    beside = [*start, ("beside", "right"), ("count", None)]
    assert execute(beside, (here, blue, thing(3, 20, "green"))) == "1"
    assert execute(beside, (here, blue, thing(6.9, 20, "green"))) is None  # hardly to the right
    above = [*start, ("beside", "above"), ("filter", (None, "ring")), ("exist", None)]
    assert execute(above, (thing(5, 15), thing(20, 5, "blue", "cross"))) == "no"
    assert execute(above, (thing(5, 15), thing(20, 5, "blue"))) == "yes"
    assert execute([("filter", (None, "ring")), ("count", None)], tuple(thing(i, 5) for i in range(4))) is None
    more = [("more", (("red", None), ("blue", None)))]
    assert execute(more, (here, blue)) is None
    assert execute(more, (here, here, blue)) == "yes"
    assert execute([("more", (("red", None), ("red", "ring")))], (here, thing(1, 1, shape="cross"))) is None


def test_things_do_not_touch_and_are_drawn_where_they_are():
    random = Random(5)
    scenes = [draw_scene(random) for _ in range(40)]
    assert {len(scene) for scene in scenes} == {3, 4, 5, 6}
    for scene in scenes:
        for number, one in enumerate(scene):
            assert 4 <= one.x <= 28
            assert 2.5 <= one.size <= 3.5
            assert all(max(abs(one.x - o.x), abs(one.y - o.y)) >= 7 for o in scene[:number])
    images = draw_images(scenes, torch.Generator().manual_seed(0))
    for scene, image in zip(scenes, images, strict=True):
        for one in scene:
            pixel = image[:, int(one.y), int(one.x)]
            seen = one.shape == "ring" or (pixel.sign() == torch.tensor(COLOURS[one.colour])).all()
            assert seen, one


def test_shapes_are_as_they_are_said_to_be():
    def inside(shape, right, down, size):
        if shape == "ring":
            return size / 2 < (right**2 + down**2) ** 0.5 < size
        return max(right, down) < size and (shape == "square" or min(right, down) < size / 3)

    for shape in SHAPES:
        for x, y, size in ((8.0, 20.0, 3.0), (8.4, 19.7, 3.4), (16.4, 11.2, 2.6)):
            image = draw_images([(Thing("red", shape, x, y, size),)], torch.Generator().manual_seed(0))[0]
            for row in range(32):
                for column in range(32):
                    there = inside(shape, abs(column + 0.5 - x), abs(row + 0.5 - y), size)
                    assert (float(image[0, row, column]) > 0.5) == there
                    assert (float(image[2, row, column]) < -0.5) == there


def test_steps_are_new_and_parts_stay(few):
    task, again, other = Reasoning(batch=6, seed=1), Reasoning(batch=6, seed=1), Reasoning(batch=6, seed=2)
    first, same = task.batch(3), again.batch(3)
    for name in ("tokens", "targets", "context", "key_mask"):
        assert torch.equal(getattr(first, name), getattr(same, name)), name
    assert not torch.equal(first.context, task.batch(4).context)
    assert not torch.equal(first.context, other.batch(3).context)
    assert torch.equal(first.key_mask, first.tokens != 0)
    shown = list(task.held_out("validation"))
    assert [len(batch.tokens) for batch in shown] == [4, 4, 1]
    assert task.sizes()["validation"] == (9, 9 * 32 * 32)
    assert torch.equal(shown[-1].context, list(again.held_out("validation"))[-1].context)


def test_answers_are_scored_by_kind_and_by_hops():
    task = Reasoning(batch=30, seed=1)
    batch = task.batch(0)
    asked = task.questions(0, 30)
    assert [ANSWERS[target] for target in batch.targets.tolist()] == [question.answer for question in asked]
    words = [" ".join(WORDS[token] for token in row if token) for row in batch.tokens.tolist()]
    assert words == [" ".join(question.words) for question in asked]
    right = torch.nn.functional.one_hot(batch.targets, task.num_classes).float()
    exist = torch.tensor([question.kind == "exist" for question in asked])
    right[exist] *= -1
    scores, told = task.tally(task.scores(right, batch))
    assert torch.equal(scores == 1, ~exist)
    assert told["accuracy, exist"] == 0
    assert told["accuracy, count beside nearest"] == told["accuracy, hops 2"] == told["accuracy, hops 1"] == 1
    easy = [question for question in asked if KINDS[question.kind][0] == 0]
    assert told["accuracy, hops 0"] == pytest.approx(1 - sum(q.kind == "exist" for q in easy) / len(easy))
    assert float(task.loss(20 * right.abs(), batch)) < 1e-3


def test_the_model_learns_from_its_loss_and_others_are_refused():
    task = Reasoning(batch=8, seed=0)
    model, batch = task.model(8, 2, 1, "mac"), task.batch(0)
    assert isinstance(batch, Batch)
    logits, _ = model(batch.tokens, **batch.options, return_aux=True)
    task.loss(logits, batch).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(UnsupportedError, match="linformer answers no question"):
        task.model(8, 2, 1, "linformer")


def test_baselines_count_answers_of_the_kind_and_of_the_words(few, monkeypatch):
    monkeypatch.setattr("regard.tasks.reasoning.COUNTED", 80)
    task = Reasoning(batch=20, seed=0)
    seen = [question for step in range(5) for question in task.questions(step, 20)]
    test, right = task.questions("test", 12), {"kind": 0, "words": 0}
    for question in test:
        answers = Counter(q.answer for q in seen if q.kind == question.kind)
        right["kind"] += answers.most_common(1)[0][0] == question.answer
        answers = Counter(q.answer for q in seen if q.words == question.words) or answers
        right["words"] += answers.most_common(1)[0][0] == question.answer
    expected = {f"most frequent answer of the {name}": count / 12 for name, count in right.items()}
    assert task.baselines() == expected


def test_the_rules_have_not_changed(few):
    digest = Reasoning(batch=1, seed=0).digest()
    assert digest == Reasoning(batch=7, seed=0).digest() != Reasoning(batch=1, seed=1).digest()
    assert digest.startswith("a30a9cfdcca4e04c")
