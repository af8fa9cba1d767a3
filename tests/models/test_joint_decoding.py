"""Joint decoding against every label sequence, and against the loop that it is."""

import itertools
import math

import pytest
import torch

import regard
from regard.models.joint_decoding import joint_search
from regard.models.language_models import NGram
from regard.models.location_decoder import LocationDecoder
from tests.ops.ctc_paths import NEVER, drawn, posteriors

START = END = 3
MODEL = NGram.fit([[1, 2, 2], [2, 1], [1]], 4, order=3)
WEIGHTS = [
    {"ctc_weight": 0.3},
    {"ctc_weight": 0.5, "language_weight": 0.4, "length_bonus": 0.3},
    {"ctc_weight": 0.0, "length_bonus": -0.2},
    {"ctc_weight": 1.0, "language_weight": 0.7},
]


def decoder():
    made = LocationDecoder(4, 5, dim=6, channels=2, radius=2).double().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.9)
    return made


def scored(model, frames, likely, labels, finished, *, ctc_weight, language_weight=0.0, length_bonus=0.0):
    """The score of a beginning, or of a whole, from what all of the models say of it."""
    logits, _ = model(frames[None], torch.tensor([[START, *labels]]))
    rows, after = logits[0].log_softmax(-1), [*labels, END] if finished else labels
    attention = sum(row[c].item() for row, c in zip(rows, after, strict=False))
    language = sum(MODEL.score([labels[:i]])[0, 4 if i == len(labels) else c].item() for i, c in enumerate(after))
    begun = [s for y, s in posteriors(likely).items() if y == labels or (not finished and y[: len(labels)] == labels)]
    begun = [s for s in begun if s > NEVER]
    ctc = math.log(sum(map(math.exp, begun))) if begun else NEVER
    parts = ((ctc_weight, ctc), (1 - ctc_weight, attention), (language_weight, language), (length_bonus, len(labels)))
    return sum(weight * part for weight, part in parts if weight)


def given(seed=0):
    torch.manual_seed(seed)
    frames, mask = torch.randn(2, 4, 5).double(), torch.arange(4) < torch.tensor([[4], [3]])
    return decoder(), frames, drawn(2, 4, 4, seed=seed, sharpness=2.0), mask


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_with_a_beam_for_everything_the_best_of_all_sequences_are_found(weights):
    model, frames, likely, mask = given()
    found = joint_search(
        model, model.begin(frames, mask), likely.masked_fill(~mask[..., None], math.nan), frame_mask=mask,
        start=START, end=END, beams=70, best=5, max_length=5, language_model=MODEL, **weights,
    )  # fmt: skip
    for number, some in enumerate(found):
        all_of_them = itertools.chain.from_iterable(itertools.product((1, 2), repeat=n) for n in range(5))
        real = mask[number]
        expected = {
            y: scored(model, frames[number, real], likely[number, real], y, True, **weights) for y in all_of_them
        }
        best = sorted((y for y in expected if expected[y] > NEVER), key=lambda y: -expected[y])[:5]
        assert [one.labels for one in some] == best
        assert [one.score for one in some] == pytest.approx([expected[y] for y in best], abs=1e-10)


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("beams", [1, 2])
def test_the_beam_is_that_of_the_loop(weights, beams):
    model, frames, likely, _ = given(1)
    found = joint_search(
        model, model.begin(frames), likely, start=START, end=END, beams=beams, best=99, max_length=5, preselect=None,
        language_model=MODEL, **weights,
    )  # fmt: skip
    for number, some in enumerate(found):
        open_, ended = [()], {}
        for _ in range(5):
            ended |= {y: scored(model, frames[number], likely[number], y, True, **weights) for y in open_}
            longer = [(*y, c) for y in open_ for c in (1, 2)]
            score = {y: scored(model, frames[number], likely[number], y, False, **weights) for y in longer}
            open_ = sorted((y for y in longer if score[y] > NEVER), key=lambda y: (-score[y], y))[:beams]
        best = sorted((y for y in ended if ended[y] > NEVER), key=lambda y: -ended[y])
        assert [one.labels for one in some] == best
        assert [one.score for one in some] == pytest.approx([ended[y] for y in best], abs=1e-10)


@pytest.mark.parametrize("seed", range(6))
def test_stopping_early_changes_nothing(seed):
    model, frames, likely, _ = given(seed)
    arguments = (model, model.begin(frames), likely)
    options = {"start": START, "end": END, "beams": 3, "ctc_weight": 0.5, "max_length": 5}
    whole = joint_search(*arguments, **options, best=99)
    assert joint_search(*arguments, **options, best=1) == [some[:1] for some in whole]
    assert joint_search(*arguments, **options) == [some[:3] for some in whole]


class Late:
    """A decoder that finds a first label unlikely and more of them certain."""

    def step(self, tokens, memory):
        likely = torch.where(memory == 0, torch.tensor([0.01, 0.1, 0.01, 0.88]), torch.tensor([0.01, 0.97, 0.01, 0.01]))
        return likely.log(), memory + 1


def test_a_bonus_may_make_up_for_what_was_unlikely():
    arguments = (Late(), torch.zeros(1, 1), torch.zeros(1, 3, 4).log_softmax(-1))
    found = joint_search(*arguments, start=START, end=END, ctc_weight=0.0, length_bonus=1.0, max_length=9, best=1)
    assert found[0][0].labels == (1,) * 8


def test_preselection_leaves_out_what_the_decoder_finds_unlikely():
    model, frames, likely, _ = given(3)
    torch.nn.init.zeros_(model.out_proj.weight)
    with torch.no_grad():
        model.out_proj.bias.copy_(torch.tensor([0.0, 1.0, -1.0, 0.0]))
    options = {"start": START, "end": END, "beams": 1, "ctc_weight": 0.9, "best": 9}
    some = joint_search(model, model.begin(frames), likely, preselect=1.0, **options)
    assert all(set(one.labels) <= {1} for row in some for one in row)
    everything = joint_search(model, model.begin(frames), likely, preselect=None, **options)
    assert any(2 in one.labels for row in everything for one in row)


def test_the_decoder_alone_may_go_on_beyond_ctc_and_stops_at_the_greatest_length():
    model, frames, likely, _ = given()
    found = joint_search(model, model.begin(frames), likely, start=START, end=END, ctc_weight=0.0, max_length=2, best=9)
    assert {len(one.labels) for row in found for one in row} == {0, 1}


def test_without_any_label_only_silence_is_left():
    model, frames, likely, _ = given()
    found = joint_search(model, model.begin(frames), likely[..., :1], start=START, end=END)
    assert [[one.labels for one in row] for row in found] == [[()], [()]]


def test_refusals():
    model, frames, likely, _ = given()
    for words, options in {
        "beams=0": {"beams": 0},
        "ctc_weight=2": {"ctc_weight": 2},
        "preselect=0.5": {"preselect": 0.5},
        "max_length=0": {"max_length": 0},
        "language_weight=0.5 weighs": {"language_weight": 0.5},
        "a decoder of 4 tokens lacks the end, 4": {"end": 4},
    }.items():
        with pytest.raises(ValueError, match=words):
            joint_search(model, model.begin(frames), likely, **{"start": START, "end": END, **options})


def test_its_public_name_stays_a_function():
    """No file of that name takes its place once it has been imported."""
    assert regard.models.joint_search is joint_search
    assert regard.models.joint_search is joint_search
