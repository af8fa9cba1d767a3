"""Searches against enumeration and against the paper's loop: ties, pruning, language models, masks, streams."""

import math

import pytest
import torch
from torch.testing import assert_close

from regard.ops.ctc_search import GreedySearch, PrefixSearch, greedy_labels, prefix_beam_search
from tests.ops.ctc_paths import drawn, posteriors, said, searched


class Bigrams:
    """A random language model; the last row and column are those of start and end."""

    def __init__(self, classes):
        self.table = drawn(classes + 1, classes + 1, seed=9)

    def row(self, labels):
        return self.table[labels[-1] if labels else -1]

    def score(self, prefixes):
        return torch.stack([self.row(prefix) for prefix in prefixes])


def test_greedy_is_the_best_path():
    log_probs = drawn(4, 9, 4)
    found = greedy_labels(log_probs, blank=2)
    assert found == [list(said(row.argmax(-1).tolist(), 2)) for row in log_probs]
    mask = torch.rand(4, 9, generator=torch.Generator().manual_seed(0)) < 0.6
    dirty = log_probs.masked_fill(~mask[..., None], math.nan)
    expected = [greedy_labels(row[real][None])[0] for row, real in zip(log_probs, mask, strict=True)]
    assert greedy_labels(dirty, frame_mask=mask) == expected


def test_greedy_goes_on_across_pieces():
    log_probs, search = drawn(3, 20, 3), GreedySearch(3)
    pieces = [search.read(piece) for piece in log_probs.split([1, 0, 6, 13], 1)]
    joined = [[label for part in parts for label in part] for parts in zip(*pieces, strict=True)]
    assert joined == greedy_labels(log_probs)
    with pytest.raises(ValueError, match="2 utterances, but the search was begun for 3"):
        search.read(log_probs[:2])


@pytest.mark.parametrize("blank", [0, 2])
def test_with_a_beam_for_everything_scores_are_posteriors(blank):
    log_probs = drawn(2, 5, 3)
    for row, found in zip(log_probs, prefix_beam_search(log_probs, beams=200, blank=blank), strict=True):
        expected = posteriors(row, blank)
        assert len(found) == len(expected)
        for prefix in found:
            assert_close(prefix.score, expected[prefix.labels], rtol=0, atol=1e-12)
            assert prefix.score == prefix.log_ctc
        assert [p.labels for p in found] == sorted(expected, key=lambda labels: (-expected[labels], labels))


OPTIONS = [
    {"beams": 1},
    {"beams": 4},
    {"beams": 3, "blank": 3},
    {"beams": 5, "topk": 2},
    {"beams": 5, "floor": -1.2, "beta": 0.4},
    {"beams": 4, "topk": 3, "alpha": 0.7, "beta": 0.5, "blank": 1},
    {"beams": 6, "alpha": 1.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["drawn", "rounded", "flat"])
def test_the_beam_is_that_of_the_loop(options, kind):
    log_probs = drawn(3, 10, 4, seed=3)
    if kind != "drawn":  # equal scores, which go by the order of labels
        log_probs = (log_probs.round() if kind == "rounded" else 0 * log_probs).log_softmax(-1)
    model = Bigrams(4) if "alpha" in options else None
    found = prefix_beam_search(log_probs, language_model=model, **options)
    for row, some in zip(log_probs, found, strict=True):
        expected = searched(row, row_of=(lambda labels: model.row(labels).tolist()) if model else None, **options)
        assert [prefix.labels for prefix in some] == [labels for labels, *_ in expected]
        for prefix, (_, *numbers) in zip(some, expected, strict=True):
            assert (prefix.score, prefix.log_blank, prefix.log_nonblank) == pytest.approx(tuple(numbers), abs=1e-10)


def test_a_language_model_during_the_search_is_more_than_at_its_end():
    log_probs, model = drawn(1, 12, 4, seed=5), Bigrams(4)
    within = prefix_beam_search(log_probs, beams=2, language_model=model, alpha=2.0)[0]
    plain = prefix_beam_search(log_probs, beams=2)[0]
    assert {prefix.labels for prefix in within} != {prefix.labels for prefix in plain}
    expected = sum(model.row(within[0].labels[:i])[c] for i, c in enumerate(within[0].labels))
    unfinished = prefix_beam_search(log_probs, beams=2, language_model=model, alpha=2.0, finish=False)[0]
    assert_close(next(p for p in unfinished if p.labels == within[0].labels).log_language, expected.item())
    assert_close(within[0].log_language, (expected + model.row(within[0].labels)[-1]).item())


def test_masked_frames_are_absent_and_pieces_are_the_whole():
    log_probs = drawn(3, 11, 5)
    mask = torch.rand(3, 11, generator=torch.Generator().manual_seed(1)) < 0.7
    whole = prefix_beam_search(log_probs.masked_fill(~mask[..., None], math.nan), frame_mask=mask, beams=5)
    assert whole == [prefix_beam_search(row[real][None], beams=5)[0] for row, real in zip(log_probs, mask, strict=True)]
    search = PrefixSearch(3, 5, beams=5)
    for piece, real in zip(log_probs.split([4, 0, 7], 1), mask.split([4, 0, 7], 1), strict=True):
        search.read(piece, frame_mask=real)
    assert search.results() == whole


def test_nothing_heard_says_nothing():
    found = prefix_beam_search(torch.zeros(2, 0, 3), beams=4)
    assert [[prefix.labels for prefix in some] for some in found] == [[()], [()]]


def test_float32_is_searched_in_float64():
    log_probs = drawn(1, 30, 6).float()
    assert prefix_beam_search(log_probs, beams=4) == prefix_beam_search(log_probs.double(), beams=4)


def test_refusals():
    log_probs = drawn(1, 4, 3)
    for words, options in {
        "beams=0": {"beams": 0},
        "topk=0": {"topk": 0},
        "blank=3": {"blank": 3},
        "alpha=0.5 weighs a language model": {"alpha": 0.5},
        "the language model scored 1 beginnings as": {"alpha": 0.5, "language_model": Bigrams(7)},
    }.items():
        with pytest.raises(ValueError, match=words):
            prefix_beam_search(log_probs, **options)
    with pytest.raises(ValueError, match="begun for 1 utterances and 3 classes"):
        PrefixSearch(1, 3).read(drawn(1, 4, 5))
