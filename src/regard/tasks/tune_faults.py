"""What a written tune is worth as a tune: faults of its form, and whether its bars add up."""

from collections.abc import Sequence
from itertools import pairwise

from regard.tasks.abc_tunes import bars, unit_and_bar

END = "\n\n"
"""The last characters of every tune."""

LEAST_BARS = 4
"""Fewer make no tune."""


def faults(tune: str) -> list[str]:
    """What is wrong with a tune, in words; nothing for a well-formed one. Lengths of bars are no fault, see below.

    Example:
        >>> faults("X:1\\nM:2/4\\nL:1/8\\nK:G\\nGABc|dcBA|GABc|dcBA|\\n\\n")
        []
        >>> faults("X:1\\nM:2/4\\nK:H\\n(GABc|]")
        ['no key', 'brackets do not close', 'fewer than 4 bars', 'no end']
    """
    found = list[str]()
    head, _, rest = tune.partition("\nK:")
    key, _, music = rest.partition("\n")
    if not head.startswith("X:"):
        found.append("no number")
    if not key[:1] or key[0] not in "ABCDEFG":
        found.append("no key")
    if unit_and_bar(tune)[1] is None:
        found.append("no metre")
    opened = (music.count("{"), music.count("(") - _tuplets(music))
    if opened != (music.count("}"), music.count(")")):
        found.append("brackets do not close")
    if len(bars(music)) < LEAST_BARS:
        found.append(f"fewer than {LEAST_BARS} bars")
    if not tune.endswith(END):
        found.append("no end")
    return found


def _tuplets(music: str) -> int:
    """Brackets that begin a group of notes, such as (3, and need no other one."""
    return sum(after.isdigit() for before, after in pairwise(music) if before == "(")


def figures(tunes: Sequence[str]) -> dict[str, float]:
    """Share of tunes without a fault, and share of bars that last as long as their metre says.

    Upbeats, and bars that a repeat divides, do not: of the printed tunes about five bars in six do.
    """
    whole = count = 0
    for tune in tunes:
        unit, bar = unit_and_bar(tune)
        lengths = bars(tune.partition("\nK:")[2].partition("\n")[2])
        if bar is not None:
            whole, count = whole + sum(length * unit == bar for length in lengths), count + len(lengths)
    sound = sum(not faults(tune) for tune in tunes)
    return {"well formed": sound / max(1, len(tunes)), "whole bars": whole / max(1, count)}
