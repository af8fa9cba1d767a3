"""Character and word error rates: the fewest insertions, deletions and substitutions, over the length of the truth.

    rate = sum of edits / sum of lengths        over all sentences, so that long ones count for more

It may exceed 1: a wrong text can be longer than the truth (Levenshtein 1966).
"""

from collections.abc import Sequence
from typing import NamedTuple


class Edits(NamedTuple):
    """Edits that lead from the truth to what was heard, and the length of the truth, in characters and in words."""

    characters: int
    length: int
    words: int
    word_count: int


def edit_distance(truth: Sequence[object], heard: Sequence[object]) -> int:
    """The fewest insertions, deletions and substitutions; O(N M) time, O(M) memory.

    Example:
        >>> edit_distance("kitten", "sitting")
        3
    """
    row = list(range(len(heard) + 1))
    for number, sign in enumerate(truth):
        diagonal, row[0] = row[0], number + 1
        for place, other in enumerate(heard):
            diagonal, row[place + 1] = (
                row[place + 1],
                min(row[place + 1] + 1, row[place] + 1, diagonal + (sign != other)),
            )
    return row[-1]


def edits(truth: str, heard: str) -> Edits:
    """One sentence, by characters (spaces among them) and by words.

    Example:
        >>> edits("press the star", "press a star now")
        Edits(characters=7, length=14, words=2, word_count=3)
    """
    words, other = truth.split(), heard.split()
    return Edits(edit_distance(truth, heard), len(truth), edit_distance(words, other), len(words))


def error_rates(truths: Sequence[str], heard: Sequence[str]) -> tuple[float, float]:
    """(character error rate, word error rate) of all sentences together.

    Raises:
        ValueError: not as many of one as of the other, or nothing in the truths.

    Example:
        >>> error_rates(["star", "pound"], ["star", ""])
        (0.5555555555555556, 0.5)
    """
    if len(truths) != len(heard):
        raise ValueError(f"{len(truths)} truths, but {len(heard)} texts to compare with them")
    found = [edits(*pair) for pair in zip(truths, heard, strict=True)]
    length, words = sum(one.length for one in found), sum(one.word_count for one in found)
    if not words:
        raise ValueError("the truths are empty: there is nothing to be right about")
    return sum(one.characters for one in found) / length, sum(one.words for one in found) / words
