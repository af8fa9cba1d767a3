"""A binary tree of spans over a sequence, and which of its nodes a token reads (BP-Transformer, arXiv:1911.04070).

Level 0 holds the n tokens, level j the ceil(n / 2^j) spans of 2^j tokens, up to the root; nodes are numbered level by
level. A token walks away from itself: on each level in turn it reads ``step`` nodes that follow those read so far, the
first of them only by half, by a node of the level below, where half of its span was read already. So about
step log2(n / step) nodes cover the text on one side of the token, every other token exactly once.

On level j to the left, with g = floor((i - 1 + step) / 2^j), token i reads the nodes g - step - a for 0 <= a < step,
without the first of them if the half before it was read instead, and one more, a = step, if that is the half for level
j + 1. To the right it is the mirror image, with g = floor((i + 1 - step) / 2^j) and the nodes g + step + a.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def level_sizes(n: int) -> list[int]:
    """How many nodes there are on each level, from n tokens to the root.

    Example:
        >>> level_sizes(5)
        [5, 3, 2, 1]
    """
    sizes = [n]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return sizes


def span_sums(x: Float[Tensor, "*B N D"]) -> Float[Tensor, "*B V D"]:
    """The sum over the tokens of every node.

    Example:
        >>> span_sums(torch.ones(5, 1)).flatten().tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 1.0, 4.0, 1.0, 5.0]
    """
    levels = [x]
    while (size := levels[-1].shape[-2]) > 1:
        below = F.pad(levels[-1], (0, 0, 0, size % 2))
        levels.append(below[..., ::2, :] + below[..., 1::2, :])
    return torch.cat(levels, -2)


def spread(x: Float[Tensor, "*B V D"], n: int) -> Float[Tensor, "*B N D"]:
    """What :func:`span_sums` does to gradients: every token gets the sum over the nodes that it is part of.

    Example:
        >>> spread(torch.tensor([[1.0], [2.0], [3.0], [10.0], [20.0], [100.0]]), 3).flatten().tolist()
        [111.0, 112.0, 123.0]
    """
    *levels, total = x.split(level_sizes(n), -2)
    for level in reversed(levels):
        total = level + total.repeat_interleave(2, -2)[..., : level.shape[-2], :]
    return total


def span_counts(mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B V"]:
    """The number of real tokens of every node."""
    return span_sums(mask.float()[..., None])[..., 0]


def span_means(
    x: Float[Tensor, "B H N D"], mask: Bool[Tensor, "B N"] | None = None
) -> tuple[Float[Tensor, "B H V D"], Bool[Tensor, "#B V"]]:
    """The mean over the real tokens of every node, and which nodes have any; one row for all without a mask.

    Example:
        >>> means, real = span_means(torch.arange(3.0).view(1, 1, 3, 1), torch.tensor([[True, True, False]]))
        >>> means.flatten().tolist(), real.tolist()
        ([0.0, 1.0, 0.0, 0.5, 0.0, 0.5], [[True, True, False, True, False, True]])
    """
    if mask is None:
        mask = torch.ones(1, x.shape[2], dtype=torch.bool, device=x.device)
    counts = span_counts(mask)
    x = span_sums(x.masked_fill(~mask[:, None, :, None], 0.0))
    return x / counts.to(x.dtype).clamp(min=1)[:, None, :, None], counts > 0


def slots(
    i: Int[Tensor, "*#S"], node: Int[Tensor, "*#S"], level: int, step: int, ahead: bool
) -> tuple[Int[Tensor, "*S"], Bool[Tensor, "*S"]]:
    """How many nodes of a level away token i reads another one, and whether it does; see the head of this file.

    Args:
        i: tokens.
        node: nodes of the level, counted from its first one; they broadcast with the tokens.
        level: j.
        step: nodes that are read on a level.
        ahead: to the right of the token, else to the left.

    Returns:
        1 + a, where 0 is the token itself (on level 0, to the left), and whether the node is read.

    Example:
        >>> slots(torch.tensor(6), torch.arange(7), 0, 2, False)[1].int().tolist()
        [0, 0, 0, 0, 1, 1, 1]
        >>> slots(torch.tensor(6), torch.arange(4), 1, 2, False)[1].int().tolist()
        [1, 1, 0, 0]
    """
    edge = i + 1 - step if ahead else i - 1 + step
    group = edge >> level
    away = node - group - step if ahead else group - step - node
    odd = 1 if ahead else 0  # the parity of a group that leaves half a span over
    seen = ((away >= 0) & (away < step)) | ((away == step) & (group % 2 == odd))
    if level:
        seen = seen & ~((away == 0) & ((edge >> (level - 1)) % 2 == odd))
    elif not ahead:
        seen = seen | (away == -1)
    return away + 1, seen


def labels_of(level: int, step: int, clip: int, ahead: bool) -> list[int]:
    """The row of the table of relative positions for each slot: that of the token itself, of each a, of the half.

    There are (2 step + 1)(clip + 1) rows. The half counts as the first node of the level for which it was read.

    Example:
        >>> labels_of(0, 2, 3, False), labels_of(9, 2, 3, True)
        ([0, 1, 3, 6], [0, 17, 19, 17])
    """
    here, above = ((2 * step + 1) * min(j, clip) + 1 + ahead for j in (level, level + 1))
    return [0, *(here + 2 * a for a in range(step)), above]


class Look(NamedTuple):
    """One look of all tokens at one level, to one side: blocks of T tokens, each with W nodes in sight.

    Attributes:
        nodes: where that level begins and ends among all nodes.
        block: T.
        stride: how many nodes further the next block looks.
        start: the first node in sight of the first block, counted from the first of the level; may be negative.
        labels: the row of the table for each slot.
        slot: (T, W), the slot of each node in sight.
        seen: (..., T, W), whether it is read.
    """

    nodes: tuple[int, int]
    block: int
    stride: int
    start: int
    labels: Int[Tensor, " slots"]
    slot: Int[Tensor, "T W"]
    seen: Bool[Tensor, "... T W"]

    def blocks(self, t: Float[Tensor, "B H N D"]) -> Float[Tensor, "B H blocks T D"]:
        """The tokens in blocks, zeros behind the last."""
        return F.pad(t, (0, 0, 0, -t.shape[2] % self.block)).unflatten(2, (-1, self.block))

    def windows(self, nodes: Float[Tensor, "B H V D"], blocks: int) -> Float[Tensor, "B H blocks W D"]:
        """The nodes in sight of each block, zeros where there are none."""
        first, last = self.nodes
        width = self.slot.shape[1]
        behind = (blocks - 1) * self.stride + self.start + width - (last - first)
        return F.pad(nodes[:, :, first:last], (0, 0, -self.start, behind)).unfold(2, width, self.stride).mT

    def add_windows(self, windows: Float[Tensor, "B H blocks W D"], total: Float[Tensor, "B H V D"]) -> None:
        """Add what belongs to the nodes in sight to that of all nodes, in place."""
        (first, last), (blocks, width) = self.nodes, windows.shape[2:4]
        lanes = -(-width // self.stride)  # as many windows overlap
        room = windows.new_zeros(*windows.shape[:2], blocks + lanes, self.stride, windows.shape[-1])
        for lane in range(lanes):
            part = windows[:, :, :, lane * self.stride : (lane + 1) * self.stride]
            room[:, :, lane : lane + blocks, : part.shape[3]].add_(part)
        room = room.flatten(2, 3)
        size = room.shape[2]
        total[:, :, first:last].add_(F.pad(room, (0, 0, self.start, last - first - self.start - size)))

    def scores(self, q: Tensor, nodes: Tensor, real: Tensor, table: Tensor | None) -> Tensor:
        """q . (k + a) where a real node is read, else -inf: (B, H, blocks, T, W) from q (B, H, blocks, T, D)."""
        scores = q @ self.windows(nodes, q.shape[2]).mT
        if table is not None:
            scores.add_((q @ table[self.labels].mT).gather(-1, self._index(scores)))
        there = self.windows(real.to(q.dtype)[:, None, :, None], q.shape[2])[..., None, :, 0] > 0
        return scores.masked_fill_(~(there & self.seen), -torch.inf)

    def label_slopes(self, slopes: Float[Tensor, "B H blocks T W"]) -> Float[Tensor, "B H blocks T slots"]:
        """The slopes of scores by slot."""
        found = slopes.new_zeros(*slopes.shape[:-1], len(self.labels))
        return found.scatter_add_(-1, self._index(slopes), slopes)

    def _index(self, scores: Tensor) -> Tensor:
        return self.slot.clamp(0, len(self.labels) - 1).expand_as(scores)


def looks(n: int, step: int, clip: int, causal: bool, device: torch.device) -> list[Look]:
    """All that n tokens look at, level by level, to one side or both; what is read is read once."""
    found: list[Look] = []
    first = 0
    for level, size in enumerate(level_sizes(n)):
        for ahead in (False,) if causal else (False, True):
            # the last token looks furthest back, the first one furthest ahead
            nearest = ((1 - step) >> level) + step if ahead else ((n - 2 + step) >> level) - step
            if nearest < size if ahead else nearest >= 0 or level == 0:
                found.append(_look(n, level, (first, first + size), step, clip, ahead, device))
        first += size
    return found


def _look(n: int, level: int, nodes: tuple[int, int], step: int, clip: int, ahead: bool, device: torch.device) -> Look:
    # blocks of an even number of spans see the same picture, whichever block it is
    block = min(n, max(2 << level, 1 << (max(step, 16) - 1).bit_length()))
    if ahead:
        low, high = ((1 - step) >> level) + step, ((block - step) >> level) + 2 * step
    else:
        low, high = ((step - 1) >> level) - 2 * step, ((block - 2 + step) >> level) - step + (level == 0)
    node = torch.arange(low, high + 1, device=device)
    slot, seen = slots(torch.arange(block, device=device)[:, None], node, level, step, ahead)
    labels = torch.tensor(labels_of(level, step, clip, ahead), device=device)
    return Look(nodes, block, max(1, block >> level), low, labels, slot, seen)


def strays(n: int, lengths: Int[Tensor, " B"], step: int, clip: int) -> list[Look]:
    """What the authors' graph builder adds where a text ends inside a span, by mistake.

    A token that has come to the end and would read a second half which does not exist reads the first node of the level
    instead, once more if it has read it already.

    Args:
        n: tokens, the longest text among ``lengths``.
        lengths: of each text; its tokens come first.
        step, clip: as ever.
    """
    found: list[Look] = []
    i, ends = torch.arange(n, device=lengths.device), lengths[:, None, None, None]
    first = n
    for level, size in list(enumerate(level_sizes(n)))[1:]:
        edge = (i + 1 - step) >> (level - 1)  # the half would be node edge + 2 step of the level below
        half = (edge % 2 == 1) & (edge + 2 * step >= (ends + (1 << (level - 1)) - 1) >> (level - 1))
        seen = half & ((edge >> 1) + step < (ends + (1 << level) - 1) >> level)
        slot = torch.ones(n, 1, dtype=torch.long, device=i.device)
        labels = torch.tensor(labels_of(level, step, clip, True), device=i.device)
        found.append(Look((first, first + 1), n, 1, 0, labels, slot, seen[..., None]))
        first += size
    return found
