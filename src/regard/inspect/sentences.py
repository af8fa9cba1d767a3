"""Sentences of words, perhaps with a syntactic tree, and the way from the tokens of a model back to the words.

A tokenizer may cut a word into pieces. Attention to a word is the sum over its pieces, attention from a word the mean
over its pieces (Clark et al. 2019, arXiv:1906.04341, section 4.1), so that the weights of a word add up as before.
Tokens of no word (end of sentence, [CLS], spaces) are left out on both sides.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Sentence", "Tokenize", "as_tokenize", "bytes_of_words", "word_maps"]

Tokenize: TypeAlias = Callable[[Sequence[str]], tuple[list[int], list[int]]]
"""Words -> the ids of the tokens, and for each token the number of its word, -1 for one of no word."""


@dataclass(frozen=True)
class Sentence:
    """Words, and where somebody has drawn it, their dependency tree.

    Attributes:
        words: as they are written.
        heads: for each word the place of the word that it depends on, from 0; -1 for the root.
        relations: for each word the name of its relation to that word, such as "nsubj".

    Raises:
        ValueError: no words, or a tree that does not fit them.

    Example:
        >>> Sentence(("Dogs", "bark"), (1, -1), ("nsubj", "root")).has_tree
        True
    """

    words: tuple[str, ...]
    heads: tuple[int, ...] | None = None
    relations: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        n = len(self.words)
        if not n:
            raise ValueError("a sentence without words")
        if (self.heads is None) != (self.relations is None):
            raise ValueError("a tree is both heads and relations: one of them is missing")
        if self.heads is None or self.relations is None:
            return
        if not len(self.heads) == len(self.relations) == n:
            raise ValueError(f"{n} words, but {len(self.heads)} heads and {len(self.relations)} relations")
        if outside := [head for head in self.heads if not -1 <= head < n]:
            raise ValueError(f"a head at place {outside[0]} in a sentence of {n} words")

    @property
    def has_tree(self) -> bool:
        """Whether somebody has drawn the tree."""
        return self.heads is not None


def as_tokenize(tokenizer: Any) -> Tokenize:
    """A tokenizer of Hugging Face's transformers or tokenizers, or a function, as what is called on words.

    Args:
        tokenizer: a fast tokenizer of transformers, a ``tokenizers.Tokenizer``, or a :data:`Tokenize`.

    Raises:
        TypeError: something else, or a tokenizer that cannot say which word a token belongs to.
    """
    if getattr(tokenizer, "is_fast", None) is False:
        raise TypeError(f"{type(tokenizer).__name__} cannot say which word a token belongs to: take the fast tokenizer")
    if getattr(tokenizer, "is_fast", False):

        def fast(words: Sequence[str]) -> tuple[list[int], list[int]]:
            found = tokenizer(list(words), is_split_into_words=True)
            return list(found["input_ids"]), _numbers(found.word_ids())

        return fast
    if hasattr(tokenizer, "encode") and hasattr(tokenizer, "token_to_id"):

        def plain(words: Sequence[str]) -> tuple[list[int], list[int]]:
            found = tokenizer.encode(list(words), is_pretokenized=True)
            return list(found.ids), _numbers(found.word_ids)

        return plain
    if not callable(tokenizer):
        raise TypeError(f"{type(tokenizer).__name__} is no tokenizer: expected a function words -> (ids, word numbers)")
    return cast(Tokenize, tokenizer)


def bytes_of_words(words: Sequence[str]) -> tuple[list[int], list[int]]:
    """The bytes of the words with a space between two, as byte-level models read them; spaces belong to no word.

    Example:
        >>> bytes_of_words(["A", "bc"])
        ([65, 32, 98, 99], [0, -1, 1, 1])
    """
    ids, numbers = list[int](), list[int]()
    for number, word in enumerate(words):
        written = word.encode()
        ids += [32] * (number > 0) + list(written)
        numbers += [-1] * (number > 0) + [number] * len(written)
    return ids, numbers


def word_maps(weights: Float[Tensor, "B H N N"], words: Int[Tensor, "B N"], size: int) -> Float[Tensor, "B H W W"]:
    """Attention between tokens as attention between words; see the head of this file.

    Args:
        weights: between tokens.
        words: the number of each token's word, -1 for none.
        size: W; words beyond a sentence's own have rows and columns of 0.

    Example:
        >>> weights = torch.tensor([[[[0.2, 0.3, 0.5], [0.6, 0.1, 0.3], [1.0, 0.0, 0.0]]]])
        >>> word_maps(weights, torch.tensor([[0, 0, 1]]), 2).squeeze().tolist()
        [[0.6000000238418579, 0.4000000059604645], [1.0, 0.0]]
    """
    belongs = (words[..., None] == torch.arange(size, device=words.device)).to(weights.dtype)
    share = belongs / belongs.sum(1, keepdim=True).clamp(min=1)
    return share[:, None].mT @ weights @ belongs[:, None]


def _numbers(found: Sequence[int | None]) -> list[int]:
    return [-1 if number is None else number for number in found]
