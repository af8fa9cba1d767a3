"""Sentences in two languages: what translation and sentence matching learn from, as line files or in parts.

A corpus is only worth its alignment, so whatever could shift it by a line is refused in words: unequal numbers of
lines, lines without words, text in another encoding. Help pages that are aligned by themselves:
:mod:`regard.tasks.help_pages`.
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from regard.tasks.documents import InputError, printable, read_file
from regard.tasks.split import SHARE

Beyond = Literal["refuse", "truncate"]
Empty = Literal["refuse", "leave_out"]

LONGEST = 2000
"""Characters of a sentence, where nothing else was asked for; a line beyond is rarely one sentence."""

NAMES = {"train": ("train",), "validation": ("val", "valid", "validation", "dev"), "test": ("test",)}
"""How the files of a part begin."""


@dataclass(frozen=True)
class ParallelText:
    """Sentences and their translations.

    Attributes:
        source, target: of one length.
        groups: where each pair comes from, such as a page: pairs of one group are never split.
        remarks: what was left out or cut, in words.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    groups: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.source)

    @property
    def digest(self) -> str:
        """sha256 of the sentences in their order."""
        return _digest((*self.source, "", *self.target))

    def at(self, numbers: Iterable[int]) -> "ParallelText":
        """The pairs of these numbers, in this order, without remarks."""
        chosen = list(numbers)
        columns = (self.source, self.target, self.groups)
        return ParallelText(*(tuple(column[number] for number in chosen) for column in columns))


@dataclass(frozen=True)
class ParallelSplit:
    """Three parts, the rule, in words, that made them, and what was left out or cut."""

    train: ParallelText
    validation: ParallelText
    test: ParallelText
    rule: str
    remarks: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """sha256 of all parts."""
        return _digest((self.train.digest, self.validation.digest, self.test.digest))


def read_parallel(
    source: str | Path, target: str | Path, *, limit: int = LONGEST, beyond: Beyond = "refuse", empty: Empty = "refuse"
) -> ParallelText:
    """Two files with one sentence a line, plain or packed (.gz), in UTF-8.

    Pairs with the same source are one group: a sentence that comes twice is never in two parts.

    Args:
        source, target: line n of the one is the translation of line n of the other.
        limit: the most characters of a sentence.
        beyond: what becomes of longer ones: "refuse", or "truncate", which the remarks tell.
        empty: the same of pairs with a side without words: "refuse" or "leave_out".

    Raises:
        InputError: files that cannot be read, another encoding, unequal numbers of lines, empty or too long lines.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name, text in (("a.en", "good day\\nthanks\\n"), ("a.de", "guten Tag\\ndanke\\n")):
        ...     _ = (folder / name).write_text(text)
        >>> read_parallel(folder / "a.en", folder / "a.de").target
        ('guten Tag', 'danke')
    """
    paths = Path(source), Path(target)
    first, second = (_lines(path) for path in paths)
    if len(first) != len(second):
        raise InputError(
            f"{_name(paths[0])} has {len(first):,} lines and {_name(paths[1])} has {len(second):,}: line n of the one "
            "must be the translation of line n of the other, and from some line on it is not"
        )
    remarks: list[str] = []
    real = _with_words(paths, (first, second), empty, remarks)
    kept = [
        _fitting(path, {number: side[number] for number in real}, limit, beyond, remarks)
        for path, side in zip(paths, (first, second), strict=True)
    ]
    opening = {sentence: number for number, sentence in reversed(list(zip(real, kept[0], strict=True)))}
    groups = tuple(f"{paths[0].name}:{opening[sentence] + 1}" for sentence in kept[0])
    return ParallelText(tuple(kept[0]), tuple(kept[1]), groups, tuple(remarks))


def read_parallel_folder(
    folder: str | Path,
    languages: tuple[str, str] = ("en", "de"),
    *,
    test: str = "test",
    limit: int = LONGEST,
    beyond: Beyond = "refuse",
    empty: Empty = "refuse",
) -> ParallelSplit:
    """A folder that holds a pair of line files for each part, as Multi30k does: train.en, train.de, val.en, test_....

    Args:
        folder: that holds NAME.LANGUAGE or NAME.LANGUAGE.gz; NAME begins with train, val (valid, dev) or test.
        languages: the endings of source and target.
        test: how the test set begins that is meant; of several, the first by name is read.
        limit, beyond, empty: as in :func:`read_parallel`.

    Raises:
        InputError: a part is missing, or what :func:`read_parallel` refuses.
    """
    parts: dict[str, ParallelText] = {}
    remarks: list[str] = []
    for part, beginnings in (NAMES | {"test": (test,)}).items():
        pairs = _pairs(Path(folder), beginnings, languages)
        if not pairs:
            raise InputError(
                f"{folder} has no {part} part: there is no pair {beginnings[0]}*.{languages[0]} and "
                f"{beginnings[0]}*.{languages[1]}, packed (.gz) or not; two files alone are split by themselves"
            )
        found = read_parallel(*pairs[0], limit=limit, beyond=beyond, empty=empty)
        others = [_name(source) for source, _ in pairs[1:]]
        remarks += [*found.remarks, *([f"of several {part} sets {_name(pairs[0][0])} is taken"] if others else [])]
        parts[part] = replace(found, remarks=())
    return ParallelSplit(**parts, rule="by the names of the files", remarks=tuple(remarks))


