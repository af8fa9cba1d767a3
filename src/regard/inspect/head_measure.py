"""The numbers of every head of a layer, counted over all sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.inspect.head_report import DIRECTIONS, Arc
from regard.inspect.sentences import Sentence
from regard.ops.head_roles import arc_baseline, confidence, offset_shares, rare_shares, syntactic_accuracy

__all__ = ["Measure", "Numbers"]


@dataclass(frozen=True)
class Numbers:
    """Of the H heads of one layer.

    Attributes:
        confidence: as in :mod:`regard.ops.head_roles`, like all of them.
        offsets, offset_shares: the places that were tried, and the share of words of each.
        relations, arcs: the relations that have arcs, and how many.
        accuracy, baseline: of each relation in each direction.
        rare: shares of words that look at the rarest, and at one of the two rarest; None where no word is rare.
    """

    confidence: Float[Tensor, " H"]
    offsets: tuple[int, ...]
    offset_shares: Float[Tensor, "H O"]
    relations: tuple[str, ...]
    arcs: Int[Tensor, " R"]
    accuracy: Float[Tensor, "R 2 H"]
    baseline: Float[Tensor, "R 2"]
    rare: Float[Tensor, "2 H"] | None

    def arcs_of(self, head: int) -> list[tuple[tuple[int, int], Arc]]:
        """Each relation and direction, with its place in ``accuracy``."""
        return [
            (
                (place, way),
                Arc(
                    relation,
                    direction,
                    float(self.accuracy[place, way, head]),
                    float(self.baseline[place, way]),
                    int(self.arcs[place]),
                ),
            )
            for place, relation in enumerate(self.relations)
            for way, direction in enumerate(DIRECTIONS)
        ]


class Measure:
    """Counts for one layer after the other over the same sentences.

    Args:
        sentences: in the order in which they were looked at.
        real: True for the words that have tokens, batch by batch.
        ranks: of words by frequency; a word that is not there is rarer than all.
        relations, offsets, common_words: as in :func:`regard.inspect.heads`.

    Attributes:
        size: words of the longest sentence.
        remarks: what could not be counted.
    """

    def __init__(
        self,
        sentences: Sequence[Sentence],
        real: Sequence[Bool[Tensor, "_ _"]],
        ranks: Mapping[str, int],
        relations: Sequence[str],
        offsets: Sequence[int],
        common_words: int,
    ) -> None:
        self.size = max(each.shape[-1] for each in real)
        self.offsets, self.common_words = tuple(offsets), common_words
        self.words = torch.cat([F.pad(each, (0, self.size - each.shape[-1])) for each in real])
        self.ranks = self._table([[ranks.get(word, len(ranks) + 1) for word in each.words] for each in sentences], 0)
        self.heads = self._table([each.heads or () for each in sentences], -1)
        plain = [[name.partition(":")[0] for name in each.relations or ()] for each in sentences]
        there = {name for each in plain for name in each}
        self.relations = tuple(name for name in relations if name in there)
        number = {name: place for place, name in enumerate(self.relations)}
        self.kinds = self._table([[number.get(name, -1) for name in each] for each in plain], -1)
        self.baseline = arc_baseline(self.words, self.heads, self.kinds, len(self.relations))
        whole = self.words & (self.heads >= 0) & self.words.gather(1, self.heads.clamp(min=0))
        self.arcs = torch.tensor([int((whole & (self.kinds == place)).sum()) for place in number.values()])
        self.has_rare = bool((self.ranks.masked_fill(~self.words, 0) > self.common_words).any())
        self.remarks = self._remarks(sentences, relations)

    def __call__(self, weight: Float[Tensor, "S H W"], place: Int[Tensor, "S H W"]) -> Numbers:
        """The numbers of one layer, from the largest weight of each word's row and its place."""
        arcs = (self.heads, self.kinds, len(self.relations))
        return Numbers(
            confidence=confidence(weight, self.words),
            offsets=self.offsets,
            offset_shares=offset_shares(place, self.words, torch.tensor(self.offsets)),
            relations=self.relations,
            arcs=self.arcs,
            accuracy=syntactic_accuracy(place, self.words, *arcs),
            baseline=self.baseline,
            rare=rare_shares(place, self.words, self.ranks, self.common_words) if self.has_rare else None,
        )

    def _table(self, rows: Sequence[Sequence[int]], filling: int) -> Int[Tensor, "S W"]:
        return torch.tensor([[*row, *[filling] * (self.size - len(row))] for row in rows])

    def _remarks(self, sentences: Sequence[Sentence], relations: Sequence[str]) -> tuple[str, ...]:
        remarks: list[str] = []
        without = sum(not each.has_tree for each in sentences)
        if without == len(sentences):
            remarks.append("No sentence has a tree: syntactic roles were not looked for.")
        else:
            remarks += [f"{without} sentences have no tree."] if without else []
            if not self.relations:
                remarks.append(f"No arc is called {', '.join(relations)}: syntactic roles were not looked for.")
        if not self.has_rare:
            remarks.append(f"All words are among the {self.common_words} most frequent: rare words were not counted.")
        return tuple(remarks)
