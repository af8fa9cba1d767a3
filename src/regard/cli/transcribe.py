"""``regard transcribe``: what is said in recordings, when, and how certain that is; with a picture and a JSON each."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from regard.cli.display import make_console, say
from regard.cli.folders import new_folder
from regard.cli.hearing import Decoder, Heard, draw, hear
from regard.cli.speech_model import fitted_recogniser
from regard.tasks.documents import InputError, printable
from regard.tasks.writing import write_file
from regard.train.budget import Budget
from regard.train.fitting import sentence

DEFAULT_MODEL, DEFAULT_FOLDER, TABLE = "regard-speech", "regard-transcripts", "transcripts.tsv"


def print_transcripts(
    files: Sequence[Path],
    *,
    model: Path | None,
    data: Path | None,
    seconds: float,
    out: Path | None,
    decoder: Decoder,
    beams: int,
    picture: Literal["png", "svg"],
) -> bool:
    """Print the words of each recording with their times; write a table of the texts, and a JSON and a picture of each.

    Args:
        files: recordings.
        model: folder of a recogniser, which is trained into it first where there is none; None: ``regard-speech``.
        data: what is trained on; None: the Debian package that is installed.
        seconds: to train for.
        out: folder of the results; None: a new one.
        decoder: which part of the model is asked.
        beams: of the search; 1 with "ctc" reads greedily.
        picture: its format.

    Returns:
        Whether every file could be read; those that cannot be are told, and passed over.

    Raises:
        InputError: no file, one that is not there, or no model and nothing to train it on.
    """
    if beams < 1:
        raise InputError(f"--beams {beams} is not positive")
    for path in files:  # before minutes of training, not after
        if not path.is_file():
            raise InputError(f"{printable(str(path))} {'is not a regular file' if path.exists() else 'does not exist'}")
    console, folder = make_console(), new_folder(out, DEFAULT_FOLDER, TABLE, "transcripts")
    recogniser = fitted_recogniser(console, model or Path(DEFAULT_MODEL), data, Budget(seconds=seconds))
    say(console, sentence(recogniser.facts))
    texts: list[str] = []
    for path, name in zip(files, _names(files), strict=True):
        try:
            heard = hear(recogniser, path, decoder=decoder, beams=beams)
        except InputError as error:
            say(console, f"\n{error}")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        told = json.dumps(heard.told(recogniser, decoder, beams), indent=1, ensure_ascii=False)
        write_file(folder / f"{name}.json", told.encode())
        write_file(folder / f"{name}.{picture}", draw(recogniser, heard, picture))
        texts.append(f"{printable(str(path))}\t{heard.text}\n")
        write_file(folder / TABLE, "".join(texts).encode())
        _print(console, heard)
        say(console, f"  {folder / name}.json  {folder / name}.{picture}")
    return len(texts) == len(files)


def _print(console: Console, heard: Heard) -> None:
    """The text, what is to be known of it, and a line for each word."""
    say(console, f"\n{printable(str(heard.path))} ({heard.sound.seconds:.1f} s): {heard.text or '(nothing is said)'}")
    for remark in heard.remarks:
        say(console, f"  {remark}")
    for word in heard.words:
        say(console, f"  {word.start:7.2f} - {word.end:7.2f} s  {word.confidence:4.0%}  {word.text}")


def _names(files: Sequence[Path]) -> list[str]:
    """What the results of each file are called: its name, with its ending where that would be ambiguous, or counted."""
    stems = Counter(path.stem for path in files)
    names = [path.stem if stems[path.stem] == 1 else path.name for path in files]
    seen: Counter[str] = Counter()
    unique: list[str] = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return unique
