"""Which documents a model learns from, and which it has never seen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from regard.tasks.documents import Document, InputError

SHARE = 0.1
"""Of the bytes, for the test and again for the validation part."""

DWARFING = 0.8
"""A document with more than this share of all bytes leaves too little beside it to judge on."""


@dataclass(frozen=True)
class Split:
    """Three disjoint parts and the rule, in words, that made them.

    ``validation`` draws the curves while training runs; ``test`` is judged once, at the end.
    """

    train: tuple[Document, ...]
    validation: tuple[Document, ...]
    test: tuple[Document, ...]
    rule: str


def split_documents(documents: Sequence[Document], length: int) -> Split:
    """Hold out whole documents; a text that is alone is cut by position instead, with a gap, and the rule says so.

    Documents are dealt in the order of their sha256, so the split depends on nothing but the content.

    Raises:
        InputError: there is too little text to cut.
    """
    total = sum(len(document.data) for document in documents)
    largest = max(documents, key=lambda document: len(document.data))
    if len(documents) == 1 or len(largest.data) > DWARFING * total:
        return _cut(largest, [document for document in documents if document is not largest], length)
    remaining = sorted(documents, key=lambda document: document.digest)
    limit = SHARE * total
    test = _take(remaining, limit)
    if not remaining[1:]:
        (alone,) = remaining
        train, validation = _pieces(alone, [1 - SHARE, SHARE], length)
        rule = f"test: {test[0].name}; validation: the last tenth of {alone.name}, after a gap"
        return Split((train,), (validation,), tuple(test), rule)
    validation = _take(remaining, limit)
    rule = "by document, in the order of their sha256: about a tenth of the bytes for test, a tenth for validation"
    return Split(tuple(remaining), tuple(validation), tuple(test), rule)


def split_by(documents: Sequence[Document], part: Callable[[Document], str], rule: str) -> Split:
    """The split that ``part`` says ("train", "validation" or "test" for each document)."""
    parts: dict[str, list[Document]] = {"train": [], "validation": [], "test": []}
    for document in documents:
        parts[part(document)].append(document)
    return Split(tuple(parts["train"]), tuple(parts["validation"]), tuple(parts["test"]), rule)


def _take(remaining: list[Document], limit: float) -> list[Document]:
    """Move documents out of ``remaining`` while they fit under the limit; the smallest one if none fits."""
    taken: list[Document] = []
    for document in list(remaining):
        if sum(len(other.data) for other in taken) + len(document.data) <= limit and remaining[1:]:
            taken.append(document)
            remaining.remove(document)
    if not taken:
        smallest = min(remaining, key=lambda document: len(document.data))
        taken.append(smallest)
        remaining.remove(smallest)
    return taken


def _cut(document: Document, others: Sequence[Document], length: int) -> Split:
    train, validation, test = _pieces(document, [1 - 2 * SHARE, SHARE, SHARE], length)
    why = f"{document.name} holds nearly all bytes" if others else "one document"
    rule = f"{why}, so by position with gaps: the first 80 % of {document.name} train, then validation, then test"
    return Split((train, *others), (validation,), (test,), rule)


def _pieces(document: Document, shares: Sequence[float], length: int) -> list[Document]:
    """Consecutive pieces; each but the last loses its end, so that no training window touches held-out text."""
    size = len(document.data)
    gap = min(length, size // 50)
    pieces: list[Document] = []
    start = 0.0
    for number, share in enumerate(shares):
        first, last = round(start * size), round((start + share) * size) - (gap if number < len(shares) - 1 else 0)
        pieces.append(Document(f"{document.name}[{first}:{last}]", document.data[first:last]))
        start += share
    if any(len(piece.data) < 2 for piece in pieces):
        raise InputError(f"{document.name} has only {size:,} bytes: too little to hold a part of it out")
    return pieces
