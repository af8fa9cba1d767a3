r"""Tunes in ABC, a notation in plain characters: read from files, brought into one form, and checked bar by bar.

ABC (https://abcnotation.com/wiki/abc:standard:v2.1) writes a tune as fields and music::

    X:1
    M:6/8
    L:1/8
    K:G
    GAB c2d|e3 d2B|

Of the fields only metre M, unit of length L and key K are kept, behind X:1; titles, sources and comments are no music.
Of the music everything that sounds is kept; annotations in quotes, joined lines and superfluous blanks are not.
"""

import importlib.util
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from regard.tasks.documents import Document, InputError, drop_duplicates, read_file

FIELDS = "MLK"
"""Kept, in this order."""

LEAST = 16
"""Characters of music; less is no tune."""

_FIELD = re.compile(r"([A-Za-z+]):(.*)")
_QUOTED = re.compile(r'"[^"]*"|![^!\n]*!|`')
_NOTE = re.compile(r"[_=^]*[A-Ga-gxz][,']*(\d*)((?:/\d*)*)")
_TUPLET = re.compile(r"\((\d)(?::(\d?))?(?::(\d?))?")
_BROKEN = re.compile(r"[<>]+")
_BAR = re.compile(r"\|[|\]:]*|:+\|[|\]:]*|::+|\[\|")


def read_tunes(paths: Sequence[str | Path]) -> list[Document]:
    """The tunes of ``.abc`` files, and of those below folders; equal ones once.

    Raises:
        InputError: a path that is not there, or no tune in any of them.
    """
    files = list[Path]()
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"{path} is not there: give .abc files, or folders of them")
        files += sorted(path.rglob("*.abc")) if path.is_dir() else [path]
    tunes = [
        Document(f"{file.stem} {number}", text.encode("ascii"))
        for file in files
        for number, text in enumerate(tunes_of(read_file(file).decode("utf-8", "replace")), 1)
    ]
    if not tunes:
        raise InputError(f"no tune in {', '.join(map(str, paths))}: a tune has a line X: and a line K:, then its music")
    return drop_duplicates(tunes)


def music21_corpus() -> Path:
    """The folder of scores in the package ``music21``, which is not imported.

    Raises:
        InputError: the package is not installed.
    """
    found = importlib.util.find_spec("music21")
    if found is None or not found.submodule_search_locations:
        raise InputError("no tunes: pip install --no-deps music21==10.5.1, or name a folder of .abc files")
    return Path(found.submodule_search_locations[0]) / "corpus"


def tunes_of(text: str) -> list[str]:
    r"""The tunes of a file, each in the one form, ending with an empty line.

    Example:
        >>> tunes_of("% a book\nX: 7\nT: One\nM:C|\nL:1/8\nK: Am\n\"Am\"A2  c2\\\n| e4 |]  % fine\n")
        []
        >>> tunes_of("X: 7\nT: One\nM:C|\nL:1/8\nK: Am\n\"Am\"A2  c2 e4 |\\\nA2 c2 e4 |]  % fine\n")
        ['X:1\nM:C|\nL:1/8\nK:Am\nA2 c2 e4|A2 c2 e4|]\n\n']
    """
    found = list[str]()
    for piece in re.split(r"(?m)^(?=X:)", text.replace("\r\n", "\n"))[1:]:
        tune = _in_one_form(piece)
        if tune is not None:
            found.append(tune)
    return found


