from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from regard.models.code_prior import CodePrior
from regard.models.jukebox_conditions import UpperCodes
from regard.models.jukebox_prior import JukeboxPrior
from regard.models.jukebox_sampling import draw, sample_codes, sample_levels, sample_windows, window_starts
from regard.models.jukebox_transformer import JukeboxTransformer
from regard.models.sound_blocks import Residual
from tests.models.test_jukebox_prior import apart, codes_of, in_front, labels_of, top, upsampler

V, N = 7, 12


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def plain():
    torch.manual_seed(0)
    transformer = JukeboxTransformer(12, 3, 2, row_length=4, attention_ratio=0.5, init_scale=10.0)
    return CodePrior(V, N, transformer, init_scale=10.0).double().eval()


@torch.no_grad()
def recomputed(prior, batch, steps, prime=None, **told):
    """Every code from all those before it, read anew."""
    codes = torch.zeros(batch, 0, dtype=torch.long) if prime is None else prime
    generator = seeded()
    for _ in range(steps):
        padded = torch.cat((codes, torch.zeros(batch, 1, dtype=torch.long)), 1)
        logits = prior(padded, **told)[:, -1]
        codes = torch.cat((codes, torch.multinomial(logits.float().softmax(-1), 1, generator=generator)), 1)
    return codes


@pytest.mark.parametrize("made", [plain, top, apart, in_front])
@pytest.mark.parametrize("given", [0, 5])
def test_cached_codes_are_the_recomputed_ones(made, given):
    prior, prime = made(), codes_of(given) if given else None
    told = {} if made is plain else {"labels": labels_of(prior.lyric_tokens)}
    drawn = sample_codes(prior, 2, N - given, prime=prime, generator=seeded(), **told)
    assert torch.equal(drawn, recomputed(prior, 2, N - given, prime, **told))


def test_an_upsampler_reads_the_codes_above():
    prior, above = upsampler(), codes_of(3)
    first, second = (sample_codes(prior, 2, N, upper_codes=codes, temperature=0) for codes in (above, (above + 3) % V))
    assert not torch.equal(first, second)
    logits = prior(first, upper_codes=above)
    assert torch.equal(logits.argmax(-1), first)


def test_what_is_not_kept_is_never_drawn():
    logits = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]).log().expand(2000, -1)

    def kinds(**options):
        return sorted(set(draw(logits, generator=seeded(), **options).flatten().tolist()))

    assert kinds() == [0, 1, 2, 3, 4]
    assert kinds(top_k=2) == [0, 1]
    assert kinds(top_p=0.6) == [0, 1]
    assert kinds(top_p=0.71) == [0, 1, 2], "as few as have this probability together"
    assert kinds(top_p=0.1) == [0], "the likeliest stays"
    assert kinds(top_k=3, top_p=0.5) == [0]
    assert kinds(temperature=0) == [0]


def test_shares_are_those_of_the_softmax():
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(40_000, -1)
    shares = torch.bincount(draw(logits, temperature=2.0, generator=seeded()).flatten()) / 40_000
    assert_close(shares, (logits[0] / 2).softmax(-1), rtol=0, atol=0.01)


def test_windows_cover_the_piece():
    for length in range(1, 60):
        for hop in (1, 4, 10):
            starts = window_starts(length, 10, hop)
            assert starts[0] == 0
            assert starts[-1] + 10 == max(length, 10)
            assert all(0 < b - a <= hop for a, b in pairwise(starts))


class Recorder(JukeboxPrior):
    """Writes down what it is asked for."""

    asked: list

    def memory(self, batch, *, upper_codes=None, labels=None):
        self.asked.append((upper_codes, labels))
        return super().memory(batch, upper_codes=upper_codes, labels=labels)


def recorder(made):
    prior = made()
    prior.__class__, prior.asked = Recorder, []
    return prior


def test_each_window_continues_the_one_before():
    prior = plain()
    codes = sample_windows(prior, 2, 30, hop_fraction=0.5, temperature=0)
    assert codes.shape == (2, 30)
    there = N
    for start in (6, 12, 18):
        window = codes[:, start : start + N]
        again = sample_codes(prior, 2, start + N - there, prime=codes[:, start:there], temperature=0)
        assert torch.equal(again, window)
        there = start + N
    prime = codes[:, :17]
    assert torch.equal(sample_windows(prior, 2, 30, prime=prime, temperature=0)[:, :17], prime)
    assert sample_windows(prior, 2, 17, prime=prime) is prime
    assert sample_windows(prior, 2, 5).shape == (2, 5)


