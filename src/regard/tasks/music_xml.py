"""The melody of a score in MusicXML as a tune in ABC: the highest part of a chorale, in the characters of the tunes.

A score is a plain ``.xml`` or ``.musicxml`` file, or a zip of one, ``.mxl`` (https://www.w3.org/2021/06/musicxml40/).
Of it are read: the first part, and in it the first voice, its notes, rests and ties, keys, metres and bars. Grace notes
and further notes of chords are left out.
"""

import zipfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

from regard.tasks.documents import Document, InputError, drop_duplicates

SHARPS = "FCGDAEB"
"""In the order in which keys take them; flats the other way round."""

_MAJOR = ("Cb", "Gb", "Db", "Ab", "Eb", "Bb", "F", "C", "G", "D", "A", "E", "B", "F#", "C#")
_MINOR = ("Ab", "Eb", "Bb", "F", "C", "G", "D", "A", "E", "B", "F#", "C#", "G#", "D#", "A#")
_SIGNS = {-2: "__", -1: "_", 0: "=", 1: "^", 2: "^^"}


def read_melodies(paths: Sequence[str | Path]) -> list[Document]:
    """The melodies of scores, and of those below folders, in ABC; equal ones once, scores without a metre not at all.

    Raises:
        InputError: a path that is not there, a file that is no MusicXML, or no melody in any of them.
    """
    found = list[Document]()
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"{path} is not there: give scores in MusicXML, or folders of them")
        files = sorted(f for f in path.rglob("*") if f.suffix in (".mxl", ".musicxml")) if path.is_dir() else [path]
        for file in files:
            tune = melody(_part(file))
            if tune is not None:
                found.append(Document(file.stem, tune.encode("ascii")))
    if not found:
        raise InputError(f"no melody with a metre in {', '.join(map(str, paths))}")
    return drop_duplicates(found)


def melody(part: ElementTree.Element) -> str | None:
    """A part as ABC in eighth notes, four bars a line; None where it has no metre or no note."""
    quarter, fifths, minor, metre = 1, 0, False, ""
    bars = list[str]()
    voice = None
    for measure in part.iter("measure"):
        written, altered = list[str](), dict[str, int]()
        for item in measure:
            if item.tag == "attributes":
                quarter = int(item.findtext("divisions") or quarter)
                if not bars and not written:
                    fifths = int(item.findtext("key/fifths") or fifths)
                    minor = (item.findtext("key/mode") or "major").strip() == "minor"
                    beats, of = item.findtext("time/beats"), item.findtext("time/beat-type")
                    metre = f"{beats}/{of}" if beats and of else metre
            elif item.tag == "note" and item.find("grace") is None and item.find("chord") is None:
                voice = voice or item.findtext("voice")
                if item.findtext("voice") == voice:
                    written.append(_note(item, quarter, fifths, altered))
        if written:
            bars.append(" ".join(written))
    if not metre or not any(sign.isalpha() and sign != "z" for bar in bars for sign in bar):
        return None
    key = f"{_MINOR[fifths + 7]}m" if minor else _MAJOR[fifths + 7]
    lines = ["|".join(bars[first : first + 4]) for first in range(0, len(bars), 4)]
    return f"X:1\nM:{metre}\nL:1/8\nK:{key}\n" + "|\n".join(lines) + "|]\n\n"


def _note(item: ElementTree.Element, quarter: int, fifths: int, altered: dict[str, int]) -> str:
    """One note or rest; ``altered`` is what accidentals of the bar have done to each height."""
    length = _written(Fraction(int(item.findtext("duration") or 0), quarter) * 2)
    step = item.findtext("pitch/step")
    if step is None:
        return f"z{length}"
    octave, alter = int(item.findtext("pitch/octave") or 4), round(float(item.findtext("pitch/alter") or 0))
    height = step + "," * (4 - octave) if octave < 5 else step.lower() + "'" * (octave - 5)
    sign = ""
    if altered.get(height, _in_key(step, fifths)) != alter:
        sign, altered[height] = _SIGNS[alter], alter
    tied = any(tie.get("type") == "start" for tie in item.iter("tie"))
    return f"{sign}{height}{length}{'-' if tied else ''}"


def _in_key(step: str, fifths: int) -> int:
    if fifths >= 0:
        return int(step in SHARPS[:fifths])
    return -int(step in SHARPS[fifths:])


def _written(length: Fraction) -> str:
    """A length as ABC has it.

    Example:
        >>> [_written(Fraction(n, 2)) for n in (2, 4, 1, 3)]
        ['', '2', '/2', '3/2']
    """
    number = "" if length.numerator == 1 else str(length.numerator)
    return number if length.denominator == 1 else f"{number}/{length.denominator}"


def _part(path: Path) -> ElementTree.Element:
    """The first part of a score."""
    try:
        if path.suffix == ".mxl":
            with zipfile.ZipFile(path) as archive:
                container = ElementTree.fromstring(archive.read("META-INF/container.xml"))
                name = next(found.get("full-path", "") for found in container.iter() if found.tag.endswith("rootfile"))
                root = ElementTree.fromstring(archive.read(name))
        else:
            root = ElementTree.parse(path).getroot()
        return next(root.iter("part"))
    except (OSError, KeyError, StopIteration, ElementTree.ParseError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no score in MusicXML: {error or 'it has no part'}") from error
