"""Subwords shared by two languages: byte-pair encoding (Sennrich et al. 2015, arXiv:1508.07909) by ``tokenizers``.

On bytes, so that every text can be written and no token is ever unknown; a word begins with its space. Beside the
learned pieces there are three tokens that no text contains: padding, the start and the end of a sentence.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from regard.tasks.documents import InputError, read_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Subwords:
    """Text to tokens and back.

    Sentences are expected without spaces around them, as :mod:`regard.tasks.parallel_text` reads them: then
    ``decode(encode(sentence))`` is the sentence.

    Args:
        tokenizer: the pieces, without the three tokens, which take the numbers 0 to 2 before them.

    Attributes:
        pad, start, end: the numbers of the three.

    Example:
        >>> subwords = Subwords.train(["the house", "the mouse"], size=270)
        >>> tokens = subwords.encode("the house")
        >>> subwords.decode([subwords.start, *tokens, subwords.end, subwords.pad])
        'the house'
    """

    pad: ClassVar[int] = 0
    start: ClassVar[int] = 1
    end: ClassVar[int] = 2

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self.tokenizer = tokenizer

    @classmethod
    def train(cls, sentences: Iterable[str], size: int = 8000) -> "Subwords":
        """Learn the pieces; the same sentences give the same pieces.

        Args:
            sentences: of the training part only, of both languages.
            size: kinds of tokens in all, at most; the 256 bytes and the three tokens are among them.

        Raises:
            InputError: too small a size, or the package ``tokenizers`` is missing.
        """
        if size < 256 + SPECIAL:
            raise InputError(f"{size} kinds of tokens: the {256} bytes and {SPECIAL} more are the least")
        try:
            from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        except ImportError as error:
            raise InputError("subwords need the package tokenizers: pip install 'regard[race]'") from error
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size - SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        tokenizer.train_from_iterator(sentences, trainer)
        return cls(tokenizer)

    def __len__(self) -> int:
        return SPECIAL + self.tokenizer.get_vocab_size()

    def encode(self, sentence: str) -> list[int]:
        """The tokens of a sentence, without start and end."""
        return self.encode_all([sentence])[0]

    def encode_all(self, sentences: Sequence[str]) -> list[list[int]]:
        """The tokens of many sentences, in parallel."""
        found = self.tokenizer.encode_batch(list(sentences))
        return [[SPECIAL + token for token in one.ids] for one in found]

    def decode(self, tokens: Iterable[int]) -> str:
        """A sentence from its tokens; whatever stands behind the first end is left out."""
        return self.tokenizer.decode([token - SPECIAL for token in self._real(tokens)]).removeprefix(" ")

    def pieces(self, tokens: Iterable[int]) -> list[str]:
        """What each token stands for, to be read by people: a piece that begins a word begins with its space."""
        names = {self.pad: "", self.start: "<start>", self.end: "<end>"}
        return [names[one] if one in names else self.tokenizer.decode([one - SPECIAL]) for one in tokens]

    def to_json(self) -> str:
        """All there is to know, in the format of ``tokenizers``."""
        return self.tokenizer.to_str()

    @classmethod
    def from_json(cls, text: str) -> "Subwords":
        """What :meth:`to_json` returned.

        Raises:
            InputError: it is something else.
        """
        from tokenizers import Tokenizer

        try:
            return cls(Tokenizer.from_str(text))
        except Exception as error:  # of the class Exception itself
            raise InputError(f"not the subwords of a tokenizer: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write them to a file, whole or not at all."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(self.to_json(), encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> "Subwords":
        """Read a file that :meth:`save` wrote.

        Raises:
            InputError: it cannot be read.
        """
        return cls.from_json(read_file(Path(path)).decode("utf-8", "replace"))

    def _real(self, tokens: Iterable[int]) -> list[int]:
        """The tokens that stand for text, up to the first end."""
        found: list[int] = []
        for token in tokens:
            if token == self.end:
                break
            if token >= SPECIAL:
                found.append(token)
        return found


SPECIAL = 3
"""Tokens that stand for no text; a text may contain whatever they are called."""
