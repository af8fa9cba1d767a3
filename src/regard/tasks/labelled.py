"""Labelled texts: a directory per class, or a CSV or JSONL file with the columns text and label."""

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from regard.tasks.documents import Document, InputError, drop_duplicates, read_documents, read_file
from regard.tasks.split import SHARE


@dataclass(frozen=True)
class Labelled:
    """Documents with one label each, and the class names in order."""

    documents: tuple[Document, ...]
    labels: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    @property
    def classes(self) -> list[str]:
        """Class names, sorted; a class number is a place in this list."""
        return sorted(set(self.labels))


@dataclass(frozen=True)
class LabelledSplit:
    """Three disjoint parts with the same mixture of classes, as numbers into the documents."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    rule: str = "stratified: of each class, in the order of their sha256, a tenth for test and a tenth for validation"


def read_labelled(paths: Sequence[str | Path]) -> Labelled:
    """Read one directory with a subdirectory per class, several class directories, or one CSV or JSONL file.

    Raises:
        InputError: neither of these; a row or column is missing; fewer than two classes.
    """
    if not paths:
        raise InputError("--task classify needs a directory with one subdirectory per class, or a CSV or JSONL file")
    first = Path(paths[0])
    if len(paths) == 1 and not first.is_dir():
        pairs, remarks = _table(first), []
    else:
        pairs, remarks = _directories([first] if len(paths) == 1 else [Path(path) for path in paths])
    unique = {id(document) for document in drop_duplicates(document for document, _ in pairs)}
    kept = [(document, label) for document, label in pairs if id(document) in unique]
    if len(kept) < len(pairs):
        remarks.append(f"{len(pairs) - len(kept)} repeated documents left out")
    found = Labelled(tuple(document for document, _ in kept), tuple(label for _, label in kept), tuple(remarks))
    if len(found.classes) < 2:
        raise InputError(f"{first} holds {len(found.classes)} class: a classifier needs at least two")
    return found


def split_labelled(found: Labelled) -> LabelledSplit:
    """A tenth of each class, but at least one document, for test and again for validation.

    Raises:
        InputError: a class has fewer than three different documents.
    """
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for name in found.classes:
        members = [number for number, label in enumerate(found.labels) if label == name]
        if len(members) < 3:
            raise InputError(
                f"class {name!r} has {len(members)} different documents: three are the least that can be split"
            )
        members.sort(key=lambda number: found.documents[number].digest)
        held = max(1, round(SHARE * len(members)))
        for part, piece in zip(parts, (members[2 * held :], members[:held], members[held : 2 * held]), strict=True):
            part.extend(piece)
    train, validation, test = parts
    return LabelledSplit(tuple(train), tuple(validation), tuple(test))


def _directories(paths: Sequence[Path]) -> tuple[list[tuple[Document, str]], list[str]]:
    """Every file below a class directory belongs to the class; one directory alone holds the class directories."""
    if len(paths) == 1:
        paths = [
            path for path in sorted(paths[0].iterdir()) if path.is_dir() and not path.name.startswith(".")
        ] or paths
    pairs: list[tuple[Document, str]] = []
    remarks: list[str] = []
    for path in paths:
        if not path.is_dir():
            raise InputError(
                f"{path} is not a directory: --task classify takes class directories or one CSV or JSONL file"
            )
        documents, left_out = read_documents([path])
        pairs += [(Document(f"{path.name}/{document.name}", document.data), path.name) for document in documents]
        remarks += [f"{path.name}: {remark}" for remark in left_out]
    return pairs, remarks


def _table(path: Path) -> list[tuple[Document, str]]:
    rows = _jsonl if path.suffix.lower() in (".jsonl", ".ndjson") else _csv
    try:
        text = read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start:,}") from error
    pairs = [(Document(f"{path.name}:{line}", body.encode()), label) for line, body, label in rows(path, text) if body]
    if not pairs:
        raise InputError(f"{path} has no rows with a text")
    return pairs


def _csv(path: Path, text: str) -> Iterator[tuple[int, str, str]]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
    try:
        missing = {"text", "label"} - set(reader.fieldnames or ())
        if missing:
            columns = " and no column ".join(sorted(missing))
            raise InputError(f"{path} has no column {columns}: its first line says {reader.fieldnames}")
        for row in reader:
            if row["text"] is None or row["label"] is None:
                raise InputError(f"{path}, line {reader.line_num}: the row has too few columns")
            yield reader.line_num, row["text"], row["label"]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num + 1}: not valid CSV ({error})") from error


def _jsonl(path: Path, text: str) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not valid JSON ({error})") from error
        if not (isinstance(row, dict) and isinstance(row.get("text"), str) and isinstance(row.get("label"), str | int)):
            raise InputError(f'{path}, line {number}: expected {{"text": "...", "label": "..."}}')
        yield number, row["text"], str(row["label"])