def _in_one_form(piece: str) -> str | None:
    """None where there is no key, or hardly a note."""
    fields, lines, joined = dict[str, str](), list[str](), False
    for raw in piece.splitlines():
        line = raw.split("%")[0].strip()
        field = _FIELD.fullmatch(line)
        if field and "K" not in fields:
            fields.setdefault(field[1], field[2].strip())
        elif not line and lines:
            break  # an empty line ends a tune
        elif line and "K" in fields and not field:
            goes_on = line.endswith("\\")
            line = _tidy(line.removesuffix("\\"))
            lines[-1:] = [lines[-1] + line] if joined else [*lines[-1:], line]
            joined = goes_on
    music = "\n".join(line for line in lines if line)
    if "K" not in fields or len(music) < LEAST:
        return None
    head = "".join(f"{name}:{fields[name]}\n" for name in FIELDS if fields.get(name))
    return "".join(sign if sign == "\n" or " " <= sign <= "~" else "?" for sign in f"X:1\n{head}{music}\n\n")


def _tidy(line: str) -> str:
    line = re.sub(r"\s+", " ", _QUOTED.sub("", line)).strip()
    return re.sub(r" ?(\|[|\]:]*|:+\|[|\]:]*) ?", r"\1", line)


def unit_and_bar(tune: str) -> tuple[Fraction, Fraction | None]:
    """The unit of length and the length of a bar, of whole notes; None: bars are free.

    Example:
        >>> unit_and_bar("X:1\\nM:6/8\\nL:1/8\\nK:G\\n")
        (Fraction(1, 8), Fraction(3, 4))
    """
    metre = re.search(r"(?m)^M:(.*)$", tune)
    length = re.search(r"(?m)^L:1/(\d+)", tune)
    bar = None
    if metre:
        common = {"C": Fraction(1), "C|": Fraction(1)}
        parts = re.fullmatch(r"(\d+)/(\d+)", metre[1].strip())
        if metre[1].strip() in common:
            bar = common[metre[1].strip()]
        elif parts and int(parts[2]):
            bar = Fraction(int(parts[1]), int(parts[2]))
    if length and int(length[1]):
        return Fraction(1, int(length[1])), bar
    return (Fraction(1, 16) if bar is not None and bar < Fraction(3, 4) else Fraction(1, 8)), bar


def bars(music: str) -> list[Fraction]:
    """The lengths between bar lines, in units; grace notes take no time, chords that of one note.

    Example:
        >>> [str(length) for length in bars("GAB c2d|(3efg a>b|[GBd]4 z/2")]
        ['6', '4', '9/2']
    """
    return [_length(piece) for piece in _BAR.split(re.sub(r"\{[^}]*\}", "", music)) if _NOTE.search(piece)]


def _length(piece: str) -> Fraction:
    """Of the notes of one bar; a tuplet (p of p notes lasts as long as q of them: 2 of 3, 3 of 2, else 2 or 3 of p."""
    total, left, factor = Fraction(0), 0, Fraction(1)
    place = 0
    while place < len(piece):
        tuplet = _TUPLET.match(piece, place)
        if tuplet:
            count = int(tuplet[1])
            left = int(tuplet[3] or count)
            factor = Fraction(int(tuplet[2] or {2: 3, 3: 2, 4: 3, 6: 2, 8: 3}.get(count, 2)), max(count, 1))
            place = tuplet.end()
            continue
        chord = re.compile(r"\[((?:[_=^]*[A-Ga-g][,']*[\d/]*)+)\](\d*)((?:/\d*)*)").match(piece, place)
        note = None if chord else _NOTE.match(piece, place)
        if chord or note:
            found = chord or note
            assert found is not None
            inner = _duration(*_first_note(chord[1])) if chord else Fraction(1)
            total += inner * _duration(found[found.re.groups - 1], found[found.re.groups]) * (factor if left else 1)
            left = max(0, left - 1)
            place = found.end()
            continue
        place += 1
    return total


def _first_note(chord: str) -> tuple[str, str]:
    note = _NOTE.match(chord)
    assert note is not None
    return note[1], note[2]


def _duration(number: str, slashes: str) -> Fraction:
    """Of "3", "/", "/4", "3/2", "//"."""
    value = Fraction(int(number) if number else 1)
    for divisor in re.findall(r"/(\d*)", slashes):
        value /= int(divisor) if divisor and int(divisor) else 2
    return value
