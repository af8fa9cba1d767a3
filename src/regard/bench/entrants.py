"""Who is measured, and the reasons of those who cannot be."""

from collections.abc import Callable, Iterable

from regard.bench.settings import Settings
from regard.factory import names
from regard.race.entrants import YARDSTICK, Entrant, Field, known, obstacle, parse
from regard.tasks.documents import InputError


def choose(settings: Settings) -> Field:
    """Dense attention first, then everybody who was named, or all mechanisms on sequences.

    Raises:
        InputError: an unknown name, a variant that the mechanism refuses, or sizes that dense attention cannot have.
    """
    words = parse(settings.mechanisms) or [Entrant(name) for name in names(data="sequence")]
    return able(words, lambda entrant: _obstacle(entrant, settings), YARDSTICK)


def able(words: Iterable[Entrant], obstacle: Callable[[Entrant], str], yardstick: str) -> Field:
    """The yardstick and those who can be measured, and the reasons of the others.

    Args:
        words: who was named, or everybody.
        obstacle: the reason why one cannot be measured, or nothing.
        yardstick: what plain attention is called where it cannot be measured itself.

    Raises:
        InputError: the yardstick cannot be measured, or somebody whose options were given.
    """
    found, absent = {YARDSTICK: Entrant(YARDSTICK)}, dict[str, str]()
    if reason := obstacle(found[YARDSTICK]):
        raise InputError(f"{yardstick} cannot be measured: {reason}")
    for entrant in map(known, words):
        reason = obstacle(entrant)
        if reason and entrant.options:
            raise InputError(f"{entrant.label} cannot be measured: {reason}")
        if reason:
            absent[entrant.label] = reason
        else:
            found[entrant.label] = entrant
    return Field(tuple(found.values()), tuple(absent.items()))


def _obstacle(entrant: Entrant, settings: Settings) -> str:
    return obstacle(entrant, settings.arguments(entrant, max(settings.lengths)), causal=settings.causal)
