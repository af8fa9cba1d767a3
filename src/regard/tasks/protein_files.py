"""Protein sequences from files: FASTA of one sequence, and alignments as aligned FASTA, A2M or A3M; plain or gzipped.

A line that begins with ``>`` names a sequence, the lines after it are its letters. In an alignment upper case letters
and ``-`` stand in columns that all rows share; lower case letters are insertions, which belong to no column, and ``.``
only makes room for them. An insertion is not forgotten: the column to its right counts it as deleted letters.

These few rules need no package: gemmi, which reads our structures, takes no ``.`` and names no line when it refuses.
"""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from regard.models.residue_atoms import LETTERS
from regard.tasks.documents import InputError, read_file

UNKNOWN, GAP, MASKED = 20, 21, 22
"""Numbers of what is no known amino acid: X, ``-``, and a letter hidden from the model."""

_READ_AS = dict(zip("BZUXOJ", "DECXXX", strict=True))
"""The rarer letters as AlphaFold reads them: Asx and Glx as the acids, selenocysteine as cysteine."""

_NUMBERS = {letter: (LETTERS + "X").index(_READ_AS.get(letter, letter)) for letter in LETTERS + "BZUXOJ"}


@dataclass(frozen=True)
class Alignment:
    """Sequences in common columns; the first row is the target where nothing else is said.

    Attributes:
        names: of the rows.
        letters: 0 to 19 as in ``LETTERS``, 20 for X, 21 for a gap.
        deletions: how many letters of the row stand between this column and the one before, in no column.
    """

    names: tuple[str, ...]
    letters: Int[Tensor, "S R"]
    deletions: Int[Tensor, "S R"]

    def __len__(self) -> int:
        return len(self.names)

    def onto(self, row: int) -> "Alignment":
        """The columns in which a row has a letter, and that row first; other letters are counted as deletions.

        Example:
            >>> found = parse_alignment(">a\\nA-C\\n>b\\nGWC\\n", "example").onto(0)
            >>> [spell(row) for row in found.letters], found.deletions.tolist()
            (['AC', 'GC'], [[0, 0], [0, 1]])
        """
        kept = self.letters[row] != GAP
        lost = self.deletions + ((self.letters != GAP) & ~kept)
        total = lost.cumsum(1)[:, kept]
        deletions = total.diff(dim=1, prepend=total.new_zeros(len(total), 1))
        order = [row, *(other for other in range(len(self)) if other != row)]
        return Alignment(tuple(self.names[i] for i in order), self.letters[order][:, kept], deletions[order])

    def rows(self, chosen: list[int]) -> "Alignment":
        """Some of the rows."""
        return Alignment(tuple(self.names[i] for i in chosen), self.letters[chosen], self.deletions[chosen])


def spell(letters: Int[Tensor, " R"]) -> str:
    """Numbers as letters.

    Example:
        >>> spell(torch.tensor([0, 19, 20, 21]))
        'AVX-'
    """
    return "".join((LETTERS + "X-?")[number] for number in letters.tolist())


def numbers(sequence: str) -> Int[Tensor, " R"]:
    """Letters as numbers; they must be known, as :func:`read_sequence` and the readers of structures leave them."""
    return torch.tensor([GAP if letter == "-" else _NUMBERS[letter] for letter in sequence], dtype=torch.long)


def spread(count: int, most: int) -> list[int]:
    """The numbers of so many rows at most: the first and others, evenly.

    Example:
        >>> spread(5, 3)
        [0, 2, 4]
    """
    if count <= most:
        return list(range(count))
    return sorted({round(number * (count - 1) / max(1, most - 1)) for number in range(most)})


def read_sequences(path: str | Path) -> Alignment:
    """A single sequence as an alignment of one row, or an alignment projected on its first row.

    Raises:
        InputError: what stands in the way, with the line.
    """
    return read_alignment(path).onto(0)


def read_alignment(path: str | Path) -> Alignment:
    """All rows of a file in their common columns.

    Args:
        path: of FASTA, A2M or A3M; ``.gz`` or not.

    Raises:
        InputError: no sequence, an empty one, an illegal letter, or rows of unequal length; with the line.
    """
    return parse_alignment(read_text(Path(path)), str(path))


def parse_alignment(text: str, name: str) -> Alignment:
    """The same from a text.

    Args:
        text: as in a file.
        name: of it, for the refusals.

    Raises:
        InputError: as :func:`read_alignment`.
    """
    records = list(_records(text, name))
    if not records:
        raise InputError(f"{name} holds no sequence: a line with > and a name goes before the letters")
    if len(records) == 1:  # no columns that lower case could fall out of
        records = [(line, title, [(at, text.upper()) for at, text in lines]) for line, title, lines in records]
    rows = [_columns(letters, name) for _, _, letters in records]
    width = len(rows[0][0])
    for (line, title, _), (letters, _) in zip(records, rows, strict=True):
        if not letters or (letters is rows[0][0] and set(letters) == {GAP}):
            raise InputError(f"{name}, line {line}: the sequence {title!r} is empty")
        if len(letters) != width:
            raise InputError(
                f"{name}, line {line}: {title!r} has {len(letters)} columns, the first row {width}: rows of an "
                "alignment are equally long without their lower case letters and dots; give one sequence, or align them"
            )
    letters, deletions = (torch.tensor(side, dtype=torch.long) for side in zip(*rows, strict=True))
    return Alignment(tuple(title for _, title, _ in records), letters, deletions)


def read_text(path: Path) -> str:
    """The text of a file, unpacked where it is gzipped.

    Raises:
        InputError: missing, empty, damaged, or no text.
    """
    data = read_file(path)
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path} is damaged: {error}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: no text (byte {data[error.start]:#x})") from error


def _records(text: str, name: str) -> Iterator[tuple[int, str, list[tuple[int, str]]]]:
    """(line of the name, name, lines of letters with their numbers); lines with ``;`` or ``#`` in front are remarks."""
    title: tuple[int, str] | None = None
    letters: list[tuple[int, str]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith(">"):
            if title is not None:
                yield (*title, letters)
            title, letters = (number, line[1:].strip() or f"sequence {number}"), []
        elif line.strip() and line[0] not in ";#":
            if title is None:
                raise InputError(f"{name}, line {number}: letters before any name; a FASTA file begins with >")
            letters.append((number, line))
    if title is not None:
        yield (*title, letters)


def _columns(lines: list[tuple[int, str]], name: str) -> tuple[list[int], list[int]]:
    """Letters of one row by columns, and deletions to the left of each; ``*`` may end the row."""
    letters, deletions, inserted = list[int](), list[int](), 0
    signs = [(number, sign) for number, line in lines for sign in line if not sign.isspace() and sign != "."]
    if signs and signs[-1][1] == "*":
        signs.pop()
    for number, sign in signs:
        if sign != "-" and sign.upper() not in _NUMBERS:
            raise InputError(f"{name}, line {number}: {sign!r} is no amino acid; known are {LETTERS}XBZUOJ, - and .")
        if sign.islower():
            inserted += 1
            continue
        letters.append(GAP if sign == "-" else _NUMBERS[sign])
        deletions.append(inserted)
        inserted = 0
    return letters, deletions
