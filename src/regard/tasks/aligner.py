"""Which word translates which: a statistical aligner, to judge by it where a translator looks.

IBM Model 1 (Brown et al. 1993) with the diagonal of Dyer et al. 2013 ("fast_align"): each target word f_i of m has one
source word e_j of n behind it, or none, ::

    p(a_i = none) = p_0        p(a_i = j) = (1 - p_0) exp(-tension |i / m - j / n|) / Z_i        p(f_i | e_j) = a table

for places counted from 1. The table is learnt from pairs of sentences alone, by expectation maximisation from equal
chances; tension 0 is Model 1. It holds only pairs of words that met: memory is that of all target words times the words
of their sources. It knows nothing of any network, and is wrong now and then: a reference, not the truth.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Agreement", "Aligner", "agreement", "align_both"]

Sentences = Sequence[Sequence[int]]
"""The tokens of each sentence, by number."""

UNSEEN = 1e-9
"""Chance of two words that never met."""


class _Links(NamedTuple):
    """Every target word with no word and with each word of its source, one after the other."""

    key: Int[Tensor, " L"]
    row: Int[Tensor, " L"]
    prior: Float[Tensor, " L"]
    shapes: list[tuple[int, int]]


class Aligner:
    """A learnt table p(target word | source word); :meth:`train` makes one.

    Args:
        keys: the pairs of words that met, in order, source * vocabulary + target; source 0 is none.
        table: their chances.
        vocabulary: numbers of target words, the last of which stands for all that were never seen.
        tension, none: of the prior.
    """

    def __init__(self, keys: Tensor, table: Tensor, vocabulary: int, tension: float, none: float) -> None:
        self.keys, self.table, self.vocabulary, self.tension, self.none = keys, table, vocabulary, tension, none

    @classmethod
    def train(
        cls,
        sources: Sentences,
        targets: Sentences,
        *,
        iterations: int = 5,
        tension: float = 4.0,
        none: float = 0.08,
    ) -> "Aligner":
        """Learn from pairs of sentences.

        Args:
            sources, targets: the same number of sentences, none of them empty.
            iterations: of expectation maximisation.
            tension: how strongly words stay near the diagonal; 0: not at all.
            none: p_0, how often a target word has no source.

        Raises:
            ValueError: unequal numbers of sentences, or an empty one.

        Example:
            >>> aligner = Aligner.train([[0, 1], [0, 2], [3, 2]], [[5, 6], [5, 7], [8, 7]])
            >>> aligner.align([[3, 1]], [[8, 6]])
            [[0, 1]]
        """
        vocabulary = 2 + max((max(target, default=0) for target in targets), default=0)
        links = _links(sources, targets, vocabulary, tension, none)
        keys, place = links.key.unique(return_inverse=True)
        source = keys // vocabulary
        table = torch.ones(len(keys), dtype=torch.float64)
        rows = sum(shape[0] for shape in links.shapes)
        for _ in range(iterations):
            counts = torch.zeros_like(table).index_add_(0, place, _shares(table[place] * links.prior, links.row, rows))
            totals = counts.new_zeros(int(source.max()) + 1).index_add_(0, source, counts)
            table = counts / totals[source].clamp(min=torch.finfo(counts.dtype).tiny)
        return cls(keys, table, vocabulary, tension, none)

    def chances(self, sources: Sentences, targets: Sentences) -> list[Float[Tensor, "_ _"]]:
        """Of each pair, how likely each target word comes from none (first) or from each source word; rows sum to 1."""
        links = _links(sources, targets, self.vocabulary, self.tension, self.none)
        place = torch.searchsorted(self.keys, links.key).clamp(max=len(self.keys) - 1)
        chance = torch.where(self.keys[place] == links.key, self.table[place], UNSEEN).clamp(min=UNSEEN)
        shares = _shares(chance * links.prior, links.row, sum(shape[0] for shape in links.shapes))
        pairs = shares.split([rows * columns for rows, columns in links.shapes])
        return [pair.view(shape) for pair, shape in zip(pairs, links.shapes, strict=True)]

    def align(self, sources: Sentences, targets: Sentences) -> list[list[int]]:
        """The likeliest place in the source of each target word, -1 for none."""
        return [(chances.argmax(-1) - 1).tolist() for chances in self.chances(sources, targets)]


def align_both(
    sources: Sentences, targets: Sentences, forwards: Aligner, backwards: Aligner, *, union: bool = False
) -> list[Bool[Tensor, "_ _"]]:
    """The links that two aligners agree on, or with ``union`` those that either has.

    Args:
        sources, targets: pairs of sentences.
        forwards: trained from sources to targets.
        backwards: trained from targets to sources.
    """
    found: list[Tensor] = []
    there, back = forwards.align(sources, targets), backwards.align(targets, sources)
    for source, target, of_target, of_source in zip(sources, targets, there, back, strict=True):
        first = torch.tensor(of_target)[:, None] == torch.arange(len(source))
        second = torch.tensor(of_source) == torch.arange(len(target))[:, None]
        found.append(first | second if union else first & second)
    return found


class Agreement(NamedTuple):
    """How often attention looks at a linked word.

    Attributes:
        share: of the linked target words, those whose largest weight lies on a word that is linked with them.
        chance: the same, expected of a place drawn at random.
        diagonal: the same, of the place that lies as far in the source as the word in the target.
        words: how many target words have a link.
    """

    share: float
    chance: float
    diagonal: float
    words: int


def agreement(weights: Sequence[Float[Tensor, "_ _"]], references: Sequence[Bool[Tensor, "_ _"]]) -> Agreement:
    """Attention against links, over many pairs of sentences.

    Args:
        weights: of each pair: row i tells where the translator looked when it wrote word i.
        references: the links, from :func:`align_both`.

    Raises:
        ValueError: shapes that differ, or no link at all.

    Example:
        >>> agreement([torch.tensor([[0.9, 0.1], [0.6, 0.4]])], [torch.eye(2, dtype=torch.bool)])
        Agreement(share=0.5, chance=0.5, diagonal=1.0, words=2)
    """
    sums, words = torch.zeros(3, dtype=torch.float64), 0
    for shares, links in zip(weights, references, strict=True):
        if shares.shape != links.shape:
            raise ValueError(f"weights {tuple(shares.shape)} and links {tuple(links.shape)} are not of the same words")
        count, places = links.shape
        middle = (torch.arange(count) + 0.5) / count * places
        looked = [shares.argmax(-1).cpu(), middle.long()]
        linked = links.any(-1)
        hits = [links.gather(1, place[:, None])[:, 0].double() for place in looked]
        rows = torch.stack((hits[0], links.double().mean(-1), hits[1]))
        sums, words = sums + rows.sum(-1), words + int(linked.sum())
    if not words:
        raise ValueError("no target word has a link: there is nothing to agree with")
    share, chance, diagonal = (sums / words).tolist()
    return Agreement(share, chance, diagonal, words)


def _links(sources: Sentences, targets: Sentences, vocabulary: int, tension: float, none: float) -> _Links:
    if len(sources) != len(targets):
        raise ValueError(f"{len(sources)} sources and {len(targets)} targets: they must be pairs")
    for number, pair in enumerate(zip(sources, targets, strict=True)):
        if not all(map(len, pair)):
            raise ValueError(f"pair {number} has {len(pair[0])} and {len(pair[1])} words: leave empty sentences out")
    n = torch.tensor([len(source) for source in sources], dtype=torch.long)
    m = torch.tensor([len(target) for target in targets], dtype=torch.long)
    # 0 stands before each source: no word
    source = torch.tensor([word for sentence in sources for word in (-1, *sentence)], dtype=torch.long) + 1
    target = torch.tensor([word for sentence in targets for word in sentence], dtype=torch.long)
    target = target.clamp(max=vocabulary - 1)  # the last number is that of all words which were not learnt
    pair = torch.arange(len(m)).repeat_interleave(m)  # of each target word
    i = torch.arange(len(pair)) - (m.cumsum(0) - m)[pair]
    row = torch.arange(len(pair)).repeat_interleave(n[pair] + 1)
    j = torch.arange(len(row)) - ((n[pair] + 1).cumsum(0) - n[pair] - 1)[row]
    first = ((n + 1).cumsum(0) - n - 1)[pair]
    key = source[first[row] + j] * vocabulary + target[row]
    apart = (i.double() + 1)[row] / m[pair][row] - j.double() / n[pair][row]
    near = torch.exp(-tension * apart.abs())
    near = _shares(near.where(j > 0, 0.0), row, len(pair))
    prior = torch.where(j > 0, (1 - none) * near, none)
    return _Links(key, row, prior, [(int(a), int(b) + 1) for a, b in zip(m, n, strict=True)])


def _shares(values: Float[Tensor, " L"], row: Int[Tensor, " L"], rows: int) -> Float[Tensor, " L"]:
    """Values divided by the sum of their row."""
    return values / values.new_zeros(rows).index_add_(0, row, values)[row].clamp(min=torch.finfo(values.dtype).tiny)
