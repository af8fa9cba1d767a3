"""Recorded speech with what was said: two Debian packages, or any folder of recordings and transcripts.

* Asterisk's English prompts: 551 by one speaker, 24 minutes, 8 kHz (CC-BY-SA-3.0), as ``asterisk-core-sounds-en-wav``
  and ``asterisk-core-sounds-en`` have them.
* The Czech dialogues of Fish Fillets: 1,606 clips by two main voices and many small parts, 93 minutes, 22 kHz (GPL-2),
  as ``fillets-ng-data-cs`` and ``fillets-ng-data`` have them.

Texts are compared, and learned, in lower case, as letters, digits, apostrophes within words and single spaces; numbers
stand as the transcript has them, "press 1" as well as "press one".
"""

import gzip
import hashlib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from regard.tasks.documents import InputError, printable
from regard.tasks.transcripts import read_transcripts

SpeechPart = Literal["train", "validation", "test"]

SHARE = 0.1
"""Of the different texts, for the test and again for the validation part."""

ASTERISK_TEXTS = Path("share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
ASTERISK_SOUNDS = Path("share/asterisk/sounds/en_US_f_Allison")
FILLETS = Path("share/games/fillets-ng")
INSTALLED = Path("/usr")

FEWEST = 10
"""Different texts, with fewer of which nothing can be held out."""

CZECH_PACE = (4.0, 30.0)
"""Characters per second: what lies outside is a song, a noise, or the subtitle of another clip."""

_TOLD = re.compile(r"\[[^\]]*\]|\([^)]*\)|<[^>]*>")
_LINE = re.compile(r'dialogId\("([^"]+)",[^\n]*\)\s*\n\s*dialogStr\("(.*)"\)')


@dataclass(frozen=True)
class Prompt:
    """One recording and its text, as :func:`plain_text` makes it; and the part that it belongs to."""

    name: str
    path: Path
    text: str
    part: SpeechPart


@dataclass(frozen=True)
class Prompts:
    """Recordings of one source.

    Attributes:
        title: in words.
        prompts: all of them.
        remarks: what was left out.
        pace: characters per second between which a recording is taken; it is known once the sound is read.
    """

    title: str
    prompts: tuple[Prompt, ...]
    remarks: tuple[str, ...] = ()
    pace: tuple[float, float] = (0.0, float("inf"))


def plain_text(text: str) -> str:
    """Lower case; letters, digits and apostrophes within words; single spaces.

    Example:
        >>> plain_text("Don\N{RIGHT SINGLE QUOTATION MARK}t press 'star' -- Vítejte!")
        "don't press star vítejte"
    """
    lower = unicodedata.normalize("NFC", text).lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    kept = "".join(sign if sign.isalnum() or sign == "'" else " " for sign in lower)
    return " ".join(re.sub(r"(?<!\w)'+|'+(?!\w)", " ", kept).split())


def read_prompts(folder: Path | None = None) -> Prompts:
    """Speech from a folder, or from the Debian package that is installed.

    Args:
        folder: a Debian package that was unpacked, or recordings with transcripts as
            :func:`regard.tasks.transcripts.read_transcripts` takes them; None: what is installed, English first.

    Raises:
        InputError: there is nothing of that kind; the message says what to install or give.
    """
    if folder is not None and not folder.is_dir():
        raise InputError(f"{printable(str(folder))} is not a folder of recordings")
    root = _unpacked(INSTALLED if folder is None else folder)
    if (root / ASTERISK_SOUNDS).is_dir():
        return asterisk(root)
    if (root / FILLETS / "sound").is_dir():
        return fillets(root)
    if folder is None:
        raise InputError(
            "there is no speech to learn from: apt-get install asterisk-core-sounds-en-wav asterisk-core-sounds-en, or "
            "name a folder of recordings with their texts by --data"
        )
    rows, remarks = read_transcripts(folder)
    return _prompts(printable(str(folder)), ((name, path, plain_text(text)) for name, path, text in rows), remarks)


def asterisk(root: Path = INSTALLED) -> Prompts:
    """English prompts of a telephone exchange; what stands in brackets describes a sound, and is not said.

    Args:
        root: that holds ``share``, such as ``/usr``; or ``usr``, where the packages were unpacked.

    Raises:
        InputError: the texts are missing.
    """
    root = _unpacked(root)
    path = root / ASTERISK_TEXTS
    if not path.is_file():
        raise InputError(f"there is no {printable(str(path))}: apt-get install asterisk-core-sounds-en has the texts")
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {printable(str(path))}: {error}") from error
    pairs = [line.split(":", 1) for line in lines if ":" in line and not line.startswith(";")]
    rows = ((key, root / ASTERISK_SOUNDS / f"{key}.wav", plain_text(_TOLD.sub(" ", text))) for key, text in pairs)
    return _prompts("Asterisk's English prompts", rows, ())


def fillets(root: Path = INSTALLED, language: str = "cs") -> Prompts:
    """Dialogues of a game with their subtitles; those with a gap for a number are left out.

    Args:
        root: that holds ``share``, such as ``/usr``; or ``usr``, where the packages were unpacked.
        language: of the voices: "cs", or "nl" where that package is there.

    Raises:
        InputError: the subtitles or the voices are missing.
    """
    root = _unpacked(root)
    scripts = sorted((root / FILLETS / "script").glob(f"*/dialogs_{language}.lua"))
    if not scripts:
        raise InputError(f"there are no subtitles in {root / FILLETS}: apt-get install fillets-ng-data has them")

    def rows() -> Iterator[tuple[str, Path, str]]:
        for script in scripts:
            level = script.parent.name
            for key, text in _LINE.findall(script.read_text("utf-8", "replace")):
                path = root / FILLETS / "sound" / level / language / f"{key}.ogg"
                yield f"{level}/{key}", path, "" if "%" in text else plain_text(text)

    return _prompts(f"the dialogues of Fish Fillets ({language})", rows(), (), CZECH_PACE)


def _unpacked(folder: Path) -> Path:
    """The folder that holds ``share``."""
    return folder / "usr" if (folder / "usr").is_dir() else folder


def _prompts(
    title: str,
    rows: Iterator[tuple[str, Path, str]],
    remarks: tuple[str, ...],
    pace: tuple[float, float] = (0.0, float("inf")),
) -> Prompts:
    """The rows that have a recording and a text, each recording once."""
    all_rows = {path: (name, path, text) for name, path, text in rows}
    there = [row for row in all_rows.values() if row[1].is_file()]
    parts = parts_of({text for _, _, text in there if text})
    kept = tuple(Prompt(*row, parts[row[2]]) for row in there if row[2])
    told = [*remarks]
    for count, what in ((len(all_rows) - len(there), "no recording"), (len(there) - len(kept), "nothing that is said")):
        if count:
            told.append(f"{count:,} with {what} left out")
    if len(parts) < FEWEST:
        raise InputError(
            f"{title}: {len(parts)} different texts, at least {FEWEST} are needed to hold some of them out"
        )
    return Prompts(title, kept, tuple(told), pace)


def parts_of(texts: set[str]) -> dict[str, SpeechPart]:
    """The part of each text, in the order of their sha256: what is said twice is on one side of the split.

    Example:
        >>> parts = parts_of({f"text {number}" for number in range(30)})
        >>> [list(parts.values()).count(part) for part in ("train", "validation", "test")]
        [24, 3, 3]
    """
    order = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
    held = round(SHARE * len(order))
    return {
        text: "test" if place < held else "validation" if place < 2 * held else "train"
        for place, text in enumerate(order)
    }
