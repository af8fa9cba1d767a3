"""Sentences through a model: tokens, batches without padding, and what is kept of the maps."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.inspect.head_report import Example
from regard.inspect.model_maps import maps_of
from regard.inspect.sentences import Sentence, Tokenize, word_maps
from regard.ops.head_roles import strongest
from regard.registry import UnsupportedError

__all__ = ["Run", "Seen", "Text", "batches", "examples", "look", "tokenized"]

Run = Callable[[nn.Module, Tensor], Any]
"""(model, tokens (B, N)) -> anything: how a model is run."""


@dataclass(frozen=True)
class Text:
    """A sentence with its tokens: their ids, and the number of each one's word or -1."""

    sentence: Sentence
    ids: list[int]
    words: list[int]


@dataclass(frozen=True)
class Batch:
    """Sentences of one length in tokens: their numbers in the data, ids and the word of each token."""

    numbers: list[int]
    ids: Int[Tensor, "B N"]
    words: Int[Tensor, "B N"]
    size: int


def tokenized(
    sentences: Sequence[Sentence], tokenize: Tokenize, limit: int | None, too_long: str
) -> tuple[list[Text], list[str]]:
    """All sentences as tokens; what is too long is refused, or left out and told."""
    if not sentences:
        raise ValueError("there are no sentences to look at")
    texts = [Text(sentence, *tokenize(sentence.words)) for sentence in sentences]
    fitting = [text for text in texts if limit is None or len(text.ids) <= limit]
    if len(fitting) == len(texts):
        return texts, []
    longest = max(len(text.ids) for text in texts)
    gone = f"{len(texts) - len(fitting)} of {len(texts)} sentences are longer than the model's {limit} tokens"
    if too_long != "skip":
        raise ValueError(
            f'{gone} (the longest has {longest}): shorten them, or leave them out (too_long="skip", --too-long skip)'
        )
    if not fitting:
        raise ValueError(f"all sentences are longer than the model's {limit} tokens")
    return fitting, [f"{gone} and were left out."]


def batches(texts: Sequence[Text], size: int, device: torch.device) -> Iterator[Batch]:
    """Sentences of equal length in tokens, at most ``size`` at once, the short ones first."""
    by_length: dict[int, list[int]] = {}
    for number, text in enumerate(texts):
        by_length.setdefault(len(text.ids), []).append(number)
    for _, numbers in sorted(by_length.items()):
        for start in range(0, len(numbers), size):
            some = numbers[start : start + size]
            ids = torch.tensor([texts[number].ids for number in some], device=device)
            words = torch.tensor([texts[number].words for number in some], device=device)
            yield Batch(some, ids, words, max(len(texts[number].sentence.words) for number in some))


def examples(texts: Sequence[Text], wanted: int) -> list[int]:
    """Sentences that are neither trivial nor too wide for a picture, in their order; then the others."""
    good = [number for number, text in enumerate(texts) if 5 <= len(text.sentence.words) <= 16]
    rest = sorted(set(range(len(texts))) - set(good), key=lambda number: len(texts[number].sentence.words))
    return [*good, *rest][:wanted]


class Tally:
    """The largest weight of every word's row and its place, sentence by sentence."""

    def __init__(self) -> None:
        self.weight: list[Tensor] = []
        self.place: list[Tensor] = []

    def add(self, maps: Float[Tensor, "B H W W"], words: Tensor) -> None:
        """Two numbers a word are kept of a map."""
        weight, place = strongest(maps, words)
        self.weight.append(weight.float().cpu())
        self.place.append(place.to(torch.int16).cpu())

    def joined(self, size: int) -> tuple[Float[Tensor, "S H W"], Int[Tensor, "S H W"]]:
        """Of all sentences, padded to ``size`` words."""
        weight = torch.cat([F.pad(each, (0, size - each.shape[-1])) for each in self.weight])
        place = torch.cat([F.pad(each, (0, size - each.shape[-1]), value=-1) for each in self.place])
        return weight, place.long()


@dataclass(frozen=True)
class Seen:
    """What is kept of all maps.

    Attributes:
        tallies: by layer.
        numbers: of the sentences, in the order of the tallies.
        words: True for the words that have tokens, for each batch.
        examples: the maps of the chosen sentences, by number.
        elsewhere: layers that look at something else than the sentence.
    """

    tallies: dict[str, Tally]
    numbers: list[int]
    words: list[Bool[Tensor, "_ _"]]
    examples: dict[int, Example]
    elsewhere: list[str]


def look(model: nn.Module, texts: Sequence[Text], size: int, run: Run, chosen: Sequence[int]) -> Seen:
    """All maps of all sentences, reduced at once; those of the chosen sentences are kept.

    Raises:
        UnsupportedError: no attention within the sentences.
    """
    seen, elsewhere = Seen({}, [], [], {}, []), set[str]()
    for each in batches(texts, size, next(model.parameters()).device):
        found = maps_of(model, lambda each=each: run(model, each.ids))
        real = (each.words[..., None] == torch.arange(each.size, device=each.words.device)).any(1)
        maps = {
            layer: word_maps(found_map.tensor.float(), each.words, each.size)
            for layer, found_map in found.items()
            if _within(found_map.tensor, each.ids)
        }
        elsewhere |= set(found) - set(maps)
        for layer, weights in maps.items():
            seen.tallies.setdefault(layer, Tally()).add(weights, real)
        seen.numbers.extend(each.numbers)
        seen.words.append(real.cpu())
        for row, number in enumerate(each.numbers):
            if number in chosen:
                words = texts[number].sentence.words
                own = {layer: weights[row, :, : len(words), : len(words)].cpu() for layer, weights in maps.items()}
                seen.examples[number] = Example(words, own)
    for layer in sorted(elsewhere):
        seen.tallies.pop(layer, None)
        seen.elsewhere.append(f"{layer} looks at something else than the sentence: no roles.")
    if not seen.tallies:
        raise UnsupportedError(f"{type(model).__name__} has no attention from the tokens of a sentence to themselves")
    return seen


def _within(weights: Tensor, ids: Tensor) -> bool:
    return (len(weights), *weights.shape[-2:]) == (len(ids), ids.shape[1], ids.shape[1])
