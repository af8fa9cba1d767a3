"""What two sentences are to each other, from their subwords: quality is held-out accuracy."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from regard.mechanisms.pairs.abcnn import Attention
from regard.models.abcnn import ABCNN
from regard.models.pair_classifier import PairClassifier
from regard.tasks.cache import cached
from regard.tasks.documents import InputError
from regard.tasks.sentence_pairs import PairSplit, SentencePairs
from regard.tasks.subwords import Subwords
from regard.tasks.task import Batch, Metric, Part, Task, step_generator

Beyond = Literal["refuse", "truncate", "leave_out"]

VALIDATION_PAIRS, TEST_PAIRS = 256, 2048
JUDGED_PAIRS = 128
"""Pairs per batch when judging."""


class ABCNNPairs(nn.Module):
    """ABCNN on tokens as the trainer calls its models.

    Args:
        network: with an embedding of its own.
    """

    def __init__(self, network: ABCNN) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        tokens: Tensor,
        *,
        context: Tensor,
        key_mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        return_aux: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, K) of pairs of tokens (B, N) and (B, M); with ``return_aux`` also an empty dict."""
        logits = self.network(tokens, context, query_mask=key_mask, key_mask=context_mask)
        return (logits, {}) if return_aux else logits


class PairMatching(Task):
    """Name the class of a pair of sentences.

    Args:
        split: the pairs.
        length: the most subwords of a sentence.
        batch: pairs per step.
        seed: of their order.
        beyond: what becomes of pairs with a longer sentence: "refuse", "truncate" or "leave_out"; ``remarks`` tells.
        vocab_size: the most kinds of subwords, which are learned from the training part, for both sides.

    Attributes:
        remarks: what was left out or cut, in words.
        pairs: of each part, those that are read.

    Raises:
        InputError: sentences over the limit, or a part without any that fits.
    """

    metric = Metric("accuracy", lower_is_better=False, digits=3, items="pairs")
    unit = "subwords"

    def __init__(
        self,
        split: PairSplit,
        *,
        length: int,
        batch: int,
        seed: int,
        beyond: Beyond = "refuse",
        vocab_size: int = 4000,
    ) -> None:
        self.length, self.rows, self.seed, self.beyond = length, batch, seed, beyond
        self.classes, self.remarks = split.classes, list[str]()
        self.num_classes = len(self.classes)
        tokens, self.vocab_size = _tokens(split, vocab_size)
        self.pairs: dict[str, SentencePairs] = {}
        self._sides: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._targets: dict[str, Tensor] = {}
        for part, limit in (("train", None), ("validation", VALIDATION_PAIRS), ("test", TEST_PAIRS)):
            self._keep(part, getattr(split, part), limit, tokens)

    def model(self, dim: int, depth: int, num_heads: int, mechanism: str | None, **options: Any) -> nn.Module:
        """A classifier of two sequences; without a mechanism they stay apart until they are compared."""
        sizes = (self.vocab_size, dim, depth, num_heads, self.length)
        return PairClassifier(*sizes, mechanism, num_classes=self.num_classes, **options)

    def rival(self, dim: int, depth: int, attention: Attention) -> nn.Module:
        """ABCNN-1, 2 or 3, or BCNN, with an embedding of its own."""
        sizes: dict[str, Any] = {"filters": dim, "depth": depth, "max_length": self.length}
        network = ABCNN(dim, self.num_classes, attention=attention, vocab_size=self.vocab_size, **sizes)
        return ABCNNPairs(network)

    def batch(self, step: int) -> Batch:
        """``batch`` training pairs drawn uniformly by a generator that depends on seed and step alone."""
        generator = step_generator(self.seed, step)
        return self._batch("train", torch.randint(len(self.pairs["train"]), (self.rows,), generator=generator).tolist())

    def held_out(self, part: Part) -> Iterator[Batch]:
        """Pairs sorted by size, so that little is padded."""
        sides = self._sides[part]
        numbers = sorted(range(len(sides)), key=lambda number: max(map(len, sides[number])))
        for first in range(0, len(numbers), JUDGED_PAIRS):
            yield self._batch(part, numbers[first : first + JUDGED_PAIRS])

    def loss(self, prediction: Tensor, batch: Batch) -> Float[Tensor, ""]:
        """Mean cross-entropy."""
        return F.cross_entropy(prediction.float(), batch.targets)

    def scores(self, prediction: Tensor, batch: Batch) -> Float[Tensor, " B"]:
        """1 where the likeliest class is the right one."""
        return (prediction.argmax(-1) == batch.targets).double()

    def targets(self, part: str) -> Tensor:
        """The class of each pair of a part, "train" among them."""
        return self._targets[part]

    def sizes(self) -> dict[str, tuple[int, int]]:
        """(pairs, subwords) of each part; of the held-out ones those that are judged."""
        return {
            part: (len(sides), sum(len(one) + len(other) for one, other in sides))
            for part, sides in self._sides.items()
        }

    def _keep(self, part: str, found: SentencePairs, limit: int | None, tokens: Mapping[str, Tensor]) -> None:
        """The pairs of a part that fit, at most so many, spread evenly, as tokens."""
        sides = [(tokens[first], tokens[second]) for first, second in zip(found.first, found.second, strict=True)]
        long = [number for number, pair in enumerate(sides) if max(map(len, pair)) > self.length]
        if long and self.beyond == "refuse":
            raise InputError(
                f"{len(long):,} {part} pairs have a sentence of more than --length {self.length:,} subwords, the first "
                f"{max(map(len, sides[long[0]])):,}: {found.first[long[0]][:60]!r}; give a greater --length"
            )
        if long:
            done = "cut" if self.beyond == "truncate" else "left out"
            self.remarks.append(
                f"{len(long):,} {part} pairs with a sentence of more than {self.length:,} subwords {done}"
            )
        without = set(long) if self.beyond == "leave_out" else set[int]()
        kept = [number for number in range(len(sides)) if number not in without]
        if not kept:
            raise InputError(f"there is no {part} pair of at most {self.length:,} subwords on each side")
        count = len(kept) if limit is None else min(limit, len(kept))
        kept = [kept[(2 * place + 1) * len(kept) // (2 * count)] for place in range(count)]
        numbers = {name: number for number, name in enumerate(self.classes)}
        self.pairs[part] = found.at(kept)
        self._sides[part] = [(sides[n][0][: self.length], sides[n][1][: self.length]) for n in kept]
        self._targets[part] = torch.tensor([numbers[label] for label in self.pairs[part].labels])

    def _batch(self, part: str, numbers: Sequence[int]) -> Batch:
        rows, chosen = [self._sides[part][number] for number in numbers], self.pairs[part]
        tokens, key_mask = _padded([one for one, _ in rows])
        context, context_mask = _padded([other for _, other in rows])
        units = tuple(chosen.groups[number] for number in numbers)
        return Batch(
            *(tokens, self._targets[part][list(numbers)], key_mask, units, (1.0,) * len(units)),
            context=context,
            context_mask=context_mask,
        )


def _tokens(split: PairSplit, vocab_size: int) -> tuple[dict[str, Tensor], int]:
    """The tokens of every sentence, and how many kinds there are: learned and cut once, and kept in the cache."""
    parts = (split.train, split.validation, split.test)
    sentences = list(dict.fromkeys(sentence for part in parts for sentence in (*part.first, *part.second)))

    def cut() -> dict[str, Tensor]:
        subwords = Subwords.train(dict.fromkeys((*split.train.first, *split.train.second)), vocab_size)
        rows = subwords.encode_all(sentences)
        numbers = [token for row in rows for token in row]
        lengths, kinds = torch.tensor([len(row) for row in rows]), torch.tensor(len(subwords))
        return {"tokens": torch.tensor(numbers, dtype=torch.int32), "lengths": lengths, "kinds": kinds}

    found = cached(f"pairs-1-{split.digest[:32]}-{vocab_size}", cut)
    rows = found["tokens"].split(found["lengths"].tolist())
    return dict(zip(sentences, rows, strict=True)), int(found["kinds"])


def _padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of one length, and which of their tokens are real."""
    lengths = torch.tensor([len(row) for row in rows])
    tokens = pad_sequence(list(rows), batch_first=True, padding_value=Subwords.pad).long()
    return tokens, torch.arange(tokens.shape[1]) < lengths[:, None]
