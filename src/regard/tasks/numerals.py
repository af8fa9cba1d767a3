"""Numbers in words, English and German: a translation task that every machine can draw, for smoke runs.

By the two languages' own rules, which differ in more than words: German says the ones before the tens, in one word.

    412,023   four hundred and twelve thousand and twenty-three   vierhundertzwölftausenddreiundzwanzig
"""

import torch

from regard.tasks.parallel_text import ParallelText

LARGEST = 999_999

_ENGLISH = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_ENGLISH_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_GERMAN = (
    *("null", "ein", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn", "elf", "zwölf"),
    *("dreizehn", "vierzehn", "fünfzehn", "sechzehn", "siebzehn", "achtzehn", "neunzehn"),
)
_GERMAN_TENS = ("zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig")


def numerals(count: int, seed: int = 0) -> ParallelText:
    """Different numbers, drawn, in both languages; each is a group of its own.

    Example:
        >>> found = numerals(3)
        >>> len(set(found.source))
        3
    """
    drawn = torch.randperm(LARGEST + 1, generator=torch.Generator().manual_seed(seed))[:count].tolist()
    return ParallelText(tuple(map(english, drawn)), tuple(map(german, drawn)), tuple(map(str, drawn)))


def english(number: int) -> str:
    """A number below a million.

    Example:
        >>> english(412_023)
        'four hundred and twelve thousand and twenty-three'
    """
    for size, word in ((1000, "thousand"), (100, "hundred")):
        if number >= size:
            rest = number % size
            joint = " and " if rest and (size == 100 or rest < 100) else " "
            return (
                f"{english(number // size)} {word}{joint}{english(rest)}"
                if rest
                else f"{english(number // size)} {word}"
            )
    if number < len(_ENGLISH):
        return _ENGLISH[number]
    tens, ones = _ENGLISH_TENS[number // 10 - 2], number % 10
    return f"{tens}-{_ENGLISH[ones]}" if ones else tens


def german(number: int) -> str:
    """A number below a million.

    Example:
        >>> german(412_023), german(1)
        ('vierhundertzwölftausenddreiundzwanzig', 'eins')
    """
    words = _german(number)
    return words + "s" if number % 100 == 1 else words  # only the last one of all has its s


def _german(number: int) -> str:
    for size, word in ((1000, "tausend"), (100, "hundert")):
        if number >= size:
            return _german(number // size) + word + (_german(number % size) if number % size else "")
    if number < len(_GERMAN):
        return _GERMAN[number]
    tens, ones = _GERMAN_TENS[number // 10 - 2], number % 10
    return f"{_GERMAN[ones]}und{tens}" if ones else tens