def split_groups(found: ParallelText) -> ParallelSplit:
    """About a tenth of the pairs for test and again for validation, whole groups, in the order of their sha256.

    A pair that comes again is kept once, and whatever is held out has no source that training has as well.

    Raises:
        InputError: fewer than three groups.
    """
    pairs = list(zip(found.source, found.target, strict=True))
    unique = sorted({pair: number for number, pair in reversed(list(enumerate(pairs)))}.values())
    members: dict[str, list[int]] = {}
    for number in unique:
        members.setdefault(found.groups[number], []).append(number)
    if len(members) < 3:
        raise InputError(f"{len(members)} groups of sentences: three are the least that can be split")
    order = sorted(members, key=lambda group: _digest(part for number in members[group] for part in pairs[number]))
    remaining = {group: members[group] for group in order}
    test = _take(remaining, SHARE * len(unique), leave=2)
    validation = _take(remaining, SHARE * len(unique), leave=1)
    parts = {"train": sum(remaining.values(), list[int]()), "validation": validation, "test": test}
    known = {found.source[number] for number in parts["train"]}
    held = {part: [n for n in parts[part] if found.source[n] not in known] for part in ("test", "validation")}
    if not all(held.values()):
        raise InputError("every sentence that could be held out is in the rest as well: there is nothing to judge on")
    repeated, leaked = len(pairs) - len(unique), sum(len(parts[part]) - len(held[part]) for part in held)
    remarks = [f"{repeated:,} repeated pairs left out"] * bool(repeated)
    remarks += [f"{leaked:,} held-out pairs whose source training has as well left out"] * bool(leaked)
    rule = "whole groups in the order of their sha256: about a tenth of the pairs for test, a tenth for validation"
    return ParallelSplit(
        *(found.at(sorted(numbers)) for numbers in (parts["train"], held["validation"], held["test"])),
        rule=rule,
        remarks=(*found.remarks, *remarks),
    )


def _take(remaining: dict[str, list[int]], limit: float, leave: int) -> list[int]:
    """Move whole groups out of ``remaining`` while they fit under the limit; the smallest one if none fits."""
    taken: list[int] = []
    for group in list(remaining):
        if len(taken) + len(remaining[group]) <= limit and len(remaining) > leave:
            taken += remaining.pop(group)
    return taken or remaining.pop(min(remaining, key=lambda group: len(remaining[group])))


def _lines(path: Path) -> list[str]:
    """The lines of a text file; only a line feed ends a line, as in the tools that aligned the files."""
    data = read_file(path)
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{_name(path)} is damaged: {error}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start + 3 * data.startswith(b"\xef\xbb\xbf")
        line, column = data.count(b"\n", 0, start) + 1, start - data.rfind(b"\n", 0, start)
        raise InputError(
            f"{_name(path)}, line {line:,}, byte {column:,} of it (0x{data[start]:02x}): this is not UTF-8; convert "
            "the file, for instance by iconv -f LATIN1 -t UTF-8"
        ) from error
    return [" ".join(line.split()) for line in text.removesuffix("\n").split("\n")]


def _with_words(paths: Sequence[Path], sides: Sequence[list[str]], empty: Empty, remarks: list[str]) -> list[int]:
    """The numbers of the pairs with words on both sides; the others are refused, or told."""
    bare = [number for number, pair in enumerate(zip(*sides, strict=True)) if not all(pair)]
    if bare and empty == "refuse":
        path = paths[0] if not sides[0][bare[0]] else paths[1]
        more = f", and so are {len(bare) - 1:,} more lines" if len(bare) > 1 else ""
        raise InputError(
            f'{_name(path)}, line {bare[0] + 1:,} is empty{more}: give every line words, or pass empty="leave_out" '
            "to go without these pairs"
        )
    if bare:
        remarks.append(f"{len(bare):,} pairs without words on one side left out")
    without = set(bare)
    real = [number for number in range(len(sides[0])) if number not in without]
    if not real:
        raise InputError(f"{_name(paths[0])} and {_name(paths[1])} have no pair of sentences")
    return real


def _fitting(path: Path, lines: dict[int, str], limit: int, beyond: Beyond, remarks: list[str]) -> list[str]:
    """Sentences of at most ``limit`` characters; longer ones are refused, or cut and told."""
    long = [number for number, line in lines.items() if len(line) > limit]
    if long and beyond == "refuse":
        raise InputError(
            f"{_name(path)}, line {long[0] + 1:,} has {len(lines[long[0]]):,} characters and {len(long):,} lines have "
            f'more than {limit:,}: pass a higher limit, or beyond="truncate" to cut them'
        )
    if long:
        remarks.append(f"{len(long):,} sentences of {_name(path)} cut after {limit:,} characters")
    return [line[:limit].rstrip() for line in lines.values()]


def _pairs(folder: Path, beginnings: Sequence[str], languages: tuple[str, str]) -> list[tuple[Path, Path]]:
    """Files that differ in their language only."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a directory")
    found: list[tuple[Path, Path]] = []
    source, target = languages
    for end in ("", ".gz"):
        for path in sorted(folder.glob(f"*.{source}{end}")):
            other = path.with_name(path.name.removesuffix(f".{source}{end}") + f".{target}{end}")
            if path.name.startswith(tuple(beginnings)) and other.exists():
                found.append((path, other))
    return found


def _digest(texts: Iterable[str]) -> str:
    total = hashlib.sha256()
    for text in texts:
        total.update(text.encode() + b"\0")
    return total.hexdigest()


def _name(path: Path) -> str:
    return printable(str(path))
