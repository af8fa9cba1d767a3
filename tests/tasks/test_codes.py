"""Codes of sound as a language: streams, windows that begin with a code above, and counts as loops."""

import math

import pytest
import torch
from torch.testing import assert_close

from regard.registry import UnsupportedError
from regard.tasks.codes import Coded, Codes, Stream, code_songs, encode_songs, row_length, smoothed, witten_bell
from regard.tasks.documents import InputError
from regard.tasks.music import Song, Songs, build_vqvae
from tests.tasks.music_here import tune


def stream(name, count, seed, kinds=5):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randint(kinds, (n,), generator=generator)  # noqa: E731
    return Stream(name, (draw(4 * count), draw(count)))


@pytest.fixture
def coded():
    train = (stream("a", 30, 0), stream("b", 40, 1), stream("tiny", 2, 2))
    return Coded(train, (stream("c", 9, 3),), (stream("d", 13, 4), stream("e", 8, 5)), (4, 16), (5, 5))


def test_songs_are_coded_in_pieces_and_cut_to_whole_codes(monkeypatch):
    model = build_vqvae(8, 1, codes=16, code_width=4)
    model(tune("a", 0.512).waveform[None, :, None])
    song = tune("b", 0.5)
    whole = model.eval().encode(song.waveform[None, : 64 * 62, None])
    model.train()
    (found,) = encode_songs(model, [song, Song("too short", torch.zeros(63))])
    assert found.name == "b"
    assert all(mine.equal(theirs[0]) for mine, theirs in zip(found.levels, whole, strict=True))
    assert model.training
    monkeypatch.setattr("regard.tasks.codes.PIECE", 64 * 10)
    (cut,) = encode_songs(model, [song])
    assert [len(level) for level in cut.levels] == [248, 62]
    parts = code_songs(model, Songs((song,), (song,), (song,)))
    assert (parts.hops, parts.sizes, parts.test[0].name) == ((16, 64), (16, 16), "b")


def test_windows_of_a_lower_level_begin_with_a_code_above(coded):
    task = Codes(coded, 0, length=16, batch=6, seed=1)
    batch = task.batch(3)
    assert batch.tokens.equal(task.batch(3).tokens)
    assert batch.options.keys() == {"upper_codes"}
    for lower, upper in zip(batch.tokens, batch.context, strict=True):
        places = [
            (s, start)
            for s in coded.train
            for start in range(0, len(s.levels[0]) - 15, 4)
            if s.levels[0][start : start + 16].equal(lower)
        ]
        assert any(s.levels[1][start // 4 : start // 4 + 4].equal(upper) for s, start in places)


def test_held_out_windows_do_not_overlap_and_the_top_is_told_nothing(coded):
    task = Codes(coded, 1, length=4, batch=2, seed=1)
    batches = list(task.held_out("test"))
    rows = torch.cat([batch.tokens for batch in batches])
    assert rows.flatten().equal(torch.cat((coded.test[0].levels[1][:12], coded.test[1].levels[1])))
    assert [unit for batch in batches for unit in batch.units] == ["d", "d", "d", "e", "e"]
    assert all(batch.options == {} for batch in batches)


def test_bits_of_a_prediction_and_a_step_of_training(coded):
    task = Codes(coded, 0, length=16, batch=2)
    batch = task.batch(0)
    logits = torch.zeros(2, 16, 5)
    assert_close(task.scores(logits, batch), torch.full((2,), 16 * math.log2(5), dtype=torch.float64))
    assert_close(task.loss(logits, batch), torch.tensor(math.log(5)))
    model = task.model(8, 3, 2)
    prediction, told = model(batch.tokens, **batch.options, return_aux=True)
    assert prediction.shape == (2, 16, 5)
    assert told == {}
    assert model.hop == 4
    with pytest.raises(UnsupportedError, match="full is not how"):
        task.model(8, 3, 2, "full")


def test_counts_are_those_of_a_loop(coded):
    task = Codes(coded, 0, length=16, batch=2)
    found = task.baselines("validation")
    single, pairs, below = [0] * 5, [[0] * 5 for _ in range(5)], [[0] * 5 for _ in range(5)]
    for s in coded.train:
        codes = s.levels[0].tolist()
        for place, code in enumerate(codes):
            single[code] += 1
            below[int(s.levels[1][place // 4])][code] += 1
            if place:
                pairs[codes[place - 1]][code] += 1
    share = [(count + 1) / (sum(single) + 5) for count in single]

    def after(table, a, b):
        kinds = sum(count > 0 for count in table[a])
        return (table[a][b] + kinds * share[b]) / (sum(table[a]) + kinds)

    bits = {"unigram": [], "bigram": [], "unigram given the code above": []}
    (held,) = coded.validation
    for start in (0, 16):
        window = held.levels[0][start : start + 16].tolist()
        for place, code in enumerate(window):
            bits["unigram"].append(-math.log2(share[code]))
            known = after(pairs, window[place - 1], code) if place else share[code]
            bits["bigram"].append(-math.log2(known))
            above = int(held.levels[1][(start + place) // 4])
            bits["unigram given the code above"].append(-math.log2(after(below, above, code)))
    for name, values in bits.items():
        assert_close(found[name], sum(values) / len(values))
    assert_close(found["uniform"], math.log2(5))
    assert "unigram given the code above" not in Codes(coded, 1, length=4).baselines()


def test_codes_that_never_came_first_fall_back_to_their_own_share():
    single = torch.tensor([2.0, 0.0])
    given = witten_bell(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), single, torch.tensor([1]), torch.tensor([0]))
    assert_close(given, smoothed(single)[:1])


def test_refusals(coded):
    with pytest.raises(ValueError, match="length=18 is no multiple of 4"):
        Codes(coded, 0, length=18)
    with pytest.raises(InputError, match="no song holds a window of 10 codes"):
        Codes(coded, 1, length=10)
    assert row_length(8) == 4
