"""Prefix beam search: the best labels of an utterance over all their CTC paths, frame by frame.

Graves et al. 2006, section 3.2, in the form of Hannun et al. 2014 (arXiv:1408.2873). For each beginning l there are the
log probabilities b and n of all paths that say l and end in a blank, or in its last label; at first b = 0 for the empty
one. A frame at which the class c has log probability p adds, in the sense of logaddexp ``(+)``::

    blank               b'(l)  += p + (b(l) (+) n(l))
    the last label of l n'(l)  += p + n(l)              and     n'(l c) += p + b(l)
    any other label     n'(l c) += p + (b(l) (+) n(l))

The W beginnings with the greatest (b' (+) n') + alpha log p_LM(l) + beta |l| stay; among equals (up to rounding) those
first in the order of their labels. A language model takes part in every such choice, not in the last alone. What has
left the beam is forgotten. With W large enough the scores are the exact posteriors.

All beginnings of all utterances take a frame at once, on the CPU and in float64, wherever the log-probabilities are:
the tensors are small, and which beginnings are the same is kept in a dictionary.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.ops.ctc_trellis import check_frames
from regard.ops.ranking import best_places, in_order

__all__ = ["LanguageModel", "Prefix", "PrefixSearch"]


class LanguageModel(Protocol):
    """What knows which labels follow which; :mod:`regard.models.language_models` has two."""

    def score(self, prefixes: Sequence[tuple[int, ...]]) -> Float[Tensor, "R F"]:
        """log p of each label after each beginning and, last, of the end; the column of the blank is not read."""
        ...


class Prefix(NamedTuple):
    """Labels that a search has found.

    Attributes:
        labels: without blanks.
        score: log_ctc + alpha log_language + beta times the number of labels.
        log_ctc: log p of all paths of the labels that stayed in the beam.
        log_blank, log_nonblank: its parts, of paths that end in a blank, or in the last label.
        log_language: log p of the labels, and of the end where the search was to count it; 0 without a model.
    """

    labels: tuple[int, ...]
    score: float
    log_ctc: float
    log_blank: float
    log_nonblank: float
    log_language: float


class _Beam(NamedTuple):
    """W beginnings of each utterance, in no order; where there are fewer, b = n = -inf and the node is -1."""

    node: Int[Tensor, "B W"]
    parent: Int[Tensor, "B W"]
    last: Int[Tensor, "B W"]
    blank: Float[Tensor, "B W"]
    nonblank: Float[Tensor, "B W"]
    length: Float[Tensor, "B W"]
    language: Float[Tensor, "B W"]
    following: Float[Tensor, "B W F"]


class _Candidates(NamedTuple):
    """What a frame makes of a beam: those that stay, and those with a label more, K of each."""

    blank: Float[Tensor, "B W"]
    nonblank: Float[Tensor, "B N"]
    score: Float[Tensor, "B N"]


class _Prefixes:
    """All beginnings that were ever in a beam, numbered: 0 is the empty one. The same labels have the same number."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[int, int], int] = {}
        self.steps: list[tuple[int, int]] = [(-3, -1)]

    def child(self, node: int, label: int) -> int:
        """The number of a beginning with one label more."""
        step = (node, label)
        if step not in self.numbers:
            self.numbers[step] = len(self.steps)
            self.steps.append(step)
        return self.numbers[step]

    def labels(self, node: int) -> tuple[int, ...]:
        """What it says."""
        found: list[int] = []
        while node > 0:
            node, label = self.steps[node]
            found.append(label)
        return tuple(found[::-1])


