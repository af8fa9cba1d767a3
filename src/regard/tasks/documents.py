"""Documents: the user's files, any bytes, read once and named; and the error that says what is wrong with them."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

LARGEST = 2 << 30
"""Everything is held in memory, so more than this is refused in words instead of by the kernel."""


class InputError(ValueError):
    """The user asked for something that cannot be done; the message is one line and says the way out."""


@dataclass(frozen=True)
class Document:
    """One text: a name that a person recognises, and its bytes."""

    name: str
    data: bytes

    @property
    def digest(self) -> str:
        """sha256 of the content: the order in which documents are dealt out, whatever they are called."""
        return hashlib.sha256(self.data).hexdigest()


def read_documents(paths: Sequence[str | Path]) -> tuple[list[Document], list[str]]:
    """Read files, and every file below directories.

    Empty and hidden files inside directories are left out, and so is what races wrote there; a file that was named must
    be readable and not empty.
    Documents with equal content are kept once: the same text on both sides of a split would be a leak.

    Returns:
        The documents in the order of their paths, and remarks about what was left out.

    Raises:
        InputError: nothing there, not readable, empty, or more than 2 GiB.
    """
    files = [found for path in paths for found in _files(Path(path))]
    total = sum(size for _, _, size in files)
    if total > LARGEST:
        raise InputError(f"{total:,} bytes of input: the race holds its text in memory and takes at most {LARGEST:,}")
    documents = [Document(name, _read(path)) for path, name, size in files if size]
    remarks = _remark(len(files) - len(documents), "empty file")
    if not documents:
        raise InputError(
            f"nothing to read in {', '.join(map(str, paths))}: every file there is empty, or there is none"
        )
    unique = drop_duplicates(documents)
    return unique, remarks + _remark(len(documents) - len(unique), "repeated document")


def drop_duplicates(documents: Iterable[Document]) -> list[Document]:
    """The first of each group of documents with equal content, in the given order."""
    return list({document.digest: document for document in reversed(list(documents))}.values())[::-1]


def fingerprint(documents: Iterable[Document]) -> str:
    """sha256 over names, sizes and contents: equal exactly when the data is the same."""
    total = hashlib.sha256()
    for document in documents:
        total.update(f"{document.name}\0{len(document.data)}\0".encode("utf-8", "surrogateescape"))
        total.update(document.data)
    return total.hexdigest()


def read_file(path: Path) -> bytes:
    """The bytes of a file that the user named.

    Raises:
        InputError: it is missing, not a regular file, not readable, or empty.
    """
    _named(path)
    return _read(path)


def printable(name: str) -> str:
    """A file's name that can be printed: bytes that are no UTF-8 become question marks."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _named(path: Path) -> int:
    """The size of a file that the user named, or the refusal."""
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if not path.is_file():
        raise InputError(f"{path} is not a regular file")
    if not path.stat().st_size:
        raise InputError(f"{path} is empty")
    return path.stat().st_size


def _files(path: Path) -> list[tuple[Path, str, int]]:
    """(path, name, size) of a named file, or of all files below a directory."""
    if not path.is_dir():
        return [(path, printable(path.name), _named(path))]
    try:
        inside = [(file, file.relative_to(path)) for file in sorted(path.rglob("*")) if file.is_file()]
        visible = [(file, name) for file, name in inside if not any(part.startswith(".") for part in name.parts)]
        races = [file.parent for file, _ in visible if file.name == "race.json" and file.parent != path]
        races = [race for race in races if (race / "entrants").is_dir()]
        return [
            (file, printable(name.as_posix()), file.stat().st_size)
            for file, name in visible
            if not any(file.is_relative_to(race) for race in races)
        ]
    except OSError as error:
        raise InputError(f"cannot read {error.filename or path}: {error.strerror}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _remark(count: int, what: str) -> list[str]:
    return [f"{count} {what}{'s' if count > 1 else ''} left out"] if count else []
