"""What was said, out of CTC's log-probabilities: by the best path, or by the best labels over all their paths.

Greedy: the likeliest class of each frame, repetitions merged, blanks dropped. The labels of the likeliest path are not
always the likeliest labels, which :mod:`.ctc_prefix_search` looks for.
"""

from jaxtyping import Bool, Float
from torch import Tensor

from regard.ops.ctc_prefix_search import LanguageModel, Prefix, PrefixSearch
from regard.ops.ctc_trellis import check_frames

__all__ = ["GreedySearch", "LanguageModel", "Prefix", "PrefixSearch", "greedy_labels", "prefix_beam_search"]


def greedy_labels(
    log_probs: Float[Tensor, "B T C"], *, frame_mask: Bool[Tensor, "B T"] | None = None, blank: int = 0
) -> list[list[int]]:
    """The likeliest class of each real frame, repetitions merged, blanks dropped.

    Args:
        log_probs: scores of C classes at T frames.
        frame_mask: True for real frames.
        blank: the class that is no label.

    Example:
        >>> import torch
        >>> frames = torch.tensor([[1, 1, 0, 1, 2, 2, 0]])
        >>> greedy_labels(torch.nn.functional.one_hot(frames).float())
        [[1, 1, 2]]
    """
    return GreedySearch(log_probs.shape[0], blank=blank).read(log_probs, frame_mask=frame_mask)


class GreedySearch:
    """:func:`greedy_labels` of frames that come bit by bit.

    Args:
        batch: the number of utterances.
        blank: the class that is no label.
    """

    def __init__(self, batch: int, *, blank: int = 0) -> None:
        self.blank = blank
        self.last = [blank] * batch

    def read(
        self, log_probs: Float[Tensor, "B T C"], *, frame_mask: Bool[Tensor, "B T"] | None = None
    ) -> list[list[int]]:
        """The labels that the next frames of each utterance begin."""
        check_frames(log_probs, frame_mask, self.blank)
        if log_probs.shape[0] != len(self.last):
            raise ValueError(f"{log_probs.shape[0]} utterances, but the search was begun for {len(self.last)}")
        best = log_probs.argmax(-1) if log_probs.shape[1] else log_probs.new_zeros(log_probs.shape[:2]).long()
        found: list[list[int]] = []
        for number, row in enumerate(best):
            frames: list[int] = (row if frame_mask is None else row[frame_mask[number]]).tolist()
            before = [self.last[number], *frames[:-1]]
            found.append([c for c, old in zip(frames, before, strict=False) if c not in (old, self.blank)])
            self.last[number] = frames[-1] if frames else self.last[number]
        return found


def prefix_beam_search(
    log_probs: Float[Tensor, "B T C"],
    *,
    frame_mask: Bool[Tensor, "B T"] | None = None,
    beams: int = 8,
    blank: int = 0,
    topk: int | None = None,
    floor: float | None = None,
    language_model: LanguageModel | None = None,
    alpha: float = 0.0,
    beta: float = 0.0,
    finish: bool = True,
) -> list[list[Prefix]]:
    """The best labels of each utterance; see :mod:`.ctc_prefix_search`. Time O(T W C), with ``topk`` O(T W K).

    Args:
        log_probs: log-probabilities of C classes at T frames.
        frame_mask: True for real frames; the others are no steps.
        beams: W.
        blank: the class that is no label.
        topk: the likeliest classes that are tried at each frame, and the blank; None: all.
        floor: classes with a smaller log-probability are not tried at a frame, but for the blank.
        language_model: what knows which labels follow which.
        alpha: its weight.
        beta: what each label adds to the score; a language model favours the short.
        finish: at the end, add alpha log p of the language model that nothing follows.

    Returns:
        For each utterance at most W, the best first.

    Raises:
        ValueError, TypeError: shapes, masks or numbers that do not fit.

    Example:
        >>> import torch
        >>> log_probs = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]]).log()  # the best path says nothing: 0.36
        >>> [(best.labels, round(best.score, 2)) for best in prefix_beam_search(log_probs)[0]]
        [((1,), -0.45), ((), -1.02)]
    """
    search = PrefixSearch(
        log_probs.shape[0],
        log_probs.shape[-1],
        beams=beams,
        blank=blank,
        topk=topk,
        floor=floor,
        language_model=language_model,
        alpha=alpha,
        beta=beta,
    )
    search.read(log_probs, frame_mask=frame_mask)
    return search.results(finish=finish)
