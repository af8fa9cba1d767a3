"""The best of all paths, its ties, spans, wildcards; the share of all paths that pass through a state."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from regard.ops.ctc_alignment import Span, align, occupancies, words
from tests.ops.ctc_paths import added, drawn, paths, said


def brute_force(log_probs, labels):
    """The score and the path that is best; None where several are."""
    best = sorted(((score, path) for path, score in paths(log_probs) if said(path) == labels), reverse=True)
    return best[0]


def symbols(labels):
    return [0, *itertools.chain.from_iterable((label, 0) for label in labels)]


def walks(labels, frames):
    """All ways through the states, as lists of states."""
    z = symbols(labels)
    last = len(z) - 1
    for path in itertools.product(range(len(z)), repeat=frames):
        steps = list(itertools.pairwise(path))
        fits = path[0] <= 1 and path[-1] >= last - 1
        if fits and all(b - a in (0, 1) or (b - a == 2 and z[b] not in (0, z[a])) for a, b in steps):
            yield path


@pytest.mark.parametrize("labels", [(1, 1), (2, 1, 2), (1,), ()])
def test_the_best_path_of_all(labels):
    batch = drawn(5, 6, 3, sharpness=2.0)
    found = align(batch, torch.tensor([labels] * 5).view(5, -1).long())
    for log_probs, path, states, score in zip(batch, found.labels, found.states, found.score, strict=True):
        expected, best = brute_force(log_probs, labels)
        assert_close(score.item(), expected, rtol=0, atol=1e-12)
        assert tuple(path.tolist()) == best
        assert tuple(states.tolist()) in set(walks(labels, 6))
        assert [symbols(labels)[state] for state in states] == list(best)


def test_among_equals_it_stays_then_goes_one_on():
    flat = torch.zeros(1, 4, 3).log_softmax(-1)
    assert align(flat, torch.tensor([[1]])).states.tolist() == [[1, 1, 1, 1]]
    assert align(flat, torch.tensor([[1, 2]])).states.tolist() == [[1, 3, 3, 3]]
    assert align(flat, torch.tensor([[1, 1]])).states.tolist() == [[1, 2, 3, 3]]
    blank_better = torch.tensor([[[0.0, 0.0], [0.1, 0.0]]])
    assert align(blank_better, torch.tensor([[1]])).states.tolist() == [[1, 2]]


def test_the_first_state_never_looks_at_the_last():
    """ESPnet's forced alignment wraps round there: the best path into the first blank came from the end."""
    log_probs = torch.tensor([[[0.1, 0.9], [0.9, 0.1], [0.9, 0.1], [0.4, 0.6]]]).log()
    for seed in range(40):
        drawn_probs = drawn(1, 7, 4, seed=seed, sharpness=3.0)
        assert align(drawn_probs, torch.tensor([[1, 2, 3]])).states.diff().min() >= 0
    assert align(log_probs, torch.tensor([[1, 1]])).states.tolist() == [[1, 2, 2, 3]]


def test_spans_of_a_batch_are_those_of_each_utterance():
    batch, frames, counts = drawn(3, 9, 5, sharpness=2.0), [9, 6, 4], [4, 2, 0]
    labels = torch.tensor([[1, 2, 2, 4], [3, 3, 0, 0], [0, 0, 0, 0]])
    frame_mask = torch.arange(9) < torch.tensor(frames)[:, None]
    label_mask = torch.arange(4) < torch.tensor(counts)[:, None]
    dirty = batch.masked_fill(~frame_mask[..., None], math.nan)
    whole = align(dirty, labels, frame_mask=frame_mask, label_mask=label_mask)
    for number, (length, count) in enumerate(zip(frames, counts, strict=True)):
        alone = align(batch[number : number + 1, :length], labels[number : number + 1, :count])
        assert whole.spans()[number] == alone.spans()[0]
        assert_close(whole.score[number], alone.score[0], rtol=0, atol=0)
        assert whole.states[number, length:].eq(-1).all()
        assert [span.label for span in alone.spans()[0]] == labels[number, :count].tolist()
        for span in alone.spans()[0]:
            expected = batch[number, span.first : span.end, span.label].exp().mean()
            assert_close(span.probability, expected.item(), rtol=0, atol=1e-12)


