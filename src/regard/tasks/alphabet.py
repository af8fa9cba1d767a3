"""Characters as labels: numbered from 1, for 0 is the blank of CTC."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SPACE = " "


@dataclass(frozen=True)
class Alphabet:
    """The characters that a recogniser can write, each once, the space among them.

    Example:
        >>> alphabet = Alphabet.of(["press star"])
        >>> alphabet.signs, alphabet.decode(alphabet.encode("arts!"))
        (' aeprst', 'arts')
    """

    signs: str

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Alphabet":
        """Every character of some texts, in the order of Unicode."""
        return cls("".join(sorted({SPACE}.union(*texts))))

    def __len__(self) -> int:
        """With the blank."""
        return 1 + len(self.signs)

    @property
    def space(self) -> int:
        """The label between two words."""
        return 1 + self.signs.index(SPACE)

    def encode(self, text: str) -> list[int]:
        """The labels of a text; what the alphabet lacks is left out."""
        return [1 + place for place in map(self.signs.find, text) if place >= 0]

    def decode(self, labels: Sequence[int]) -> str:
        """The text of some labels, without spaces at its ends."""
        return "".join(self.signs[label - 1] for label in labels).strip()
