"""Forced alignment: when each of the known labels was said, by the likeliest path through the CTC trellis.

Viterbi over :mod:`.ctc_trellis`, many utterances at once. Among equally likely paths that which stays rather than goes
one state on, and one rather than two, each time seen from its end; the last label wins against the blank after it. That
is the rule of torchaudio's ``forced_align``. A wildcard among the labels stands for any sounds, at no cost.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.ops.ctc_loss import infeasible
from regard.ops.ctc_trellis import Chain, both_ways, chain, check_frames, check_labels, emissions


class Span(NamedTuple):
    """Where one label was said.

    Attributes:
        place: its number among the labels of the utterance.
        label: its class.
        first, end: the frames first <= t < end; masked frames are counted too.
        probability: the mean of the label's probability over them.
    """

    place: int
    label: int
    first: int
    end: int
    probability: float


class Alignment(NamedTuple):
    """The likeliest path of each utterance.

    Attributes:
        states: blank, first label, blank, ..., last label, blank from 0 on: odd ones are labels; -1 at masked frames.
        labels: the class at each frame, the blank included; -1 at masked frames.
        frame_log_probs: log p of that class; 0 at masked frames and for wildcards.
        score: log p of the path.
    """

    states: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    frame_log_probs: Float[Tensor, "B T"]
    score: Float[Tensor, " B"]

    def spans(self) -> list[list[Span]]:
        """For each utterance the span of every label, in order."""
        probabilities = self.frame_log_probs.exp().tolist()
        return [_spans(*row) for row in zip(self.states.tolist(), self.labels.tolist(), probabilities, strict=True)]


@torch.no_grad()
def align(
    log_probs: Float[Tensor, "B T C"],
    labels: Int[Tensor, "B L"],
    *,
    frame_mask: Bool[Tensor, "B T"] | None = None,
    label_mask: Bool[Tensor, "B L"] | None = None,
    blank: int = 0,
    wildcard: int | None = None,
) -> Alignment:
    """The likeliest way to spread the labels over the frames.

    Time and memory O(B T L).

    Args:
        log_probs: log-probabilities of C classes at T frames.
        labels: what was said.
        frame_mask, label_mask: True for real frames and labels.
        blank: the class that is no label.
        wildcard: a number in ``labels``, perhaps -1, that stands for anything: its log-probability is 0 at each frame.

    Raises:
        ValueError, TypeError: shapes, labels or masks that do not fit, or an utterance that no path can say.

    Example:
        >>> log_probs = torch.tensor([[[0.1, 0.8, 0.1], [0.8, 0.1, 0.1], [0.1, 0.1, 0.8]]]).log()
        >>> [span[:4] for span in align(log_probs, torch.tensor([[1, 2]])).spans()[0]]
        [(0, 1, 0, 1), (1, 2, 2, 3)]
    """
    states, emitted, frames = _admit(log_probs, labels, frame_mask, label_mask, blank, wildcard)
    steps, last = _best(emitted, states.skips, frames)
    blank_score = last.gather(1, states.end[:, None])[:, 0]
    label_end = (states.end - 1).clamp(min=0)
    label_score = last.gather(1, label_end[:, None])[:, 0]
    state = torch.where(blank_score > label_score, states.end, label_end)
    score = torch.maximum(blank_score, label_score)
    if (score == -math.inf).any():
        number = int((score == -math.inf).nonzero()[0])
        raise ValueError(f"utterance {number}: every path that says its labels has probability 0")
    found = states.end.new_zeros(len(score), len(steps))
    for frame in range(len(steps) - 1, -1, -1):
        found[:, frame] = state
        state = state - steps[frame].gather(1, state[:, None])[:, 0]
    said = states.symbols.gather(1, found)
    spoken = emitted.transpose(0, 1).gather(2, found[..., None])[..., 0]
    if frame_mask is not None:
        found, said = found.masked_fill(~frame_mask, -1), said.masked_fill(~frame_mask, -1)
        spoken = spoken.masked_fill(~frame_mask, 0.0)
    return Alignment(found, said, spoken, score)


@torch.no_grad()
def occupancies(
    log_probs: Float[Tensor, "B T C"],
    labels: Int[Tensor, "B L"],
    *,
    frame_mask: Bool[Tensor, "B T"] | None = None,
    label_mask: Bool[Tensor, "B L"] | None = None,
    blank: int = 0,
    wildcard: int | None = None,
) -> Float[Tensor, "B T S"]:
    """The probability of each of the S = 2 L + 1 states at each frame, given the labels: all paths, not the best alone.

    Args:
        log_probs, labels, frame_mask, label_mask, blank, wildcard: as of :func:`align`.

    Returns:
        Rows that sum to 1; 0 at masked frames.

    Example:
        >>> occupancies(torch.zeros(1, 2, 3).log_softmax(-1), torch.tensor([[2]]))[0, 0].mul(3).round()
        tensor([1., 2., 0.])
    """
    states, emitted, frames = _admit(log_probs, labels, frame_mask, label_mask, blank, wildcard)
    return both_ways(emitted, states, frames).occupancy.transpose(0, 1)


class Word(NamedTuple):
    """Labels between separators: their places, the frames first <= t < end, and the mean of their probabilities."""

    places: tuple[int, ...]
    first: int
    end: int
    probability: float


def words(spans: list[Span], separator: int) -> list[Word]:
    """The spans of labels as those of words.

    Args:
        spans: of one utterance.
        separator: the label between words, e.g. that of the space.

    Example:
        >>> spans = [Span(0, 5, 1, 2, 0.5), Span(1, 6, 2, 4, 1.0), Span(2, 9, 4, 5, 0.8), Span(3, 5, 7, 8, 0.9)]
        >>> [(word.places, word.first, word.end, word.probability) for word in words(spans, separator=9)]
        [((0, 1), 1, 4, 0.75), ((3,), 7, 8, 0.9)]
    """
    groups: list[list[Span]] = [[]]
    for span in spans:
        if span.label == separator:
            groups.append([])
        else:
            groups[-1].append(span)
    return [
        Word(
            tuple(span.place for span in group),
            group[0].first,
            group[-1].end,
            sum(span.probability for span in group) / len(group),
        )
        for group in groups
        if group
    ]


def _admit(
    log_probs: Tensor,
    labels: Tensor,
    frame_mask: Tensor | None,
    label_mask: Tensor | None,
    blank: int,
    wildcard: int | None,
) -> tuple[Chain, Float[Tensor, "T B S"], Tensor | None]:
    """The trellis; what cannot be aligned is refused."""
    check_frames(log_probs, frame_mask, blank)
    if wildcard == blank:
        raise ValueError(f"wildcard={wildcard} is the blank: choose a number that means nothing else, e.g. -1")
    check_labels(labels, log_probs.shape[0], log_probs.shape[2], label_mask, blank=blank, wildcard=wildcard)
    frames = labels.new_full((labels.shape[0],), log_probs.shape[1]) if frame_mask is None else frame_mask.sum(1)
    wrong = infeasible(labels, frames=frames, label_mask=label_mask)
    if wrong.any():
        raise ValueError(
            f"utterances {wrong.nonzero().flatten().tolist()} have too few frames to say their labels, which need a "
            "frame each, and one more between equal neighbours"
        )
    states = chain(labels, label_mask, blank=blank)
    emitted = emissions(log_probs, states.symbols, wildcard)
    return states, emitted, None if frame_mask is None else frame_mask.mT


def _best(
    emitted: Float[Tensor, "T B S"], skips: Bool[Tensor, "B S"], frames: Tensor | None
) -> tuple[Int[Tensor, "T B S"], Float[Tensor, "B S"]]:
    """How many states each state's best path came on at each frame, and the scores after the last frame.

    The loop finds scores alone; where they came from is told from all of them at once.
    """
    padded = emitted.new_full((emitted.shape[0] + 1, skips.shape[0], skips.shape[1] + 2), -math.inf)
    here, before, two_before = padded[..., 2:], padded[..., 1:-1], padded[..., :-2]
    here[0, :, 0] = 0.0
    forbidden = torch.zeros_like(padded[0, :, 2:]).masked_fill(~skips, -math.inf)
    for frame, emission in enumerate(emitted):
        old = here[frame]
        best = torch.maximum(old, before[frame])
        best = torch.maximum(best, two_before[frame] + forbidden)
        if frames is None:
            torch.add(best, emission, out=here[frame + 1])
        else:
            here[frame + 1] = torch.where(frames[frame][:, None], best + emission, old)
    one = before[:-1] > here[:-1]
    two = (two_before[:-1] > torch.maximum(before[:-1], here[:-1])) & skips
    steps = torch.where(two, 2, one.to(torch.int8))
    steps = steps if frames is None else steps.masked_fill(~frames[..., None], 0)
    return steps, here[-1]


def _spans(states: list[int], labels: list[int], probabilities: list[float]) -> list[Span]:
    """Each odd state is one label; a masked frame in its middle belongs to nobody."""
    frames: dict[int, list[int]] = {}
    for frame, state in enumerate(states):
        if state > 0 and state % 2:
            frames.setdefault(state, []).append(frame)
    return [
        Span(state // 2, labels[at[0]], at[0], at[-1] + 1, sum(probabilities[t] for t in at) / len(at))
        for state, at in frames.items()
    ]
