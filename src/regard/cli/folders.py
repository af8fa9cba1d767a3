"""Where results go: a folder that holds none of the kind yet."""

from pathlib import Path

from regard.tasks.documents import InputError


def new_folder(out: Path | None, usual: str, holds: str, what: str) -> Path:
    """The folder that was named, or the first of ``usual``, ``usual-2``, ``usual-3``, ... that is not there.

    Args:
        out: what was named; None: nothing.
        usual: the name of the first folder.
        holds: the file by which results of this kind are known.
        what: what they are, in words.

    Raises:
        InputError: it holds such results already, or it is not a folder.
    """
    if out is None:
        number, folder = 1, Path(usual)
        while folder.exists():
            number += 1
            folder = Path(f"{usual}-{number}")
        return folder
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is not a directory")
    if (out / holds).exists():
        raise InputError(f"{out} already holds {what}: give another --out")
    return out
