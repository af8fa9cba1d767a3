"""The folder of a race: which one, what it holds, and that nobody else writes there."""

import contextlib
import json
import os
from collections.abc import Generator
from pathlib import Path

from regard.race.settings import Settings
from regard.tasks.documents import InputError

DEFAULT_FOLDER = "regard-race"
FORMAT = "regard.race-settings/1"


def choose_folder(out: str | None, resume: bool) -> Path:
    """The folder of the race: the one that was named, or ``regard-race``, ``regard-race-2``, ...

    Raises:
        InputError: it holds a race already and ``resume`` was not given, or it is not a folder.
    """
    if out is not None:
        folder = Path(out)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--out {folder} is not a directory")
        if not resume and (folder / "race.json").exists():
            raise InputError(f"{folder} already holds a race: give --resume to go on with it, or another --out")
        return folder
    number, last = 1, Path(DEFAULT_FOLDER)
    while (folder := Path(DEFAULT_FOLDER + (f"-{number}" if number > 1 else ""))).exists():
        number, last = number + 1, folder
    return last if resume else folder


def read_settings(folder: Path) -> tuple[Settings, str] | None:
    """The settings and the data fingerprint of the race in ``folder``, or None.

    Raises:
        InputError: ``race.json`` is damaged or not ours.
    """
    path = folder / "race.json"
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_bytes())
        if stored["format"] != FORMAT:
            raise InputError(f"{path} was written by another version of regard: start a new race")
        return Settings.from_json(stored["settings"]), stored["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged or not a race of ours ({error}): start a new race") from error


@contextlib.contextmanager
def only_one(folder: Path) -> Generator[None]:
    """Hold the folder: two races in one folder would write over each other.

    Raises:
        InputError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows: not guarded
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"another race is running in {folder}") from error
        file.write(str(os.getpid()))
        file.flush()
        yield
