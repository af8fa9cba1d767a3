"""Who is measured, and the reasons of those who cannot be."""

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
    able, absent = {YARDSTICK: Entrant(YARDSTICK)}, dict[str, str]()
    if reason := _obstacle(able[YARDSTICK], settings):
        raise InputError(f"{YARDSTICK} cannot be measured: {reason}")
    for entrant in map(known, words):
        reason = _obstacle(entrant, settings)
        if reason and entrant.options:
            raise InputError(f"{entrant.label} cannot be measured: {reason}")
        if reason:
            absent[entrant.label] = reason
        else:
            able[entrant.label] = entrant
    return Field(tuple(able.values()), tuple(absent.items()))


def _obstacle(entrant: Entrant, settings: Settings) -> str:
    return obstacle(entrant, settings.arguments(entrant, max(settings.lengths)), causal=settings.causal)
