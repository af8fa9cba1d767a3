import random
from functools import cache

import pytest

from regard.tasks.error_rates import Edits, edit_distance, edits, error_rates


def by_definition(one, other):
    @cache
    def least(n, m):
        if not n or not m:
            return n + m
        return min(least(n - 1, m) + 1, least(n, m - 1) + 1, least(n - 1, m - 1) + (one[n - 1] != other[m - 1]))

    return least(len(one), len(other))


def test_is_the_fewest_edits():
    rng = random.Random(0)
    for _ in range(200):
        one, other = ("".join(rng.choices("ab ", k=rng.randrange(7))) for _ in range(2))
        assert edit_distance(one, other) == edit_distance(other, one) == by_definition(one, other)


def test_words_are_compared_whole():
    assert edits("press one now", "press won") == Edits(characters=6, length=13, words=2, word_count=3)
    assert edits("a", "") == Edits(1, 1, 1, 1)


def test_rates_are_over_all_sentences_and_may_exceed_one():
    assert error_rates(["abcdefgh", "ij"], ["abcdefgh", "xy"]) == (0.2, 0.5)
    assert error_rates(["a"], ["b c d"])[0] == 5


def test_refuses_what_has_no_rate():
    with pytest.raises(ValueError, match="1 truths, but 2 texts"):
        error_rates(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="nothing to be right about"):
        error_rates([""], ["a"])
