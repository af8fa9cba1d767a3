"""What a head does: how sure it is, and whether it looks at a place, along an arc of the syntax, or at rare words.

Voita et al. 2019, arXiv:1905.09418, section 5. All of it is counted from the key j_i that each word i looks at most::

    confidence           mean_i max_j A_ij
    offset share         share of words with j_i = i + o: a head is positional where one offset o reaches 90 %
    syntactic accuracy   share of the arcs of a relation whose one end looks at the other
      baseline           share of the most frequent offset among the same arcs: syntactic where 10 points above it
    rare words           share of words that look at the least frequent word of their sentence, or at one of the two

What is no word (padding, end of sentence) is left out as a query and as a key; weights are not divided by what is left.
Shares are over all words, or arcs, of all sentences. Maps are large and these numbers need only two of them for each
word: :func:`strongest` takes them, sentence by sentence if need be, and the rest is counted over whole data sets.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = [
    "arc_baseline",
    "confidence",
    "offset_shares",
    "positional",
    "rare_shares",
    "strongest",
    "syntactic",
    "syntactic_accuracy",
    "words_of",
]


def words_of(length: Int[Tensor, " B"], size: int, *, end: bool = True) -> Bool[Tensor, "B N"]:
    """True for the words of sentences that start at place 0.

    Args:
        length: tokens of each sentence.
        size: N, the places.
        end: the last token is an end of sentence, which is no word.

    Example:
        >>> words_of(torch.tensor([3, 1]), 4).int().tolist()
        [[1, 1, 0, 0], [0, 0, 0, 0]]
    """
    return torch.arange(size, device=length.device) < (length - int(end))[:, None]


def strongest(
    attention: Float[Tensor, "B H N N"], words: Bool[Tensor, "B N"]
) -> tuple[Float[Tensor, "B H N"], Int[Tensor, "B H N"]]:
    """The largest weight of each word's row and its place; among equals the first.

    Args:
        attention: the weights of queries over keys.
        words: what counts, as a query and as a key.

    Returns:
        The weights, 0 for what is no word, and the places, -1 for what is no word or looks at none.

    Example:
        >>> maps = torch.tensor([[[[0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.0, 0.0, 1.0]]]])
        >>> strongest(maps, torch.tensor([[True, True, False]]))[1].tolist()
        [[[1, 0, -1]]]
    """
    if attention.shape[-1] == 0:
        return attention.new_zeros(attention.shape[:-1]), words[:, None].expand(attention.shape[:-1]).long()
    weight, place = attention.masked_fill(~words[:, None, None], 0.0).max(-1)
    looks = words[:, None] & (weight > 0)
    return weight.masked_fill(~looks, 0.0), place.masked_fill(~looks, -1)


def confidence(weight: Float[Tensor, "B H N"], words: Bool[Tensor, "B N"]) -> Float[Tensor, " H"]:
    """The mean largest weight of all words; 0 where there is no word.

    Args:
        weight: from :func:`strongest`.
        words: what counts.

    Example:
        >>> confidence(torch.tensor([[[0.7, 0.5, 0.0]]]), torch.tensor([[True, True, False]])).tolist()
        [0.6000000238418579]
    """
    return weight.sum((0, 2)) / words.sum().clamp(min=1)


def offset_shares(
    place: Int[Tensor, "B H N"], words: Bool[Tensor, "B N"], offsets: Int[Tensor, " O"]
) -> Float[Tensor, "H O"]:
    """The share of words i that look at i + o; words without such a neighbour count as misses.

    Args:
        place: from :func:`strongest`.
        words: what counts.
        offsets: o, e.g. -1 and 1.

    Example:
        >>> offset_shares(torch.tensor([[[1, 2, 1]]]), torch.ones(1, 3).bool(), torch.tensor([-1, 1])).tolist()
        [[0.3333333432674408, 0.6666666865348816]]
    """
    aim = torch.arange(place.shape[-1], device=place.device) + offsets[:, None]
    hit = (place[:, :, None] == aim) & (place >= 0)[:, :, None]
    return hit.sum((0, 3)) / words.sum().clamp(min=1)


def positional(shares: Float[Tensor, "H O"], threshold: float = 0.9) -> Bool[Tensor, " H"]:
    """Heads of which one offset takes at least ``threshold`` of all words.

    Example:
        >>> positional(torch.tensor([[0.02, 0.95], [0.6, 0.4]])).tolist()
        [True, False]
    """
    return (shares >= threshold).any(-1)


def syntactic_accuracy(
    place: Int[Tensor, "B H N"],
    words: Bool[Tensor, "B N"],
    head_of: Int[Tensor, "B N"],
    relation: Int[Tensor, "B N"],
    relations: int,
) -> Float[Tensor, "R 2 H"]:
    """The share of each relation's arcs whose one end looks at the other; 0 for a relation without arcs.

    Args:
        place: from :func:`strongest`.
        words: what counts; an arc needs both of its ends.
        head_of: the place of each word's syntactic head, -1 where it has none.
        relation: the number of the arc from each word to its head; what is no number below ``relations`` is left out.
        relations: R.

    Returns:
        First how often the dependent looks at its head, then how often the head looks at its dependent.

    Example:
        >>> place, words = torch.tensor([[[1, 0, 1]]]), torch.ones(1, 3).bool()
        >>> syntactic_accuracy(place, words, torch.tensor([[1, -1, 1]]), torch.zeros(1, 3).long(), 1).tolist()
        [[[1.0], [0.5]]]
    """
    arcs, head = _arcs(words, head_of, relation, relations)
    here = torch.arange(place.shape[-1], device=place.device)
    up = place == head[:, None]
    down = place.gather(2, head[:, None].expand_as(place)) == here
    hits = torch.stack([up, down])[:, :, :, None] & arcs[:, None]  # (2, B, H, R, N)
    return (hits.sum((1, 4)) / arcs.sum((0, 2)).clamp(min=1)).permute(2, 0, 1)


def arc_baseline(
    words: Bool[Tensor, "B N"], head_of: Int[Tensor, "B N"], relation: Int[Tensor, "B N"], relations: int
) -> Float[Tensor, "R 2"]:
    """The share of the most frequent offset among each relation's arcs: what a head that looks there would reach.

    Args:
        words, head_of, relation, relations: as in :func:`syntactic_accuracy`.

    Returns:
        The same for both directions, as an arc's two offsets differ by their sign only.

    Example:
        >>> words = torch.ones(1, 4).bool()
        >>> arc_baseline(words, torch.tensor([[1, 2, -1, 0]]), torch.zeros(1, 4).long(), 1).tolist()
        [[0.6666666865348816, 0.6666666865348816]]
    """
    arcs, head = _arcs(words, head_of, relation, relations)
    n = head.shape[-1]
    offset = head - torch.arange(n, device=head.device) + n  # 1 .. 2 N - 1
    counts = torch.zeros(relations, 2 * n + 1, device=head.device, dtype=torch.long)
    counts.scatter_add_(
        1, offset[:, None].expand(arcs.shape).transpose(0, 1).flatten(1), arcs.transpose(0, 1).flatten(1).long()
    )
    share = counts.amax(-1) / arcs.sum((0, 2)).clamp(min=1)
    return share[:, None].expand(-1, 2)


def _arcs(
    words: Bool[Tensor, "B N"], head_of: Int[Tensor, "B N"], relation: Int[Tensor, "B N"], relations: int
) -> tuple[Bool[Tensor, "B R N"], Int[Tensor, "B N"]]:
    """Which words depend on a head by which relation, and the place of that head (0 where there is none)."""
    n = words.shape[-1]
    head = head_of.clamp(0, max(0, n - 1))
    whole = words & (head_of >= 0) & (head_of < n) & words.gather(1, head)
    kinds = torch.arange(relations, device=relation.device)[:, None]
    return whole[:, None] & (relation[:, None] == kinds), head


def syntactic(
    accuracy: Float[Tensor, "R 2 H"], baseline: Float[Tensor, "R 2"], margin: float = 0.1
) -> Bool[Tensor, "R 2 H"]:
    """Heads that follow a relation at least ``margin`` more often than its most frequent offset would.

    Example:
        >>> syntactic(torch.tensor([[[0.5, 0.3]] * 2]), torch.tensor([[0.25, 0.25]])).tolist()
        [[[True, False], [True, False]]]
    """
    return accuracy - baseline[..., None] >= margin


def rare_shares(
    place: Int[Tensor, "B H N"], words: Bool[Tensor, "B N"], rank: Int[Tensor, "B N"], common: int = 500
) -> Float[Tensor, "2 H"]:
    """The shares of words that look at the rarest word of their sentence, and at one of the two rarest.

    Args:
        place: from :func:`strongest`.
        words: what counts.
        rank: of each word by its frequency, 1 for the most frequent; the higher, the rarer.
        common: sentences whose rarest word is no rarer than this are left out.

    Example:
        >>> words, rank = torch.ones(1, 3).bool(), torch.tensor([[4, 700, 9]])
        >>> rare_shares(torch.tensor([[[1, 1, 2]]]), words, rank).tolist()
        [[0.6666666865348816], [1.0]]
    """
    ranks = rank.masked_fill(~words, -1)
    if ranks.shape[-1] < 2:
        ranks = F.pad(ranks, (0, 2 - ranks.shape[-1]), value=-1)
    rarest = ranks.topk(2).values  # (B, 2)
    counted = words & (rarest[:, :1] > common)
    seen = ranks[:, None].expand(-1, place.shape[1], -1).gather(2, place.clamp(min=0))
    hits = (seen >= rarest.T[:, :, None, None]) & counted[:, None] & (place >= 0)
    return hits.sum((1, 3)) / counted.sum().clamp(min=1)
