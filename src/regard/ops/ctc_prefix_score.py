"""The CTC score of a beginning: the probability psi(g) of all label sequences that start with g.

Watanabe et al. 2017, "Hybrid CTC/Attention Architecture for End-to-End Speech Recognition", algorithm 2; a decoder that
goes label by label asks for it. n_g[t] and b_g[t] are the log probabilities that the first t frames say exactly g and
end in its last label, or in a blank; before the first frame b is 0 for the empty g, and all others are -inf. One label
more::

    phi[t] = b_g[t]  if c is the last label of g, else  b_g[t] (+) n_g[t]                    (+) is logaddexp
    psi(g c) = logsumexp over t of phi[t-1] + log p[t, c]
    n_gc[t] = (n_gc[t-1] (+) phi[t-1]) + log p[t, c]         b_gc[t] = (n_gc[t-1] (+) b_gc[t-1]) + log p[t, blank]
    log p(g) = n_g[T] (+) b_g[T]                             g is all that was said

psi needs no recursion: every label is scored at once, and only those that a search keeps go along the frames.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.ops.ctc_trellis import check_frames


class PrefixState(NamedTuple):
    """n and b of R beginnings from before the first frame to after the last, their last labels and utterances."""

    nonblank: Float[Tensor, "R F"]
    blank: Float[Tensor, "R F"]
    last: Int[Tensor, " R"]
    utterance: Int[Tensor, " R"]


class CTCPrefixScorer:
    """Scores beginnings of utterances, as many and of whichever utterances as a search has in hand.

    Args:
        log_probs: log-probabilities (B, T, C) of C classes at T frames.
        frame_mask: Bool (B, T), True for real frames; the others are no steps.
        blank: the class that is no label.

    Raises:
        ValueError, TypeError: shapes, masks or a blank that do not fit.

    Example:
        >>> scorer = CTCPrefixScorer(torch.zeros(1, 2, 3).log_softmax(-1))  # 9 equal paths
        >>> state = scorer.begin()
        >>> scorer.score(state, torch.tensor([[1, 2]])).exp().mul(9).round()  # 4 of them start with "1"
        tensor([[4., 4.]])
        >>> scorer.whole(scorer.grow(state, torch.tensor([1]))).exp().mul(9).round()  # 3 of them say "1", no more
        tensor([3.])
    """

    def __init__(
        self, log_probs: Float[Tensor, "B T C"], frame_mask: Bool[Tensor, "B T"] | None = None, *, blank: int = 0
    ) -> None:
        check_frames(log_probs, frame_mask, blank)
        self.log_probs = log_probs.to(torch.promote_types(log_probs.dtype, torch.float32))
        self.frame_mask, self.blank_class = frame_mask, blank
        if frame_mask is not None:
            self.log_probs = self.log_probs.masked_fill(~frame_mask[..., None], -math.inf)

    def begin(self) -> PrefixState:
        """The empty beginning of each utterance."""
        silence = self.log_probs[..., self.blank_class]
        if self.frame_mask is not None:
            silence = silence.masked_fill(~self.frame_mask, 0.0)
        blank = torch.cat((torch.zeros_like(silence[:, :1]), silence.cumsum(1)), 1)
        if not silence.shape[1]:
            blank = silence.new_zeros(silence.shape[0], 1)
        number = torch.arange(blank.shape[0], device=blank.device)
        return PrefixState(torch.full_like(blank, -math.inf), blank, torch.full_like(number, -1), number)

    def score(self, state: PrefixState, labels: Int[Tensor, "R K"]) -> Float[Tensor, "R K"]:
        """log psi of each beginning with each of K labels, none of them the blank, behind it."""
        said = self.log_probs[state.utterance[:, None], :, labels]  # (R, K, T)
        either = torch.logaddexp(state.blank, state.nonblank)[:, None, :-1]
        same = (labels == state.last[:, None])[..., None]
        return (torch.where(same, state.blank[:, None, :-1], either) + said).logsumexp(-1)

    def grow(self, state: PrefixState, labels: Int[Tensor, " R"]) -> PrefixState:
        """The beginnings with one label more each."""
        said = self.log_probs[state.utterance, :, labels].mT
        silence = self.log_probs[state.utterance, :, self.blank_class].mT
        same = (labels == state.last)[:, None]
        phi = torch.where(same, state.blank, torch.logaddexp(state.blank, state.nonblank)).mT
        real = None if self.frame_mask is None else self.frame_mask[state.utterance].mT
        nonblank = blank = torch.full_like(phi[0], -math.inf)
        both = [(nonblank, blank)]
        for frame in range(len(said)):
            moved = torch.logaddexp(nonblank, phi[frame]) + said[frame]
            rested = torch.logaddexp(nonblank, blank) + silence[frame]
            if real is not None:
                moved, rested = (
                    torch.where(real[frame], new, old) for new, old in ((moved, nonblank), (rested, blank))
                )
            nonblank, blank = moved, rested
            both.append((nonblank, blank))
        nonblank, blank = (torch.stack(some, 1) for some in zip(*both, strict=True))
        return PrefixState(nonblank, blank, labels, state.utterance)

    def whole(self, state: PrefixState) -> Float[Tensor, " R"]:
        """log p of each beginning as all that was said."""
        return torch.logaddexp(state.nonblank[:, -1], state.blank[:, -1])