class PrefixSearch:
    """A search whose frames come bit by bit; results can be asked for at any time.

    Args:
        batch: the number of utterances.
        num_classes: C.
        beams, blank, topk, floor, language_model, alpha, beta: as of :func:`regard.ops.ctc_search.prefix_beam_search`.

    Raises:
        ValueError: numbers that mean nothing.

    Example:
        >>> search = PrefixSearch(1, 2, beams=4)
        >>> log_probs = torch.tensor([[[0.6, 0.4]]]).log()
        >>> for _ in range(2):
        ...     search.read(log_probs)
        ...     print(search.results()[0][0].labels)
        ()
        (1,)
    """

    def __init__(
        self,
        batch: int,
        num_classes: int,
        *,
        beams: int = 8,
        blank: int = 0,
        topk: int | None = None,
        floor: float | None = None,
        language_model: LanguageModel | None = None,
        alpha: float = 0.0,
        beta: float = 0.0,
    ) -> None:
        if beams < 1 or (topk is not None and topk < 1) or not 0 <= blank < num_classes:
            raise ValueError(
                f"beams={beams}, topk={topk}, blank={blank} of {num_classes} classes: 1 at least, or a class"
            )
        if alpha and language_model is None:
            raise ValueError(f"alpha={alpha} weighs a language model: pass one, or leave alpha at 0")
        self.num_classes, self.beams, self.blank = num_classes, beams, blank
        self.topk, self.floor, self.alpha, self.beta = topk, floor, alpha, beta
        self.language_model = language_model if alpha else None
        self._prefixes = _Prefixes()
        number = torch.full((batch, beams), -1)
        number[:, 0] = 0
        nothing = torch.full((batch, beams), -math.inf, dtype=torch.float64)
        first = torch.where(number == 0, 0.0, nothing)
        zero = torch.zeros_like(first)
        following = nothing.new_zeros(batch, beams, num_classes + 1 if self.language_model else 0)
        if self.language_model:
            following[:, 0] = self._ask([()])
        self._beam = _Beam(number, number - 3, number.clamp(max=-1), first, nothing, zero, zero, following)

    @torch.no_grad()
    def read(self, log_probs: Float[Tensor, "B T C"], *, frame_mask: Bool[Tensor, "B T"] | None = None) -> None:
        """Take the next frames."""
        check_frames(log_probs, frame_mask, self.blank)
        batch = self._beam.node.shape[0]
        if (log_probs.shape[0], log_probs.shape[2]) != (batch, self.num_classes):
            raise ValueError(
                f"log_probs have shape {tuple(log_probs.shape)}, but the search was begun for {batch} utterances and "
                f"{self.num_classes} classes"
            )
        log_probs = log_probs.transpose(0, 1).to("cpu", torch.float64)
        labels, tried = self._tried(log_probs)
        mask = None if frame_mask is None else frame_mask.mT.cpu()
        for frame, scores in enumerate(tried):
            real = None if mask is None else mask[frame]
            if real is None or real.any():
                self._take(scores, log_probs[frame, :, self.blank], labels[frame], real)

    def results(self, *, finish: bool = True) -> list[list[Prefix]]:
        """What has been found so far, the best first.

        Args:
            finish: add alpha log p of the language model that nothing follows.
        """
        beam = self._beam
        language = beam.language
        if finish and self.language_model:
            language = language + beam.following[..., -1]
        ctc = torch.logaddexp(beam.blank, beam.nonblank)
        score = ctc + self._bonus(language, beam.length)
        columns = (beam.node, score, ctc, beam.blank, beam.nonblank, language)
        found: list[list[Prefix]] = []
        for rows in zip(*(column.tolist() for column in columns), strict=True):
            some = [
                Prefix(self._prefixes.labels(node), *values)
                for node, *values in zip(*rows, strict=True)
                if node >= 0 and values[0] > -math.inf
            ]
            found.append(in_order(some))
        return found

    def _tried(self, log_probs: Float[Tensor, "T B C"]) -> tuple[Int[Tensor, "T B K"], Float[Tensor, "T B C"]]:
        """The labels that are tried at each frame, and the scores of all classes, -inf where they are not tried."""
        tried, count = log_probs, self.num_classes
        if self.floor is not None:
            tried = tried.masked_fill(tried < self.floor, -math.inf)
        if self.topk is not None and self.topk < count:
            count = self.topk
            order = log_probs.argsort(dim=-1, descending=True, stable=True)[..., :count]
            kept = torch.zeros_like(log_probs, dtype=torch.bool).scatter_(-1, order, True)
            tried = tried.masked_fill(~kept, -math.inf)
            return order, tried
        labels = torch.arange(self.num_classes)
        return labels.expand(*log_probs.shape[:2], -1), tried

    def _take(self, scores: Tensor, silence: Tensor, labels: Tensor, real: Tensor | None) -> None:
        """One frame: all candidates, the best of them, and these as the next beam."""
        beam = self._beam
        candidates = self._candidates(scores, silence, labels, real)
        width, count = beam.node.shape[1], labels.shape[1]
        best, place = best_places(candidates.score, width, lambda row, place: self._said(row, place, labels))
        stays = place < width
        source = torch.where(stays, place, (place - width) // count)
        label = labels.gather(1, (place - width).clamp(min=0) % count)
        alive = best > -math.inf

        def of_source(tensor: Tensor) -> Tensor:
            return tensor.gather(1, source)

        node, language = of_source(beam.node), of_source(beam.language)
        grown = ~stays & alive
        rows = beam.following
        if self.language_model:
            rows = rows.take_along_dim(source[..., None], 1)
            language = torch.where(grown, language + rows.gather(2, label[..., None])[..., 0], language)
        parent, last = torch.where(stays, of_source(beam.parent), node), torch.where(stays, of_source(beam.last), label)
        steps = zip(node[grown].tolist(), label[grown].tolist(), strict=True)
        new = [self._prefixes.child(*step) for step in steps]
        node = node.masked_scatter(grown, torch.tensor(new, dtype=node.dtype)).masked_fill(~alive, -1)
        if self.language_model and new:
            rows = rows.masked_scatter(grown[..., None], self._ask([self._prefixes.labels(number) for number in new]))
        self._beam = _Beam(
            node,
            parent.masked_fill(~alive, -4),
            last.masked_fill(~alive, -1),
            torch.where(stays & alive, candidates.blank.gather(1, source), -math.inf),
            candidates.nonblank.gather(1, place).masked_fill(~alive, -math.inf),
            of_source(beam.length) + grown,
            language,
            rows,
        )

    def _candidates(self, scores: Tensor, silence: Tensor, labels: Tensor, real: Tensor | None) -> _Candidates:
        """b' and n' of every beginning that stays, and n' with each label more."""
        beam = self._beam
        either = torch.logaddexp(beam.blank, beam.nonblank)
        again = scores.gather(1, beam.last.clamp(min=0)).masked_fill(beam.last < 0, -math.inf)
        blank, nonblank = either + silence[:, None], beam.nonblank + again
        grown = torch.where(labels[:, None] == beam.last[..., None], beam.blank[..., None], either[..., None])
        grown = grown + scores.gather(1, labels).masked_fill(labels == self.blank, -math.inf)[:, None]

        # A beginning whose parent is in the beam gets that parent's share too, which then is no candidate of its own.
        family = beam.parent[..., None] == beam.node[:, None]
        known, at = family.any(-1), family.to(torch.uint8).argmax(-1)
        repeats = beam.last.gather(1, at) == beam.last
        share = torch.where(repeats, beam.blank.gather(1, at), either.gather(1, at)) + again
        nonblank = torch.where(known, torch.logaddexp(nonblank, share), nonblank)
        row, child = known.nonzero(as_tuple=True)
        taken = torch.zeros(*family.shape[:2], self.num_classes, dtype=torch.bool)
        taken[row, at[row, child], beam.last[row, child]] = True
        grown = grown.masked_fill(taken.take_along_dim(labels[:, None], 2), -math.inf)
        if real is not None:
            blank, nonblank = (
                torch.where(real[:, None], new, old) for new, old in ((blank, beam.blank), (nonblank, beam.nonblank))
            )
            grown = grown.masked_fill(~real[:, None, None], -math.inf)

        bonus = self._bonus(beam.language, beam.length)
        more = bonus[..., None] + self.beta
        if self.language_model:
            more = more + self.alpha * beam.following.take_along_dim(labels[:, None], 2)
        score = torch.cat((torch.logaddexp(blank, nonblank) + bonus, (grown + more).flatten(1)), 1)
        return _Candidates(blank, torch.cat((nonblank, grown.flatten(1)), 1), score)

    def _bonus(self, language: Tensor, length: Tensor) -> Tensor:
        """What is added to log p of the paths."""
        return (self.alpha * language if self.language_model else 0.0) + self.beta * length

    def _said(self, number: int, place: int, labels: Int[Tensor, "B K"]) -> tuple[int, ...]:
        """The labels of a candidate."""
        width, count = self._beam.node.shape[1], labels.shape[1]
        if place < width:
            return self._prefixes.labels(int(self._beam.node[number, place]))
        source, label = divmod(place - width, count)
        return (*self._prefixes.labels(int(self._beam.node[number, source])), int(labels[number, label]))

    def _ask(self, prefixes: Sequence[tuple[int, ...]]) -> Float[Tensor, "R F"]:
        """What the language model says of them."""
        assert self.language_model
        found = self.language_model.score(prefixes).to("cpu", torch.float64)
        if found.shape != (len(prefixes), self.num_classes + 1):
            raise ValueError(
                f"the language model scored {len(prefixes)} beginnings as {tuple(found.shape)}: a row for each, with "
                f"{self.num_classes} labels and the end"
            )
        return found
