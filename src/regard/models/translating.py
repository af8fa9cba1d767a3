"""Sentences out of a translator: greedily, or by a beam search whose score is normalised by length.

    score(y) = log p(y | x) / ((5 + |y|) / 6)^alpha                                      |y| counts the end symbol

Wu et al. 2016, arXiv:1609.08144, eq. 14, as Vaswani et al. 2017 (arXiv:1706.03762, section 6.1) use it: a beam of 4,
alpha 0.6, at most 50 tokens more than the source has. Without it a search prefers the short, which has fewer factors.
"""

import math
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from regard.memory import reorder

MORE = 50
"""Tokens that a translation may have beyond those of its source, where nothing else was asked for."""


class Translator(Protocol):
    """A network from source tokens to target tokens, whole or one token after the other."""

    def __call__(
        self, src: Tensor, tgt: Tensor, *, src_mask: Tensor | None = None, tgt_mask: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, V) of the token after each target token."""
        ...

    def begin(self, src: Tensor, src_mask: Tensor | None = None) -> Any:
        """What is known of the source (B, S): tensors in tuples, the batch first."""
        ...

    def step(self, tokens: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """Logits (B, V) of the token after the next tokens (B,), and the new memory."""
        ...

    def align(
        self, src: Tensor, tgt: Tensor, *, src_mask: Tensor | None = None, tgt_mask: Tensor | None = None
    ) -> Tensor:
        """Weights (B, T, S): where the prediction of the token after each target token looks."""
        ...


class Hypothesis(NamedTuple):
    """A translation.

    Attributes:
        tokens: without start and end.
        score: log probability, divided by the length penalty.
        finished: whether it came to its end; False: the greatest length cut it off.
    """

    tokens: tuple[int, ...]
    score: float
    finished: bool


@torch.no_grad()
def greedy(
    model: Translator,
    src: Int[Tensor, "B S"],
    *,
    src_mask: Bool[Tensor, "B S"] | None = None,
    start: int,
    end: int,
    max_length: int | None = None,
) -> list[Hypothesis]:
    """The likeliest token after each token, until the end; the score is the log probability of all.

    Args:
        model: in the mode it is in: call ``model.eval()`` first where it has dropout.
        src, src_mask: sentences, and True for their real tokens.
        start, end: the tokens around each target sentence.
        max_length: the most tokens, the end among them; the default is the source's and 50.

    Raises:
        ValueError: lengths or masks that mean nothing.

    Example:
        >>> from regard.models import Transformer
        >>> model = Transformer(14, dim=16, num_heads=4, depth=1, hidden=24).eval()
        >>> len(greedy(model, torch.randint(3, 14, (2, 7)), start=1, end=2, max_length=5))
        2
    """
    room = _room(src, src_mask, max_length)
    memory, last = model.begin(src, src_mask), torch.full_like(src[:, 0], start)
    total = torch.zeros(len(src), device=src.device)
    open_, found = torch.ones_like(last, dtype=torch.bool), list[Tensor]()
    for length in range(1, int(room.max()) + 1):
        logits, memory = model.step(last, memory)
        likely, last = logits.float().log_softmax(-1).max(-1)
        total = torch.where(open_, total + likely, total)
        last = torch.where(open_, last, end)
        found.append(torch.where(open_, last, -1))
        open_ = open_ & (last != end) & (room > length)
        if not open_.any():
            break
    rows = torch.stack(found, 1).tolist()
    return [
        _hypothesis([t for t in row if t >= 0], score, end) for row, score in zip(rows, total.tolist(), strict=True)
    ]


class _Beams(NamedTuple):
    """K unfinished and K finished hypotheses of each sentence, best first; there may be fewer: -inf."""

    total: Float[Tensor, "B K"]
    tokens: Int[Tensor, "B K L"]
    done: Float[Tensor, "B K"]
    done_tokens: Int[Tensor, "B K L"]
    room: Int[Tensor, " B"]
    sentence: Int[Tensor, " B"]


@torch.no_grad()
def beam_search(
    model: Translator,
    src: Int[Tensor, "B S"],
    *,
    src_mask: Bool[Tensor, "B S"] | None = None,
    start: int,
    end: int,
    beams: int = 4,
    max_length: int | None = None,
    alpha: float = 0.6,
) -> list[list[Hypothesis]]:
    """The best translations that a search with K beams finds, of many sentences at once.

    Each step continues the K likeliest unfinished hypotheses in all ways. Those that end are kept aside, the K best by
    score. A sentence is done when no unfinished hypothesis can become better than the worst of K finished ones: log
    probabilities only fall, and no length penalty is greater than that of the greatest length. With a K of half of all
    continuations the search is exhaustive.

    Args:
        model, src, src_mask, start, end, max_length: as of :func:`greedy`.
        beams: K.
        alpha: of the length penalty; 0: there is none.

    Returns:
        For each sentence its finished hypotheses, the best first, at most K; where none came to its end within
        ``max_length``, the unfinished ones, which say so.

    Raises:
        ValueError: numbers that mean nothing.

    Example:
        >>> from regard.models import Transformer
        >>> model = Transformer(14, dim=16, num_heads=4, depth=1, hidden=24).eval()
        >>> best = beam_search(model, torch.randint(3, 14, (2, 7)), start=1, end=2, beams=3, max_length=9)
        >>> len(best), all(len(some) <= 3 for some in best)
        (2, True)
    """
    if beams < 1 or alpha < 0:
        raise ValueError(f"beams={beams}, alpha={alpha}: at least one beam, and no negative alpha")
    room = _room(src, src_mask, max_length)
    state = _nothing(room, beams, end)
    memory = reorder(model.begin(src, src_mask), state.sentence.repeat_interleave(beams))
    last = torch.full((len(src) * beams,), start, dtype=src.dtype, device=src.device)
    results: list[list[Hypothesis]] = [[] for _ in range(len(src))]
    for length in range(1, int(room.max()) + 1):
        logits, memory = model.step(last, memory)
        state, parents = _grown(state, logits.float().log_softmax(-1), length, end, alpha)
        bound = state.total[:, 0] / length_penalty(state.room, alpha)
        closed = (state.done[:, -1] >= bound) | (state.room <= length)
        for number in closed.nonzero().flatten().tolist():
            results[int(state.sentence[number])] = _results(state, number, length, alpha, end)
        open_ = (~closed).nonzero().flatten()
        if not len(open_):
            break
        state = reorder(state, open_)
        rows = (open_[:, None] * beams + parents[open_]).flatten()
        memory, last = reorder(memory, rows), state.tokens[:, :, length - 1].flatten()
    return results


def length_penalty(length: Num[Tensor, "*B"], alpha: float) -> Float[Tensor, "*B"]:
    """((5 + n) / 6)^alpha.

    Example:
        >>> length_penalty(torch.tensor([1, 7]), 1.0).tolist()
        [1.0, 2.0]
    """
    return ((5 + length.float()) / 6) ** alpha


def _nothing(room: Int[Tensor, " B"], beams: int, end: int) -> _Beams:
    """One hypothesis without tokens for each sentence; rows are filled with ends."""
    total = torch.full((len(room), beams), -math.inf, device=room.device)
    tokens = torch.full((len(room), beams, int(room.max())), end, device=room.device)
    first = total.clone()
    first[:, 0] = 0.0
    return _Beams(first, tokens, total, tokens, room, torch.arange(len(room), device=room.device))


def _grown(
    state: _Beams, likely: Float[Tensor, "R V"], length: int, end: int, alpha: float
) -> tuple[_Beams, Int[Tensor, "B K"]]:
    """Every hypothesis with one token more, and from which beam each of the unfinished ones came.

    Of 2 K candidates at most K end, since each beam ends in one way only: K unfinished ones are left.
    """
    batch, beams = state.total.shape
    candidates = (state.total[..., None] + likely.view(batch, beams, -1)).flatten(1)
    total, place = candidates.topk(min(2 * beams, candidates.shape[1]), -1)
    parent, token = place // likely.shape[-1], place % likely.shape[-1]
    tokens = state.tokens.take_along_dim(parent[..., None], 1)
    tokens[:, :, length - 1] = token
    ended = token == end
    score = torch.where(ended, total / length_penalty(total.new_tensor(length), alpha), -math.inf)
    done, best = torch.cat((state.done, score), 1).topk(beams, -1)
    done_tokens = torch.cat((state.done_tokens, tokens), 1).take_along_dim(best[..., None], 1)
    total, best = total.masked_fill(ended, -math.inf).topk(beams, -1)
    grown = state._replace(total=total, tokens=tokens.take_along_dim(best[..., None], 1))
    return grown._replace(done=done, done_tokens=done_tokens), parent.take_along_dim(best, 1)


def _results(state: _Beams, number: int, length: int, alpha: float, end: int) -> list[Hypothesis]:
    """The finished hypotheses of one sentence, or else the unfinished ones."""
    scores, rows = state.done[number], state.done_tokens[number]
    if scores[0] == -math.inf:
        scores = state.total[number] / length_penalty(state.room.new_tensor(length), alpha)
        rows = state.tokens[number, :, :length]
    pairs = zip(rows.tolist(), scores.tolist(), strict=True)
    return [_hypothesis(row, score, end) for row, score in pairs if score > -math.inf]


def _hypothesis(row: list[int], score: float, end: int) -> Hypothesis:
    """The tokens up to the first end."""
    finished = end in row
    return Hypothesis(tuple(row[: row.index(end)] if finished else row), score, finished)


def _room(src: Tensor, src_mask: Tensor | None, max_length: int | None) -> Int[Tensor, " B"]:
    """The most tokens of each translation."""
    if src.ndim != 2 or not src.shape[1]:
        raise ValueError(f"src has shape {tuple(src.shape)}: it needs one token at least in each row of (B, S)")
    if src_mask is not None and (src_mask.shape != src.shape or src_mask.dtype != torch.bool):
        raise ValueError(
            f"src_mask is {src_mask.dtype} of shape {tuple(src_mask.shape)}: it must be bool, {tuple(src.shape)} as src"
        )
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length={max_length}: a translation has at least its end")
    if max_length is not None:
        return torch.full_like(src[:, 0], max_length)
    real = torch.ones_like(src) if src_mask is None else src_mask
    return real.sum(1) + MORE
