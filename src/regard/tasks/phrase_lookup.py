"""Translation by looking phrases up in the training pairs: what a model must beat to have learned to translate.

A sentence that training has is translated as there. Any other is cut from left to right into the longest known phrases
that have a translation worth trusting, and these are written one after the other; unknown words are copied. The
translation of a phrase s is the phrase t of the other language that keeps it company most faithfully::

    dice(s, t) = 2 c(s, t) / (c(s) + c(t))                                 c: in how many training pairs

Of equals it is the one whose length is nearest; where a training sentence is just this phrase, it is the translation of
that. No order is learned and no word bent; all else that training says about short phrases is used.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from regard.tasks.parallel_text import ParallelText

LONGEST = 4
"""Words of a phrase."""

TRUST = 0.7
"""The least Dice of a phrase of several words; of single words the best is taken, whatever it is. Of 0.5, 0.7 and 0.85
the best on the validation parts of LibreOffice's help and of Multi30k."""

SEEN = 50
"""Of the training pairs that hold a phrase, so many are looked at, evenly spread."""

_WORD = re.compile(r"\w+(?:[-'\u2019]\w+)*|[^\w\s]")

Phrase = tuple[str, ...]


class PhraseLookup:
    """The baseline itself.

    Args:
        train: pairs to look up in.

    Example:
        >>> source = ("the house", "the mouse", "a house", "a mouse")
        >>> target = ("das Haus", "die Maus", "ein Haus", "eine Maus")
        >>> lookup = PhraseLookup(ParallelText(source, target, source))
        >>> lookup.translate("a mouse"), lookup.translate("house mouse !")
        ('eine Maus', 'Haus Maus!')
    """

    def __init__(self, train: ParallelText) -> None:
        self.sentences: dict[str, str] = {}
        for source, target in zip(train.source, train.target, strict=True):
            self.sentences.setdefault(source, target)
        self._whole = {_words(source): target for source, target in reversed(self.sentences.items())}
        self._targets = [_cased(target) for target in train.target]
        self._holding: dict[Phrase, list[int]] = {}
        for number, source in enumerate(train.source):
            for phrase in _phrases(_words(source)):
                self._holding.setdefault(phrase, []).append(number)
        self._counts = Counter(phrase for words in self._targets for phrase in _phrases(words, LONGEST + 1))
        self._best = lru_cache(maxsize=None)(self._looked_up)

    def translate(self, sentence: str) -> str:
        """One sentence."""
        if sentence in self.sentences:
            return self.sentences[sentence]
        words, cased = _words(sentence), _cased(sentence)
        found, start = list[str](), 0
        while start < len(words):
            sizes = range(min(LONGEST, len(words) - start), 0, -1)
            known = ((size, self._best(words[start : start + size])) for size in sizes)
            size, phrase = next((pair for pair in known if pair[1]), (1, cased[start]))
            found.append(phrase)
            start += size
        text = _written(found)
        return text[:1].upper() + text[1:] if sentence[:1].isupper() else text

    def _looked_up(self, phrase: Phrase) -> str:
        """The translation of a phrase; empty: none can be trusted."""
        if phrase in self._whole:
            return self._whole[phrase]
        holding = self._holding.get(phrase, [])
        if len(holding) < 2:  # of a phrase that was met once, every phrase of that one sentence may be the translation
            return ""
        count = min(SEEN, len(holding))
        together = Counter(
            other
            for place in range(count)
            for other in _phrases(self._targets[holding[place * len(holding) // count]], len(phrase) + 1)
        )
        scale = len(holding) / count
        dice = {
            other: 2 * scale * often / (len(holding) + max(self._counts[other], scale * often))
            for other, often in together.items()
        }
        best = max(dice, key=lambda other: (round(dice[other], 6), -abs(len(other) - len(phrase)), other), default=())
        return _written(best) if best and (len(phrase) == 1 or dice[best] >= TRUST) else ""


def copied(sentences: Sequence[str]) -> list[str]:
    """The weakest baseline: the source is the translation; names and numbers are right."""
    return list(sentences)


def _cased(sentence: str) -> Phrase:
    return tuple(_WORD.findall(sentence))


def _words(sentence: str) -> Phrase:
    """In small letters: a phrase at the start of a sentence is the same phrase."""
    return _cased(sentence.lower())


def _phrases(words: Phrase, longest: int = LONGEST) -> set[Phrase]:
    return {words[a : a + size] for size in range(1, longest + 1) for a in range(len(words) - size + 1)}


def _written(phrases: Sequence[str]) -> str:
    """Words with spaces between them, but not before a sign that ends something."""
    return re.sub(r" ([.,:;!?)\]}%])", r"\1", re.sub(r"([(\[{]) ", r"\1", " ".join(phrases)))
