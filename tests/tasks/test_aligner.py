"""The aligner against loops over words, on corpora whose alignment is known; agreement by hand; refusals."""

import math

import pytest
import torch
from torch.testing import assert_close

from regard.tasks.aligner import Aligner, agreement, align_both


def drawn(count=300, size=12):
    """Sentences of distinct words, translated word by word, with two neighbours changing places."""
    sources, targets, places = [], [], []
    for _ in range(count):
        words = torch.randperm(size)[: int(torch.randint(3, 8, ()))].tolist()
        order = list(range(len(words)))
        if len(order) > 3:
            order[1], order[2] = order[2], order[1]
        sources.append(words)
        targets.append([100 + words[j] for j in order])
        places.append(order)
    return sources, targets, places


def expectation(sources, targets, tension, none, iterations):
    """The table by loops."""
    table = {}
    for _ in range(iterations):
        counts, totals = {}, {}
        for source, target in zip(sources, targets, strict=True):
            n, m = len(source), len(target)
            for i, f in enumerate(target, 1):
                near = [math.exp(-tension * abs(i / m - j / n)) for j in range(1, n + 1)]
                prior = [none] + [(1 - none) * value / sum(near) for value in near]
                values = [
                    p * table.get((e, f), 1.0 if not table else 0.0)
                    for p, e in zip(prior, (None, *source), strict=True)
                ]
                for e, value in zip((None, *source), values, strict=True):
                    counts[e, f] = counts.get((e, f), 0.0) + value / sum(values)
                    totals[e] = totals.get(e, 0.0) + value / sum(values)
        table = {(e, f): value / totals[e] for (e, f), value in counts.items()}
    return table


@pytest.mark.parametrize(("tension", "none"), [(0.0, 0.2), (3.0, 0.08)])
def test_learns_what_the_loops_learn(tension, none):
    sources, targets = [[0, 1, 0], [1, 2], [3]], [[5, 6], [6, 7, 7, 5], [5, 8]]
    aligner = Aligner.train(sources, targets, iterations=3, tension=tension, none=none)
    expected = expectation(sources, targets, tension, none, 3)
    found = {
        (None if key < aligner.vocabulary else key // aligner.vocabulary - 1, key % aligner.vocabulary): chance
        for key, chance in zip(aligner.keys.tolist(), aligner.table.tolist(), strict=True)
    }
    assert found == pytest.approx(expected, abs=1e-12)


def test_finds_what_was_translated():
    sources, targets, places = drawn()
    aligner = Aligner.train(sources, targets)
    found = aligner.align(sources, targets)
    right = sum(a == b for row, other in zip(found, places, strict=True) for a, b in zip(row, other, strict=True))
    assert right / sum(map(len, places)) > 0.95
    chances = aligner.chances(sources[:2], targets[:2])
    assert chances[0].shape == (len(targets[0]), len(sources[0]) + 1)
    assert_close(chances[0].sum(-1), torch.ones(len(targets[0]), dtype=torch.float64))


def test_a_word_that_comes_from_nowhere():
    sources, targets, _ = drawn()
    targets = [[50, *target] for target in targets]
    aligner = Aligner.train(sources, targets, tension=0.0, none=0.2)
    assert sum(row[0] == -1 for row in aligner.align(sources, targets)) / len(sources) > 0.9


def test_words_that_never_met_stay_near_the_diagonal():
    aligner = Aligner.train([[0, 1], [2, 3]], [[4, 5], [6, 7]])
    assert aligner.align([[9, 9, 9]], [[20, 21, 22]]) == [[0, 1, 2]]


def test_words_that_met_others_alone_are_no_match():
    aligner = Aligner.train([[0, 1], [2, 3]], [[4, 5], [6, 7]])
    _, stranger, known = aligner.chances([[0, 3]], [[7]])[0][0].tolist()
    assert stranger < 1e-6 < 0.1 < known


class Fixed(Aligner):
    """An aligner that knows."""

    def __init__(self, *places):
        self.places = places

    def align(self, sources, targets):
        return list(self.places)


def test_links_of_one_direction_alone():
    pairs = [[1, 2]], [[3, 4, 5]]
    forwards, backwards = Fixed([0, 1, -1]), Fixed([0, 2])
    assert align_both(*pairs, forwards, backwards)[0].nonzero().tolist() == [[0, 0]]
    assert align_both(*pairs, forwards, backwards, union=True)[0].nonzero().tolist() == [[0, 0], [1, 1], [2, 1]]


def test_both_directions():
    sources, targets, places = drawn()
    forwards, backwards = Aligner.train(sources, targets), Aligner.train(targets, sources)
    agreed = align_both(sources, targets, forwards, backwards)
    either = align_both(sources, targets, forwards, backwards, union=True)
    for row, other, some, more in zip(
        forwards.align(sources, targets), backwards.align(targets, sources), agreed, either, strict=True
    ):
        first = {(i, j) for i, j in enumerate(row) if j >= 0}
        second = {(i, j) for j, i in enumerate(other) if i >= 0}
        assert set(map(tuple, some.nonzero().tolist())) == first & second
        assert set(map(tuple, more.nonzero().tolist())) == first | second
    truth = [torch.tensor(order)[:, None] == torch.arange(len(order)) for order in places]
    weights = [links.double() for links in truth]
    assert agreement(weights, agreed).share > 0.95


def test_agreement_by_hand():
    links = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]).bool()
    weights = torch.tensor([[0.1, 0.8, 0.1, 0.0], [1.0, 0.0, 0.0, 0.0], [0.4, 0.3, 0.2, 0.1]])
    found = agreement([weights, torch.ones(1, 1)], [links, torch.ones(1, 1, dtype=torch.bool)])
    assert found.words == 3
    assert found.share == pytest.approx(2 / 3)
    assert found.chance == pytest.approx((2 / 4 + 1 / 4 + 1) / 3)
    assert found.diagonal == pytest.approx(1)


def test_refusals():
    with pytest.raises(ValueError, match="2 sources and 1 targets"):
        Aligner.train([[1], [2]], [[1]])
    with pytest.raises(ValueError, match="pair 1 has 0 and 1 words"):
        Aligner.train([[1], []], [[1], [2]])
    with pytest.raises(ValueError, match=r"weights \(2, 3\) and links \(2, 2\)"):
        agreement([torch.zeros(2, 3)], [torch.zeros(2, 2, dtype=torch.bool)])
    with pytest.raises(ValueError, match="no target word has a link"):
        agreement([torch.zeros(2, 2)], [torch.zeros(2, 2, dtype=torch.bool)])
