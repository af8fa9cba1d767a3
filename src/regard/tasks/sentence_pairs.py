"""Pairs of sentences with a label: from translations by putting wrong ones beside them, or from a file of the user.

Wrong translations must not be told by their length or by how common they are. So within each page pairs of like length
exchange their translations: every sentence of both languages comes once in a right pair and once in a wrong one, and
the wrong one is from the same page, as near in length as there is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from regard.tasks.documents import InputError, printable, read_file
from regard.tasks.parallel_text import ParallelSplit, ParallelText, split_groups

WRONG, RIGHT = "another", "translation"
"""The labels of pairs that are made from translations."""


@dataclass(frozen=True)
class SentencePairs:
    """Sentences, those they are paired with, and the label of each pair; ``groups`` says where a pair comes from."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.first)

    def at(self, numbers: Iterable[int]) -> "SentencePairs":
        """The pairs of these numbers, in this order."""
        chosen = list(numbers)
        columns = (self.first, self.second, self.labels, self.groups)
        return SentencePairs(*(tuple(column[number] for number in chosen) for column in columns))


@dataclass(frozen=True)
class PairSplit:
    """Three parts of pairs, what made them, in words, what was left out, and a digest of all."""

    train: SentencePairs
    validation: SentencePairs
    test: SentencePairs
    rule: str
    remarks: tuple[str, ...]
    digest: str

    @property
    def classes(self) -> list[str]:
        """The labels, sorted; a class number is a place in this list."""
        return sorted({label for part in (self.train, self.validation, self.test) for label in part.labels})


def with_wrong_ones(found: ParallelText) -> SentencePairs:
    """Every pair of translations, and for each a wrong one: see the head of this file.

    Pairs for which no other translation can be had are left out, so that half of all are right.

    Example:
        >>> found = ParallelText(("a", "two b", "two c"), ("x", "zwei y", "zwei z"), ("p", "p", "p"))
        >>> pairs = with_wrong_ones(found)
        >>> list(zip(pairs.first, pairs.second, pairs.labels))[:2]
        [('a', 'x', 'translation'), ('a', 'zwei y', 'another')]
        >>> sorted(pairs.second) == sorted(2 * found.target)
        True
    """
    pages: dict[str, list[int]] = {}
    for number, group in enumerate(found.groups):
        pages.setdefault(group, []).append(number)
    alone = [members[0] for members in pages.values() if len(members) == 1]
    other: dict[int, int] = {}
    for members in [*(members for members in pages.values() if len(members) > 1), alone]:
        other |= _exchanged(sorted(members, key=lambda number: (len(found.target[number]), number)))
    rows: list[tuple[str, str, str, str]] = []
    for number, wrong in sorted(other.items()):
        if found.target[wrong] != found.target[number] and found.source[wrong] != found.source[number]:
            rows.append((found.source[number], found.target[number], RIGHT, found.groups[number]))
            rows.append((found.source[number], found.target[wrong], WRONG, found.groups[number]))
    return (
        SentencePairs(*(tuple(column) for column in zip(*rows, strict=True))) if rows else SentencePairs((), (), (), ())
    )


def matching(split: ParallelSplit) -> PairSplit:
    """The parts of a parallel corpus, each with its own wrong translations.

    Raises:
        InputError: a part in which no two sentences can exchange their translations.
    """
    parts = {part: with_wrong_ones(getattr(split, part)) for part in ("train", "validation", "test")}
    for part, found in parts.items():
        if not found:
            raise InputError(f"the {part} part has no two different sentences whose translations could be exchanged")
    rule = f"{split.rule}; within a page pairs of like length exchange their translations: these are the wrong ones"
    return PairSplit(**parts, rule=rule, remarks=split.remarks, digest=split.digest)


def read_pairs(path: str | Path) -> PairSplit:
    """A file of lines ``label<TAB>first<TAB>second`` in UTF-8; all pairs of one first sentence stay in one part.

    Raises:
        InputError: lines of another form, text in another encoding, empty sentences, a pair with two labels, fewer than
            two labels or than three first sentences.
    """
    path, name = Path(path), printable(str(path))
    seen: dict[tuple[str, str], tuple[int, str]] = {}
    repeated = 0
    for number, line in enumerate(read_file(path).removesuffix(b"\n").split(b"\n"), start=1):
        label, first, second = _fields(name, number, line)
        earlier = seen.setdefault((first, second), (number, label))
        if earlier[1] != label:
            raise InputError(
                f"{name}: line {earlier[0]:,} calls a pair {printable(earlier[1])!r} and line {number:,} calls the "
                f"same pair {printable(label)!r}; leave one of them out"
            )
        repeated += earlier[0] != number
    labels = {label for _, label in seen.values()}
    if len(labels) < 2:
        raise InputError(f"{name} has {len(labels)} label: two are the least that can be told apart")
    firsts, seconds = (tuple(pair[side] for pair in seen) for side in (0, 1))
    found = split_groups(ParallelText(firsts, seconds, firsts))
    parts = {part: _labelled(getattr(found, part), seen) for part in ("train", "validation", "test")}
    remarks = (*found.remarks, *([f"{repeated:,} repeated pairs left out"] if repeated else []))
    return PairSplit(**parts, rule=found.rule, remarks=remarks, digest=_digest(parts.values()))


def _exchanged(order: Sequence[int]) -> dict[int, int]:
    """Whose translation each takes: neighbours exchange theirs, and the last three go round if their number is odd.

    Example:
        >>> _exchanged([5, 6, 7, 8, 9])
        {5: 6, 6: 5, 7: 8, 8: 9, 9: 7}
    """
    if len(order) < 2:
        return {}
    starts = range(0, len(order) - len(order) % 2, 2)
    circles = [list(order[start : start + 2]) for start in starts]
    if len(order) % 2:
        circles[-1].append(order[-1])
    return {member: circle[(place + 1) % len(circle)] for circle in circles for place, member in enumerate(circle)}


def _fields(name: str, number: int, line: bytes) -> tuple[str, str, str]:
    """Label, first and second of a line."""
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}, line {number:,}, byte {error.start + 1:,} of it (0x{line[error.start]:02x}): this is not UTF-8; "
            "convert the file, for instance by iconv -f LATIN1 -t UTF-8"
        ) from error
    fields = text.split("\t")
    if len(fields) != 3:
        raise InputError(
            f"{name}, line {number:,} has {len(fields)} columns: each line is a label, a tab, a sentence, a tab and "
            "another sentence"
        )
    label, first, second = (" ".join(field.split()) for field in fields)
    for column, field in (("label", label), ("first sentence", first), ("second sentence", second)):
        if not field:
            raise InputError(f"{name}, line {number:,}: the {column} is empty")
    return label, first, second


def _labelled(part: ParallelText, seen: dict[tuple[str, str], tuple[int, str]]) -> SentencePairs:
    labels = tuple(seen[pair][1] for pair in zip(part.source, part.target, strict=True))
    return SentencePairs(part.source, part.target, labels, part.groups)


def _digest(parts: Iterable[SentencePairs]) -> str:
    """sha256 of all columns of all parts."""
    texts = [(*part.first, *part.second, *part.labels) for part in parts]
    return ParallelText(*(tuple(t for text in texts for t in text),) * 3).digest