def test_windows_of_an_upsampler_meet_whole_codes_above():
    prior, above = recorder(upsampler), codes_of(7)
    codes = sample_windows(prior, 2, 28, hop_fraction=0.5, upper_codes=above)
    assert codes.shape == (2, 28)
    expected = [above[:, 0:3], above[:, 1:4], above[:, 2:5], above[:, 3:6], above[:, 4:7]]  # 6 codes are one above
    assert [asked.tolist() for asked, _ in prior.asked] == [part.tolist() for part in expected]
    with pytest.raises(ValueError, match="multiples of 4"):
        sample_windows(prior, 2, 30, upper_codes=above)


def test_labels_move_along_with_the_windows():
    prior, labels = recorder(apart), labels_of(5)
    prior.hop = 10
    texts = [list(range(1, 6)) * 8, [1, 2]]
    sample_windows(prior, 2, 24, hop_fraction=0.5, labels=labels, lyrics=texts)
    rows = [asked for _, asked in prior.asked]
    assert [row[:, 1].tolist() for row in rows] == [[30, 101], [90, 161], [150, 221]]
    assert all(row[:, 2].tolist() == [120, 120] for row in rows)
    assert rows[0][1, -5:].tolist() == [0, 0, 0, 1, 2]
    middle = int(40 * (150 + 60) / 900)
    assert rows[2][0, -5:].tolist() == texts[0][middle - 2 : middle + 3]


def levels():
    """Two levels: 5 and 20 samples a code."""
    torch.manual_seed(0)
    lower = CodePrior(V, N, JukeboxTransformer(12, 3, 2, row_length=4, attention_ratio=0.5))
    low = JukeboxPrior(lower, upper=UpperCodes(V, 12, 2, 2, Residual(6, 1)), hop=5).eval()
    upper = CodePrior(V, 6, JukeboxTransformer(12, 3, 2, row_length=3, attention_ratio=0.5))
    return [low, JukeboxPrior(upper, hop=20).eval()]


def test_levels_are_drawn_from_the_top():
    priors, seen = levels(), []
    low, high = sample_levels(priors, 2, 200, generator=seeded(), tell=lambda *told: seen.append(told))
    assert (low.shape, high.shape) == ((2, 40), (2, 10))
    assert seen[0] == (1, 1, 10)
    assert seen[-1] == (0, 40, 40)
    assert torch.equal(low, sample_levels(priors, 2, 200, generator=seeded())[0])
    again = sample_levels(priors, 2, 200, given=[None, high], temperature=[0.0, 1.0])
    assert torch.equal(again[1], high), "whole codes above are only read"
    primed = sample_levels(priors, 2, 200, given=[low[:, :13], high[:, :3]])
    assert torch.equal(primed[0][:, :13], low[:, :13])
    assert torch.equal(primed[1][:, :3], high[:, :3])


def test_refusals():
    prior = plain()
    with pytest.raises(ValueError, match=r"5 codes and steps=8 more.*sample_windows"):
        sample_codes(prior, 2, 8, prime=codes_of(5))
    with pytest.raises(ValueError, match=r"prime has shape \(2, 5\), expected \(1, any\)"):
        sample_codes(prior, 1, 2, prime=codes_of(5))
    for options in ({"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(ValueError, match="temperature is not negative"):
            sample_codes(prior, 1, 2, **options)
    with pytest.raises(ValueError, match=r"hop_fraction=0.01 of 12 codes is no step"):
        sample_windows(prior, 1, 20, hop_fraction=0.01)
    with pytest.raises(ValueError, match="CodePrior alone takes no labels"):
        sample_windows(prior, 2, 20, labels=labels_of())
    with pytest.raises(ValueError, match="pass labels= too"):
        sample_windows(prior, 2, 20, lyrics=[[1]])
    with pytest.raises(ValueError, match="samples=205 is no multiple of a hop of 20"):
        sample_levels(levels(), 1, 205)
    with pytest.raises(ValueError, match="temperature holds 1 entries for 2 priors"):
        sample_levels(levels(), 1, 200, temperature=[1.0])
