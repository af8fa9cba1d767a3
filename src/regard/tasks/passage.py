"""A piece of text that a person can read, to look at attention with."""

import re
from collections.abc import Sequence


def printable_piece(texts: Sequence[bytes], size: int) -> bytes:
    """At most ``size`` bytes that begin at a line, with a capital if there is such a place, from the middle text on.

    Preferably from behind the first third of a text, where titles and licences end.

    Example:
        >>> printable_piece([b"\\x00 no\\nThis can be read.\\n"], 17)
        b'This can be read.'
    """
    middle = len(texts) // 2
    texts = [*texts[middle:], *texts[:middle]]
    size = min(size, max(map(len, texts)))
    for first in (rb"[A-Z]", rb"[!-~]"):
        piece = re.compile(rb"(?m)^%b[ -~\s]{%d}" % (first, size - 1))
        for text in texts:
            if found := piece.search(text, len(text) // 3) or piece.search(text):
                return found[0]
    return max(texts, key=len)[:size]