def test_left_padding_moves_the_spans_with_the_frames():
    log_probs, labels = drawn(1, 6, 4, sharpness=2.0), torch.tensor([[2, 1]])
    moved = torch.cat((torch.full((1, 3, 4), math.nan, dtype=torch.float64), log_probs), 1)
    mask = torch.arange(9)[None] >= 3
    first, later = align(log_probs, labels).spans()[0], align(moved, labels, frame_mask=mask).spans()[0]
    assert [(s.first + 3, s.end + 3) for s in first] == [(s.first, s.end) for s in later]


@pytest.mark.parametrize("seed", range(10))
def test_masked_frames_are_no_steps_wherever_they_stand(seed):
    log_probs, labels = drawn(1, 12, 4, seed=seed, sharpness=2.0), torch.tensor([[2, 1, 1]])
    mask = torch.rand(1, 12, generator=torch.Generator().manual_seed(seed)) < 0.7
    found = align(log_probs, labels, frame_mask=mask)
    alone = align(log_probs[:, mask[0]], labels)
    assert found.states[mask].tolist() == alone.states[0].tolist()
    assert found.states[~mask].eq(-1).all()


def test_a_wildcard_stands_for_anything():
    log_probs = drawn(1, 7, 5, sharpness=3.0)
    log_probs[0, :3] = torch.tensor([-9.0, -9.0, -9.0, -9.0, 0.0])
    log_probs[0, 3:] = torch.tensor([-3.0, 0.0, -9.0, -9.0, -9.0])
    found = align(log_probs, torch.tensor([[-1, 1]]), wildcard=-1)
    assert found.labels.tolist() == [[-1, -1, -1, 1, 1, 1, 1]]
    assert_close(found.score, torch.zeros(1, dtype=torch.float64))
    with pytest.raises(ValueError, match="wildcard=0 is the blank"):
        align(log_probs, torch.tensor([[1]]), wildcard=0)


@pytest.mark.parametrize("labels", [(1, 1), (2, 1), ()])
def test_occupancies_are_shares_of_all_paths(labels):
    log_probs = drawn(2, 5, 3)
    found = occupancies(log_probs, torch.tensor([labels] * 2).view(2, -1).long())
    assert_close(found.sum(-1), torch.ones(2, 5, dtype=torch.float64), rtol=0, atol=1e-12)
    z = symbols(labels)
    for number in range(2):
        total, shares = -math.inf, torch.full((5, len(z)), -math.inf, dtype=torch.float64)
        for walk in walks(labels, 5):
            score = sum(log_probs[number, t, z[s]].item() for t, s in enumerate(walk))
            total = added(total, score)
            for t, s in enumerate(walk):
                shares[t, s] = added(shares[t, s].item(), score)
        assert_close(found[number], (shares - total).exp(), rtol=0, atol=1e-12)


def test_words_are_what_stands_between_separators():
    spans = [Span(0, 9, 0, 1, 1.0), Span(1, 2, 1, 3, 0.4), Span(2, 3, 3, 4, 0.8), Span(3, 9, 4, 5, 1.0)]
    assert words(spans, 9) == [((1, 2), 1, 4, pytest.approx(0.6))]
    assert words([], 9) == []


def test_refusals():
    log_probs = drawn(2, 3, 4)
    with pytest.raises(ValueError, match=r"utterances \[1\] have too few frames"):
        align(log_probs, torch.tensor([[1, 2, 3], [1, 1, 2]]))
    log_probs[1, :, 2] = -math.inf
    with pytest.raises(ValueError, match="utterance 1: every path that says its labels has probability 0"):
        align(log_probs, torch.tensor([[1, 2], [1, 2]]))
