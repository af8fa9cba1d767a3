"""Witten-Bell by hand; sums to one; a network's memory is what it says from the start."""

import math

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.models.language_models import NeuralLanguageModel, NGram, perplexity

TEXTS = [[1, 2, 1, 2], [1, 2], [3]]


def by_hand(context, symbol, order):
    """p(symbol | context) by counting; -1 is the start and 4 the end; blank 0."""
    rows = [[-1, *text, 4] for text in TEXTS]

    def after(context):
        n = len(context)
        places = [(row, i) for row in rows for i in range(1, len(row)) if i >= n]
        return [row[i] for row, i in places if tuple(row[i - n : i]) == context]

    def p(context):
        below = (0.25 if symbol else 0.0) if not context else p(context[1:])
        seen = after(context)
        distinct = len(set(seen))
        return (seen.count(symbol) + distinct * below) / (len(seen) + distinct) if seen else below

    return p(tuple([-1, *context][1 - order :]) if order > 1 else ())


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_witten_bell(order):
    model = NGram.fit(TEXTS, 4, order=order)
    contexts = [(), (1,), (1, 2), (2, 2), (3, 3, 1), (1, 2, 1, 2)]
    found = model.score(contexts).exp()
    assert_close(found.sum(-1), torch.ones(6, dtype=torch.float64))
    for row, context in zip(found, contexts, strict=True):
        assert row.tolist() == pytest.approx([by_hand(context, symbol, order) for symbol in range(5)])


def test_another_blank_or_none():
    assert NGram.fit([[0, 1]], 3, blank=2).score([(0,)]).isinf().tolist() == [[False, False, True, False]]
    assert NGram.fit([[0, 1]], 3, blank=None).score([(0,)]).isfinite().all()


def test_perplexity_falls_with_what_was_seen():
    texts = [[1, 2] * 10] * 3
    assert perplexity(NGram.fit([], 4), texts) == pytest.approx(4.0)
    assert perplexity(NGram.fit(texts, 4), texts) < 1.5
    assert math.isnan(perplexity(NGram.fit([], 4), []))


@pytest.mark.parametrize("most", [4096, 1])
@pytest.mark.parametrize("mechanism", [{}, {"mechanism": "linear_transformer"}], ids=["full", "linear"])
def test_a_network_says_from_its_memory_what_it_says_of_the_whole(mechanism, most):
    lm = regard.models.TransformerLM(6, 16, 2, 2, 32, **mechanism).eval()
    model = NeuralLanguageModel(lm, 5, start=5, end=5, most=most)
    for prefixes in ([()], [(1, 2, 3), (2,)], [(1, 2, 3, 4), (1, 3), (2, 1), ()]):
        found = model.score(prefixes)
        for row, prefix in zip(found, prefixes, strict=True):
            likely = lm(torch.tensor([[5, *prefix]])).log_softmax(-1)[0, -1]
            assert_close(row[1:], torch.cat((likely[1:5], likely[5:])), rtol=1e-4, atol=1e-5)
            assert row[0] == -math.inf


def test_refusals():
    for words, arguments in {
        "order=0": ([[1]], 3, 0),
        r"labels \[3\]": ([[3]], 3, 2),
        r"labels \[0\]": ([[0]], 3, 2),
    }.items():
        with pytest.raises(ValueError, match=words):
            NGram.fit(*arguments)
