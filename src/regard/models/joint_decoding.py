"""Joint decoding: a search, label by label, that asks an attention decoder and CTC.

Watanabe et al. 2017, "Hybrid CTC/Attention Architecture for End-to-End Speech Recognition", section III.D::

    score(g) = lambda log psi(g) + (1 - lambda) log p_att(g) + gamma log p_LM(g) + bonus |g|

psi(g) is the probability of all label sequences that begin with g (:mod:`regard.ops.ctc_prefix_score`); for what has
ended, CTC's probability of exactly g takes its place. CTC keeps the decoder from skipping and repeating what was said.
"""

import math
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.memory import reorder
from regard.ops.ctc_prefix_score import CTCPrefixScorer
from regard.ops.ctc_prefix_search import LanguageModel
from regard.ops.ranking import best_places, in_order

__all__ = ["JointHypothesis", "joint_search"]


class Decoder(Protocol):
    """A decoder that goes on from a memory: :class:`regard.models.translating.Translator` and others."""

    def step(self, tokens: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """Logits (R, V) of the token after the next tokens (R,), and the new memory, the batch first."""
        ...


class JointHypothesis(NamedTuple):
    """What a joint search has found.

    Attributes:
        labels: without start and end.
        score: the weighted sum of the others, and the bonus for each label.
        log_ctc: log p that CTC gives to exactly these labels.
        log_attention: log p of the decoder, of the labels and the end.
        log_language: that of the language model; 0 without one.
    """

    labels: tuple[int, ...]
    score: float
    log_ctc: float
    log_attention: float
    log_language: float


@torch.no_grad()
def joint_search(
    model: Decoder,
    memory: Any,
    log_probs: Float[Tensor, "B T C"],
    *,
    frame_mask: Bool[Tensor, "B T"] | None = None,
    start: int,
    end: int,
    blank: int = 0,
    beams: int = 8,
    ctc_weight: float = 0.3,
    language_model: LanguageModel | None = None,
    language_weight: float = 0.0,
    length_bonus: float = 0.0,
    max_length: int | None = None,
    preselect: float | None = 1.5,
    best: int | None = None,
) -> list[list[JointHypothesis]]:
    """Search label by label: each beginning ends, or goes on with every label; the W best go on.

    What has ended takes no place in the beam. The search stops when nothing that is open can come among the best, since
    all scores but the bonus only fall.

    Args:
        model: the decoder, in evaluation mode.
        memory: what it knows of the B utterances, tensors in tuples, the batch first; its ``begin`` returns it.
        log_probs: CTC's log-probabilities. Its classes and the decoder's tokens have the same numbers.
        frame_mask: True for real frames.
        start, end: the decoder's tokens around the labels.
        blank: the class that is no label.
        beams: W.
        ctc_weight: lambda; 1: CTC alone, 0: the decoder alone.
        language_model, language_weight: what knows which labels follow which, and gamma.
        length_bonus: for each label.
        max_length: the most outputs, the end among them; None: one more than frames.
        preselect: CTC scores that many times W labels of each beginning, those that the decoder finds likeliest; None:
            all.
        best: how many hypotheses of each utterance are returned; None: W.

    Returns:
        For each utterance those that came to their end, the best first.

    Raises:
        ValueError, TypeError: shapes, masks or numbers that do not fit.

    Example:
        >>> from regard.models.location_decoder import LocationDecoder
        >>> decoder = LocationDecoder(6, 8, dim=8, radius=2).eval()
        >>> frames, log_probs = torch.randn(2, 9, 8), torch.randn(2, 9, 5).log_softmax(-1)
        >>> found = joint_search(decoder, decoder.begin(frames), log_probs, start=5, end=5, beams=3)
        >>> len(found), len(found[0])
        (2, 3)
    """
    if beams < 1 or not 0 <= ctc_weight <= 1 or language_weight < 0 or (preselect is not None and preselect < 1):
        raise ValueError(
            f"beams={beams}, ctc_weight={ctc_weight}, language_weight={language_weight}, preselect={preselect}: a beam "
            "at least, a share from 0 to 1, no negative weight, and a label for each beam at least"
        )
    if language_weight and language_model is None:
        raise ValueError(f"language_weight={language_weight} weighs a language model: pass one, or leave it at 0")
    if (max_length is not None and max_length < 1) or (best is not None and best < 1):
        raise ValueError(f"max_length={max_length}, best={best}: 1 at least")
    search = _JointSearch(
        CTCPrefixScorer(log_probs, frame_mask, blank=blank),
        language_model if language_weight else None,
        weights=(ctc_weight, 1 - ctc_weight, language_weight, length_bonus),
        no_labels=(blank, start, end),
        end=end,
        beams=beams,
        candidates=None if preselect is None else math.ceil(preselect * beams),
        best=beams if best is None else best,
    )
    steps = log_probs.shape[1] + 1 if max_length is None else max_length
    return search.run(model, memory, start, steps)


class _Open(NamedTuple):
    """R = B W beginnings, of which some are none."""

    alive: Bool[Tensor, " R"]
    attention: Float[Tensor, " R"]
    language: Float[Tensor, " R"]
    ctc: Any
    labels: list[tuple[int, ...]]


class _JointSearch:
    """The loop of :func:`joint_search`."""

    def __init__(
        self,
        scorer: CTCPrefixScorer,
        language_model: LanguageModel | None,
        *,
        weights: tuple[float, float, float, float],
        no_labels: tuple[int, ...],
        end: int,
        beams: int,
        candidates: int | None,
        best: int,
    ) -> None:
        self.scorer, self.language_model, self.weights = scorer, language_model, weights
        self.end, self.beams, self.candidates, self.best = end, beams, candidates, best
        batch, _, classes = scorer.log_probs.shape
        some = [label for label in range(classes) if label not in no_labels]
        self.batch, self.labels = batch, torch.tensor(some, dtype=torch.long, device=scorer.log_probs.device)
        self.finished: list[list[JointHypothesis]] = [[] for _ in range(batch)]

    def run(self, model: Decoder, memory: Any, start: int, steps: int) -> list[list[JointHypothesis]]:
        """Up to so many outputs."""
        like = self.scorer.log_probs
        rows = torch.arange(self.batch, device=like.device).repeat_interleave(self.beams)
        memory, last = reorder(memory, rows), torch.full_like(rows, start)
        first = torch.arange(len(rows), device=like.device) % self.beams == 0
        nothing = like.new_zeros(len(rows))
        open_ = _Open(first, nothing, nothing, reorder(self.scorer.begin(), rows), [()] * len(rows))
        for step in range(steps):
            logits, memory = model.step(last, memory)
            if logits.shape[1] <= max([self.end, *self.labels[-1:].tolist()]):
                raise ValueError(f"a decoder of {logits.shape[1]} tokens lacks the end, {self.end}, or labels of CTC")
            likely = logits.to(torch.promote_types(logits.dtype, like.dtype)).log_softmax(-1)
            following = self._following(open_)
            self._end(open_, likely, following)
            if not len(self.labels):
                break
            open_, rows = self._grow(open_, likely, following, steps - step - 1)
            if not open_.alive.any():
                break
            last, memory = open_.ctc.last, reorder(memory, rows)
        return [in_order(some)[: self.best] for some in self.finished]

    def _following(self, open_: _Open) -> Float[Tensor, "R F"] | None:
        """What the language model expects after each beginning."""
        if self.language_model is None:
            return None
        return self.language_model.score(open_.labels).to(open_.attention)

    def _end(self, open_: _Open, likely: Tensor, following: Tensor | None) -> None:
        """Every open beginning as all that was said."""
        ctc, attention = self.scorer.whole(open_.ctc), open_.attention + likely[:, self.end]
        language = open_.language if following is None else open_.language + following[:, -1]
        lengths = attention.new_tensor([len(labels) for labels in open_.labels])
        score = self._sum(ctc, attention, language, lengths).masked_fill(~open_.alive, -math.inf)
        columns = (some.tolist() for some in (score, ctc, attention, language))
        for row, (labels, *values) in enumerate(zip(open_.labels, *columns, strict=True)):
            if values[0] > -math.inf:
                self.finished[row // self.beams].append(JointHypothesis(labels, *values))

    def _grow(
        self, open_: _Open, likely: Tensor, following: Tensor | None, left: int
    ) -> tuple[_Open, Int[Tensor, " R"]]:
        """The W best with a label more, and which beginnings these were."""
        labels = self.labels.expand(len(likely), -1)
        if self.candidates is not None and self.candidates < labels.shape[1]:
            places = likely[:, self.labels].topk(self.candidates, -1).indices.sort(-1).values
            labels = self.labels[places]
        ctc = self.scorer.score(open_.ctc, labels)
        attention = open_.attention[:, None] + likely.gather(1, labels)
        language = open_.language[:, None].expand_as(attention)
        if following is not None:
            language = language + following.gather(1, labels)
        lengths = attention.new_tensor([len(some) + 1 for some in open_.labels])[:, None]
        score = self._sum(ctc, attention, language, lengths).masked_fill(~open_.alive[:, None], -math.inf)
        count = labels.shape[1]

        def said(row: int, place: int) -> tuple[int, ...]:
            source, column = divmod(place, count)
            source += row * self.beams
            return (*open_.labels[source], int(labels[source, column]))

        best, places = best_places(score.view(self.batch, -1), self.beams, said)
        alive = (best > -math.inf) & ~self._settled(best, left)[:, None]
        rows = (torch.arange(self.batch, device=places.device)[:, None] * self.beams + places // count).flatten()
        columns = (places % count).flatten()
        label = labels[rows, columns]
        found = [(*open_.labels[row], new) for row, new in zip(rows.tolist(), label.tolist(), strict=True)]
        grown = _Open(
            alive.flatten(),
            attention[rows, columns],
            language[rows, columns],
            self.scorer.grow(reorder(open_.ctc, rows), label),
            found,
        )
        return grown, rows

    def _settled(self, best: Float[Tensor, "B W"], left: int) -> Bool[Tensor, " B"]:
        """Where nothing open can still come among the best that ended; more labels can only add their bonus."""
        bound = best.amax(1) + max(0.0, self.weights[3]) * left
        worst = [
            sorted((some.score for some in finished), reverse=True)[self.best - 1 : self.best] or [-math.inf]
            for finished in self.finished
        ]
        return bound < bound.new_tensor(worst)[:, 0]

    def _sum(self, ctc: Tensor, attention: Tensor, language: Tensor, length: Tensor) -> Tensor:
        """The score; what has no weight has no say, not even by -inf."""
        parts = zip(self.weights, (ctc, attention, language, length), strict=True)
        return torch.stack(torch.broadcast_tensors(*(weight * part for weight, part in parts if weight))).sum(0)
