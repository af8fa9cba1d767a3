import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from regard.models.transformer_2017 import Transformer
from regard.models.translating import beam_search, greedy, length_penalty

START, END = 0, 1


class Table:
    """p(next | the last two target tokens, source): small enough to try everything."""

    def __init__(self, kinds=5, ends=0.0, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.scores = 2 * torch.randn(5, kinds, kinds, kinds, generator=generator)
        self.scores[..., END] += ends
        self.scores[..., START] = -math.inf
        self.asked = 0

    def begin(self, src, src_mask=None):
        real = src if src_mask is None else src.masked_fill(~src_mask, 0)
        return (real.sum(1) % 5, torch.zeros_like(src[:, 0]))

    def step(self, tokens, memory):
        self.asked += len(tokens)
        kind, before = memory
        return self.scores[kind, before, tokens], (kind, tokens)

    def everything(self, source, length, alpha):
        """All translations that end within ``length`` tokens, the best first."""
        found, kinds = [], [token for token in range(self.scores.shape[-1]) if token not in (START, END)]
        for n in range(length):
            for words in itertools.product(kinds, repeat=n):
                row, total = [0, START, *words, END], 0.0
                for before, last, token in zip(row, row[1:], row[2:], strict=False):
                    total += float(self.scores[source % 5, before, last].log_softmax(-1)[token])
                found.append((total / ((5 + n + 1) / 6) ** alpha, words))
        return sorted(found, reverse=True)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("ends", [-3.0, 0.0, 3.0])
def test_a_beam_that_is_wide_enough_finds_what_trying_everything_finds(alpha, ends):
    model, src = Table(ends=ends), torch.tensor([[3], [4], [2]])
    found = beam_search(model, src, start=START, end=END, beams=162, max_length=5, alpha=alpha)
    for hypotheses, source in zip(found, (3, 4, 2), strict=True):
        best = model.everything(source, 5, alpha)
        assert [hypothesis.tokens for hypothesis in hypotheses] == [words for _, words in best]
        assert_close([hypothesis.score for hypothesis in hypotheses], [score for score, _ in best], rtol=0, atol=1e-5)
        assert all(hypothesis.finished for hypothesis in hypotheses)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_stopping_early_changes_nothing(alpha):
    """The search without the rule: the worst of the finished is never better than what may come."""
    for seed in range(8):
        model, src = Table(seed=seed, ends=1.0), torch.tensor([[seed]])
        stopped = beam_search(model, src, start=START, end=END, beams=2, max_length=12, alpha=alpha)[0]
        assert stopped == plain_beam(Table(seed=seed, ends=1.0), src, 2, 12, alpha)


def plain_beam(model, src, beams, length, alpha):
    """The same search as a loop over lists, to the greatest length."""
    live, done = [(0.0, (START,), model.begin(src))], []
    for n in range(1, length + 1):
        grown = []
        for total, words, memory in live:
            logits, after = model.step(torch.tensor(words[-1:]), memory)
            grown += [(total + p, (*words, token), after) for token, p in enumerate(logits[0].log_softmax(-1).tolist())]
        grown = sorted(grown, key=lambda one: -one[0])[: 2 * beams]
        done += [(total / ((5 + n) / 6) ** alpha, words[1:-1]) for total, words, _ in grown if words[-1] == END]
        done = sorted(done, reverse=True)[:beams]
        live = [one for one in grown if one[1][-1] != END][:beams]
    return [(words, pytest.approx(score, abs=1e-5), True) for score, words in done]


def test_sentences_of_a_batch_do_not_touch_each_other_and_stop_by_themselves():
    model, src = Table(ends=1.0), torch.arange(5)[:, None]
    together = beam_search(model, src, start=START, end=END, beams=3, max_length=30)
    for row, found in zip(src, together, strict=True):
        alone = beam_search(Table(ends=1.0), row[None], start=START, end=END, beams=3, max_length=30)[0]
        assert [one.tokens for one in alone] == [one.tokens for one in found]
    assert model.asked < 5 * 3 * 30  # a sentence that is done is asked no more


def test_what_did_not_come_to_its_end_says_so():
    model, src = Table(ends=-math.inf), torch.tensor([[1], [2]])
    for found in (beam_search(model, src, start=START, end=END, beams=3, max_length=4), greedy_rows(model, src, 4)):
        assert all(
            not one.finished and len(one.tokens) == 4 and END not in one.tokens for some in found for one in some
        )
    sure = beam_search(Table(ends=1e9), src, start=START, end=END, beams=3, max_length=4)
    assert [some[0].tokens for some in sure] == [(), ()]
    assert all(some[0].finished for some in sure)


def greedy_rows(model, src, length):
    return [[one] for one in greedy(model, src, start=START, end=END, max_length=length)]


def test_greedy_takes_the_likeliest_token_and_tells_its_probability():
    model, src = Table(ends=0.5), torch.arange(5)[:, None]
    for found, source in zip(greedy(model, src, start=START, end=END, max_length=9), range(5), strict=True):
        row, total = [0, START], 0.0
        while row[-1] != END and len(row) < 11:
            likely, token = model.scores[source, row[-2], row[-1]].log_softmax(-1).max(-1)
            row.append(int(token))
            total += float(likely)
        assert found.tokens == tuple(token for token in row[2:] if token != END)
        assert found.finished == (row[-1] == END)
        assert found.score == pytest.approx(total, abs=1e-5)


def test_the_default_room_is_the_source_and_fifty_more_for_each_sentence():
    model, src = Table(ends=-math.inf), torch.ones(2, 7, dtype=torch.long)
    mask = torch.arange(7) < torch.tensor([[7], [3]])
    found = greedy(model, src, src_mask=mask, start=START, end=END)
    assert [len(one.tokens) for one in found] == [57, 53]
    found = beam_search(model, src, src_mask=mask, start=START, end=END, beams=2)
    assert [len(some[0].tokens) for some in found] == [57, 53]


def test_a_transformer_searches_as_it_is_trained():
    """The score of what is found is that of one pass over the whole sentence; padding of the source changes nothing."""
    torch.manual_seed(0)
    model = Transformer(9, dim=16, num_heads=4, depth=2, hidden=24).double().eval()
    src = torch.randint(3, 9, (3, 6))
    mask = torch.arange(6) < torch.tensor([[6], [4], [1]])
    found = beam_search(model, src, src_mask=mask, start=1, end=2, beams=3, max_length=8)
    for row, real, hypotheses in zip(src, mask, found, strict=True):
        for tokens, score, finished in hypotheses:
            whole = torch.tensor([[1, *tokens, *([2] if finished else [])]])
            logs = model.requires_grad_(False)(row[real][None], whole[:, :-1]).log_softmax(-1)[0]
            total = float(logs.gather(1, whole[0, 1:, None]).sum())
            penalty = float(length_penalty(torch.tensor(whole.shape[1] - 1), 0.6))
            assert score == pytest.approx(total / penalty, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beams": 0}, "beams=0"),
        ({"alpha": -1.0}, "no negative alpha"),
        ({"max_length": 0}, "max_length=0"),
        ({"src": torch.zeros(2, 0, dtype=torch.long)}, r"\(2, 0\)"),
        ({"src_mask": torch.ones(1, 3, dtype=torch.bool)}, r"\(1, 3\).*\(1, 2\)"),
        ({"src_mask": torch.ones(1, 2)}, "must be bool"),
    ],
)
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words):
        beam_search(Table(), **{"src": torch.zeros(1, 2, dtype=torch.long), "start": START, "end": END, **options})


def test_the_penalty_is_the_published_one():
    assert math.isclose(float(length_penalty(torch.tensor(10), 0.6)), 2.5**0.6, rel_tol=1e-6)
