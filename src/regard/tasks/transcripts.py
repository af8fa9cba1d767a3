"""Which recording says what, in the forms that collections of speech come in.

1. a table: a ``.tsv`` or ``.csv`` file in the folder, ``file<TAB>text`` a line, or with a header that names the two
   columns (``path`` and ``sentence`` of Common Voice are known too); files are relative to the table, or to ``clips``;
2. ``name.txt`` beside ``name.wav`` (or flac, ogg, mp3), anywhere below the folder;
3. LibriSpeech's ``*.trans.txt``: ``name TEXT`` a line, with ``name.flac`` beside it.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from regard.tasks.documents import InputError, printable

SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
FILE_COLUMNS, TEXT_COLUMNS = ("file", "path", "filename", "audio"), ("text", "sentence", "transcript", "transcription")

Row = tuple[str, Path, str]


def read_transcripts(folder: Path) -> tuple[list[Row], tuple[str, ...]]:
    """(name, recording, text as it is written) of everything in a folder, and remarks.

    Raises:
        InputError: no text in any of the three forms, a table with lines of other than two columns, or a file that a
            table names and that is not there.
    """
    if not folder.is_dir():
        raise InputError(f"{printable(str(folder))} is not a folder of recordings")
    tables = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".tsv", ".csv"))
    if len(tables) > 1:
        names = ", ".join(printable(path.name) for path in tables)
        raise InputError(f"{printable(str(folder))} has {len(tables)} tables, {names}: keep the one that is meant")
    if tables:
        return _table(tables[0]), ()
    sounds = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SOUNDS)
    lists = [row for path in sorted(folder.rglob("*.trans.txt")) for row in _listed(path, folder)]
    if lists:
        return lists, ()
    pairs = [(path, path.with_suffix(".txt")) for path in sounds if path.with_suffix(".txt").is_file()]
    if not pairs:
        raise InputError(
            f"{printable(str(folder))} has {len(sounds):,} recordings and no texts: give a table of file, tab, text; "
            "or name.txt beside name.wav; or *.trans.txt as LibriSpeech has them"
        )
    without = len(sounds) - len(pairs)
    remarks = (f"{without:,} recordings without a text left out",) if without else ()
    return [(_name(sound, folder), sound, _read(text)) for sound, text in pairs], remarks


def _table(path: Path) -> list[Row]:
    """Lines of file and text."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    lines = [line for line in csv.reader(io.StringIO(_read(path)), delimiter=delimiter) if line]
    header = [cell.strip().lower() for cell in lines[0]] if lines else []
    file = next((header.index(name) for name in FILE_COLUMNS if name in header), None)
    text = next((header.index(name) for name in TEXT_COLUMNS if name in header), None)
    first = 1
    if file is None or text is None:
        file, text, first = 0, 1, 0
    found: list[Row] = []
    for number, line in enumerate(lines[first:], first + 1):
        if len(line) <= max(file, text) or (not first and len(line) != 2):
            raise InputError(f"{printable(str(path))}, line {number}: {len(line)} columns; file and text are needed")
        sound = _sound(path.parent, line[file].strip())
        if sound is None:
            raise InputError(f"{printable(str(path))}, line {number}: there is no recording {line[file]!r}")
        found.append((line[file].strip(), sound, line[text]))
    return found


def _sound(folder: Path, name: str) -> Path | None:
    """The recording that a table means: with or without an ending, beside the table or in ``clips``."""
    places: Sequence[Path] = (folder / name, folder / "clips" / name)
    for place in places:
        for candidate in (place, *(place.with_name(place.name + ending) for ending in SOUNDS)):
            if candidate.is_file():
                return candidate
    return None


def _listed(path: Path, folder: Path) -> list[Row]:
    """Lines of a name and a text."""
    found: list[Row] = []
    for number, line in enumerate(_read(path).splitlines(), 1):
        if not line.strip():
            continue
        name, _, text = line.partition(" ")
        sound = _sound(path.parent, name)
        if sound is None:
            raise InputError(f"{printable(str(path))}, line {number}: there is no recording {name!r} beside it")
        found.append((_name(sound, folder), sound, text))
    return found


def _name(sound: Path, folder: Path) -> str:
    return printable(sound.relative_to(folder).with_suffix("").as_posix())


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {printable(str(path))}: {error}") from error
