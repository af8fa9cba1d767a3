"""Every count as loops over words, and the edges: borders, ties, sentences of one word, relations without arcs."""

from collections import Counter

import pytest
import torch
from torch.testing import assert_close

from regard.ops import head_roles


def sentences(n=9, batch=4, heads=3):
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(batch, heads, n, n, generator=generator, dtype=torch.float64).softmax(-1)
    length = torch.tensor([n, n - 2, 2, 1])[:batch]
    head_of = torch.randint(-1, n, (batch, n), generator=generator)
    relation = torch.randint(-1, 3, (batch, n), generator=generator)
    rank = torch.randint(1, 900, (batch, n), generator=generator)
    rank[1] = torch.arange(n) + 1  # nothing rare in it
    return maps, length, head_of, relation, rank


def looks(maps, length):
    """Word by word: (sentence, i, head) -> (largest weight, place)."""
    found = {}
    for b in range(len(maps)):
        words = range(int(length[b]) - 1)
        for i in words:
            for h in range(maps.shape[1]):
                row = [float(maps[b, h, i, j]) for j in words]
                found[b, i, h] = max(row), row.index(max(row))
    return found


def test_confidence_and_offsets_are_counted_over_all_words():
    maps, length, *_ = sentences()
    words = head_roles.words_of(length, 9)
    weight, place = head_roles.strongest(maps, words)
    found, total = looks(maps, length), int(words.sum())
    assert total == 8 + 6 + 1
    for h in range(3):
        mean = sum(most for (_, _, g), (most, _) in found.items() if g == h) / total
        assert head_roles.confidence(weight, words)[h].item() == pytest.approx(mean)
    offsets = [-8, -1, 0, 1, 3]
    shares = head_roles.offset_shares(place, words, torch.tensor(offsets))
    for h in range(3):
        for o, share in zip(offsets, shares[h].tolist(), strict=True):
            assert share == pytest.approx(sum(g == h and j == i + o for (_, i, g), (_, j) in found.items()) / total)


def test_syntax_is_counted_over_arcs_whose_two_ends_are_words():
    maps, length, head_of, relation, _ = sentences()
    words = head_roles.words_of(length, 9)
    place = head_roles.strongest(maps, words)[1]
    found = looks(maps, length)
    accuracy = head_roles.syntactic_accuracy(place, words, head_of, relation, 4)
    baseline = head_roles.arc_baseline(words, head_of, relation, 4)
    for r in range(4):
        arcs = [
            (b, i, int(head_of[b, i]))
            for b in range(4)
            for i in range(int(length[b]) - 1)
            if relation[b, i] == r and 0 <= head_of[b, i] < length[b] - 1
        ]
        assert (len(arcs) == 0) == (r == 3)
        common = Counter(head - i for _, i, head in arcs).most_common(1)
        share = common[0][1] / len(arcs) if arcs else 0.0
        assert baseline[r].tolist() == pytest.approx([share, share])
        for h in range(3):
            up = sum(found[b, i, h][1] == head for b, i, head in arcs) / max(1, len(arcs))
            down = sum(found[b, head, h][1] == i for b, i, head in arcs) / max(1, len(arcs))
            assert accuracy[r, :, h].tolist() == pytest.approx([up, down])


def test_rare_words_are_counted_in_sentences_that_have_one():
    maps, length, *_, rank = sentences()
    rank[0, :8] = torch.tensor([3, 800, 2, 800, 9, 700, 1, 5])  # the rarest word stands there twice
    words = head_roles.words_of(length, 9)
    place = head_roles.strongest(maps, words)[1]
    found = looks(maps, length)
    rare = [b for b in range(4) if max([int(r) for r in rank[b, : length[b] - 1]], default=0) > 500]
    assert 0 in rare
    assert 1 not in rare
    total = sum(int(length[b]) - 1 for b in rare)
    for number, share in enumerate(head_roles.rare_shares(place, words, rank)):
        for h in range(3):
            hits = 0
            for (b, _, g), (_, j) in found.items():
                order = sorted((int(r) for r in rank[b, : length[b] - 1]), reverse=True)
                hits += b in rare and g == h and int(rank[b, j]) >= order[min(number, len(order) - 1)]
            assert share[h].item() == pytest.approx(hits / total)


def test_thresholds_include_their_number():
    assert head_roles.positional(torch.tensor([[0.5, 0.1]]), 0.5).tolist() == [True]
    assert head_roles.positional(torch.tensor([[0.49, 0.1]]), 0.5).tolist() == [False]
    accuracy = torch.tensor([[[0.75, 0.70], [0.2, 0.1]]])
    found = head_roles.syntactic(accuracy, torch.tensor([[0.5, 0.5]]), 0.25)
    assert found.tolist() == [[[True, False], [False, False]]]


def test_among_equal_weights_the_first_counts_and_a_row_of_zeros_looks_nowhere():
    maps = torch.tensor([[[[0.4, 0.4, 0.2], [0.0, 0.0, 1.0], [0.1, 0.2, 0.7]]]])
    weight, place = head_roles.strongest(maps, torch.tensor([[True, True, False]]))
    assert place.tolist() == [[[0, -1, -1]]]
    assert_close(weight, torch.tensor([[[0.4, 0.0, 0.0]]]))
    shares = head_roles.offset_shares(place, torch.tensor([[True, True, False]]), torch.tensor([-1, 0, -2]))
    assert shares.tolist() == [[0.0, 0.5, 0.0]]


def test_what_stands_in_padding_does_not_matter():
    maps, length, head_of, relation, rank = sentences()
    words = head_roles.words_of(length, 9)
    odd = maps.masked_fill(~(words[:, None, :, None] & words[:, None, None]), torch.nan)
    for clean, dirty in zip(head_roles.strongest(maps, words), head_roles.strongest(odd, words), strict=True):
        assert_close(clean, dirty)
    place = head_roles.strongest(maps, words)[1]
    kept = head_roles.rare_shares(place, words, rank)
    assert_close(head_roles.rare_shares(place, words, rank.masked_fill(~words, 10**6)), kept)
    accuracy = head_roles.syntactic_accuracy(place, words, head_of, relation, 3)
    hidden = head_of.masked_fill(~words, 0), relation.masked_fill(~words, 1)
    assert_close(head_roles.syntactic_accuracy(place, words, *hidden, 3), accuracy)


def test_sentences_without_words_give_zeros():
    maps, words = torch.rand(2, 3, 1, 1), torch.zeros(2, 1, dtype=torch.bool)
    weight, place = head_roles.strongest(maps, words)
    assert head_roles.confidence(weight, words).tolist() == [0.0] * 3
    none = torch.zeros(2, 1, dtype=torch.long)
    assert not head_roles.rare_shares(place, words, none + 900).any()
    assert not head_roles.syntactic_accuracy(place, words, none, none, 2).any()
    assert not head_roles.arc_baseline(words, none, none, 2).any()


def test_places_of_batches_of_other_lengths_are_put_together():
    maps, length, *_ = sentences()
    words = head_roles.words_of(length, 9)
    place = head_roles.strongest(maps, words)[1]
    short = head_roles.strongest(maps[1:, :, :7, :7], words[1:, :7])[1]
    joined = torch.cat([place[:1], torch.nn.functional.pad(short, (0, 2), value=-1)])
    assert torch.equal(joined, place)
