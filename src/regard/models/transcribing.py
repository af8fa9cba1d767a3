"""What was said, and when: labels out of a speech recogniser by any of its searches, and times by forced alignment."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from regard.models.hybrid import joint_search
from regard.models.speech_recognizer import SpeechRecognizer
from regard.ops.ctc_alignment import align
from regard.ops.ctc_search import greedy_labels, prefix_beam_search
from regard.registry import UnsupportedError

Method = Literal["greedy", "beam", "joint", "attention"]


class Transcript(NamedTuple):
    """What was heard in a recording, and the natural logarithm of its probability, or what a search made of it."""

    labels: tuple[int, ...]
    score: float


class Timed(NamedTuple):
    """A label, from when to when in seconds, and the mean probability that CTC gives it there."""

    label: int
    start: float
    end: float
    probability: float


class TimedWord(NamedTuple):
    """The labels of a word, from when to when in seconds, and the geometric mean of their probabilities."""

    labels: tuple[int, ...]
    start: float
    end: float
    probability: float


@torch.no_grad()
def transcribe(
    model: SpeechRecognizer,
    x: Tensor,
    key_mask: Bool[Tensor, "B N"] | None = None,
    *,
    method: Method = "greedy",
    beams: int = 8,
    ctc_weight: float = 0.3,
    language_model: Any = None,
    language_weight: float = 0.0,
    length_bonus: float = 0.0,
) -> list[Transcript]:
    """The labels of each recording.

    Args:
        model: in the mode it is in: call ``model.eval()`` first where it has dropout.
        x, key_mask: recordings, as in the model's ``forward``.
        method: "greedy", the likeliest label of each state; "beam", CTC's prefix beam search; "attention", the decoder
            alone; "joint", decoder and CTC together.
        beams: of the searches.
        ctc_weight: of CTC in the joint search; the decoder has the rest.
        language_model: see :mod:`regard.models.language_models`; of the searches.
        language_weight, length_bonus: what its log-probability, and each label, adds to the score.

    Raises:
        ValueError: a method that there is not.
        UnsupportedError: a model without decoder, or a language model for "greedy".

    Example:
        >>> model = SpeechRecognizer(5, 8, 1, 2, sample_rate=8000, num_mels=8).eval()
        >>> len(transcribe(model, torch.randn(3, 4000), method="joint", beams=2))
        3
    """
    if method not in ("greedy", "beam", "joint", "attention"):
        raise ValueError(f'method={method!r} is none of "greedy", "beam", "joint" and "attention"')
    encoded = model.encode(x, key_mask)
    log_probs = model.log_probs(encoded)
    if not log_probs.shape[1]:  # in no time nothing is said
        return [Transcript((), 0.0) for _ in log_probs]
    if method == "greedy":
        if language_model is not None:
            raise UnsupportedError('method="greedy" does not search: a language model needs "beam", "joint" or others')
        scores = log_probs.amax(-1).sum(1).tolist()
        found = greedy_labels(log_probs, frame_mask=encoded.mask, blank=model.blank)
        return [Transcript(tuple(labels), score) for labels, score in zip(found, scores, strict=True)]
    options: dict[str, Any] = {"frame_mask": encoded.mask, "beams": beams, "language_model": language_model}
    options["blank"] = model.blank
    if method == "beam":
        prefixes = prefix_beam_search(log_probs, alpha=language_weight, beta=length_bonus, **options)
        return [Transcript(tuple(best.labels), best.score) for best, *_ in prefixes]
    options |= {"language_weight": language_weight, "length_bonus": length_bonus, "start": model.end, "end": model.end}
    weight = ctc_weight if method == "joint" else 0.0
    hypotheses = joint_search(model, model.begin_encoded(encoded), log_probs, ctc_weight=weight, **options)
    return [Transcript(tuple(best.labels), best.score) for best, *_ in hypotheses]


@torch.no_grad()
def timed_labels(
    model: SpeechRecognizer,
    x: Tensor,
    labels: Int[Tensor, "B L"],
    *,
    key_mask: Bool[Tensor, "B N"] | None = None,
    label_mask: Bool[Tensor, "B L"] | None = None,
) -> list[list[Timed]]:
    """When each label of known transcripts is said: the likeliest path of CTC through them.

    CTC says a label late and for one state or two; its times are of states of ``model.frame_seconds``.

    Args:
        model, x, key_mask: as in :func:`transcribe`.
        labels, label_mask: the transcripts, and True for their real labels; padding stands at the end.

    Raises:
        ValueError: a recording that is too short for its labels.
    """
    encoded = model.encode(x, key_mask)
    log_probs, mask = model.log_probs(encoded), encoded.mask
    found = align(log_probs, labels, frame_mask=mask, label_mask=label_mask, blank=model.blank).spans()
    second = model.frame_seconds
    return [
        [Timed(span.label, span.first * second, span.end * second, span.probability) for span in spans]
        for spans in found
    ]


def timed_words(labels: Sequence[Timed], space: int) -> list[TimedWord]:
    """Labels as words: from the start of the first to the end of the last between two spaces.

    Example:
        >>> timed = [Timed(3, 0.0, 0.04, 0.5), Timed(4, 0.08, 0.12, 0.5), Timed(1, 0.12, 0.16, 0.9)]
        >>> timed_words(timed, space=1)
        [TimedWord(labels=(3, 4), start=0.0, end=0.12, probability=0.5)]
    """
    words: list[list[Timed]] = [[]]
    for timed in labels:
        if timed.label == space:
            words.append([])
        else:
            words[-1].append(timed)
    return [
        TimedWord(
            tuple(timed.label for timed in word),
            word[0].start,
            word[-1].end,
            math.exp(sum(math.log(max(timed.probability, 1e-30)) for timed in word) / len(word)),
        )
        for word in words
        if word
    ]
