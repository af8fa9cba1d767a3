"""The CTC trellis: all ways to spread L labels over T frames, as paths through a chain of S = 2 L + 1 states.

Graves et al. 2006, "Connectionist Temporal Classification", section 4.1. The states z are blank, y_1, blank, ..., y_L,
blank. From one frame to the next a path stays, goes one state on, or goes two on, from a label to a different one::

    r[t, s] = logsumexp(a[t-1, s], a[t-1, s-1], a[t-1, s-2] if z_s is a label other than z_(s-2))
    a[t, s] = r[t, s] + log p[t, z_s]

Before the first frame every path stands in state 0; that gives the paper's a[0, 0] and a[0, 1] and no others. A masked
frame is no step: a goes on to the next one, wherever the padding lies. The same recursion along the reversed trellis
gives r backwards, which is the paper's backward variable without its emission, and r[t, s] + log p[t, z_s] + r'[t, s]
is the log probability of all paths that are in state s at frame t.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.ops.masks import check_mask


class Chain(NamedTuple):
    """The states of each utterance's labels.

    Attributes:
        symbols: the class that a state emits; states beyond the last have some class.
        skips: True where a path may come from two states before.
        end: the number of the last state, 2 L.
    """

    symbols: Int[Tensor, "B S"]
    skips: Bool[Tensor, "B S"]
    end: Int[Tensor, " B"]


def check_frames(log_probs: Tensor, frame_mask: Tensor | None, blank: int) -> None:
    """Refuse what are no scores of classes at frames.

    Raises:
        ValueError, TypeError: shapes, dtypes or a blank that do not fit.
    """
    if log_probs.ndim != 3 or not log_probs.is_floating_point():
        raise ValueError(f"scores are {log_probs.dtype} {tuple(log_probs.shape)}: floats (batch, frames, classes)")
    if not 0 <= blank < log_probs.shape[-1]:
        raise ValueError(f"blank={blank} is none of the {log_probs.shape[-1]} classes")
    check_mask(frame_mask, *log_probs.shape[:2], name="frame_mask")


def check_labels(
    labels: Tensor,
    batch: int,
    classes: int,
    label_mask: Tensor | None,
    *,
    blank: int,
    wildcard: int | None = None,
    name: str = "blank",
) -> None:
    """Refuse what are no labels (B, L).

    Args:
        labels, label_mask: Int and Bool (B, L).
        batch, classes: B, and the number of classes.
        blank: the class that no label may be.
        wildcard: a number that any label may be.
        name: what the blank is called.

    Raises:
        ValueError, TypeError: shapes, dtypes or numbers that do not fit.
    """
    if labels.ndim != 2 or labels.shape[0] != batch:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}: expected ({batch}, most labels), one row a batch entry"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels are {labels.dtype}: pass integers")
    check_mask(label_mask, *labels.shape, name="label_mask")
    if torch.compiler.is_compiling():
        return
    wrong = (labels < 0) | (labels >= classes) | (labels == blank)
    wrong = wrong if wildcard is None else wrong & (labels != wildcard)
    wrong = wrong if label_mask is None else wrong & label_mask
    if wrong.any():
        found = sorted({*labels[wrong].tolist()})[:5]
        raise ValueError(f"labels {found}: a label is a class from 0 to {classes - 1}, and not the {name} {blank}")


def chain(labels: Int[Tensor, "B L"], label_mask: Bool[Tensor, "B L"] | None = None, *, blank: int = 0) -> Chain:
    """The states blank, y_1, blank, ..., y_L, blank.

    Args:
        labels: of each utterance.
        label_mask: True for real labels, wherever they stand.
        blank: the class between labels.

    Example:
        >>> found = chain(torch.tensor([[3, 3, 2]]))
        >>> found.symbols.tolist(), found.skips.nonzero()[:, 1].tolist(), found.end.tolist()
        ([[0, 3, 0, 3, 0, 2, 0]], [5], [6])
    """
    labels, length = labels_first(labels, label_mask)
    places = torch.arange(labels.shape[1], device=labels.device)
    labels = torch.where(places < length[:, None], labels, blank)
    symbols = labels.new_full((labels.shape[0], 2 * labels.shape[1] + 1), blank)
    symbols[:, 1::2] = labels
    skips = torch.zeros_like(symbols, dtype=torch.bool)
    skips[:, 3::2] = labels[:, 1:] != labels[:, :-1]
    return Chain(symbols, skips, 2 * length)


def labels_first(
    labels: Int[Tensor, "B L"], label_mask: Bool[Tensor, "B L"] | None
) -> tuple[Int[Tensor, "B L"], Int[Tensor, " B"]]:
    """The labels with real ones first, in their order, and how many these are."""
    if label_mask is None:
        return labels, torch.full_like(labels[:, :1].sum(1), labels.shape[1])
    order = label_mask.logical_not().to(torch.uint8).argsort(dim=-1, stable=True)
    return labels.take_along_dim(order, 1), label_mask.sum(1)


def emissions(
    log_probs: Float[Tensor, "B T C"], symbols: Int[Tensor, "B S"], wildcard: int | None = None
) -> Float[Tensor, "T B S"]:
    """log p[t, z_s], in float32 at least, the frames first; that of a wildcard is 0: it stands for anything."""
    log_probs = log_probs.to(torch.promote_types(log_probs.dtype, torch.float32)).transpose(0, 1)
    star = None if wildcard is None else symbols == wildcard
    symbols = symbols if star is None else symbols.masked_fill(star, 0)
    found = log_probs.gather(2, symbols.expand(len(log_probs), -1, -1))
    return found if star is None else found.masked_fill(star, 0.0)


def arrivals(
    emitted: Float[Tensor, "T B S"], skips: Bool[Tensor, "B S"], start: Int[Tensor, " B"], frames: Tensor | None = None
) -> tuple[Float[Tensor, "T B S"], Float[Tensor, "B S"]]:
    """r of all frames, and a after the last of them; not to be differentiated.

    Args:
        emitted: log p[t, z_s].
        skips: True where a path may come from two states before.
        start: the state before the first frame.
        frames: Bool (T, B), True for real frames.
    """
    batch, count = skips.shape
    found = torch.empty_like(emitted)
    forbidden = torch.zeros_like(emitted[0] if len(emitted) else skips, dtype=emitted.dtype)
    forbidden = forbidden.masked_fill(~skips, -math.inf)
    padded = emitted.new_full((batch, count + 2), -math.inf)  # two states before the first: nobody comes from there
    here, before, two_before = padded[:, 2:], padded[:, 1:-1], padded[:, :-2]
    here.scatter_(1, start[:, None], 0.0)
    for frame, emission in enumerate(emitted):
        arrived = torch.logaddexp(here, before)
        arrived = torch.logaddexp(arrived, two_before + forbidden, out=found[frame])
        if frames is None:
            torch.add(arrived, emission, out=here)
        else:
            here.copy_(torch.where(frames[frame][:, None], arrived + emission, here))
    return found, here


class Passed(NamedTuple):
    """What both recursions found: log p of all labels, and of all paths through each state at each frame, over it."""

    log_likelihood: Float[Tensor, " B"]
    occupancy: Float[Tensor, "T B S"]


def forward_only(emitted: Float[Tensor, "T B S"], states: Chain, frames: Tensor | None = None) -> Float[Tensor, " B"]:
    """log p of the labels: that of the paths which end in one of the last two states."""
    last = arrivals(emitted, states.skips, torch.zeros_like(states.end), frames)[1]
    return _of_ends(last, states.end)


def both_ways(emitted: Float[Tensor, "T B S"], states: Chain, frames: Tensor | None = None) -> Passed:
    """log p of the labels, and the probability (T, B, S) of each state at each frame; 0 where no path exists.

    Both recursions run side by side, as one batch: what they cost on a small trellis is the number of steps.
    """
    skips, end = states.skips, states.end
    skips_back = torch.zeros_like(skips)
    skips_back[:, 2:] = skips.flip(1)[:, :-2]  # two states on from s are allowed where two before s + 2 are
    start = torch.cat((torch.zeros_like(end), skips.shape[1] - 1 - end))
    twice = torch.cat((emitted, emitted.flip(0, 2)), 1)
    real = None if frames is None else torch.cat((frames, frames.flip(0)), 1)
    arrived, last = arrivals(twice, torch.cat((skips, skips_back)), start, real)
    there, back = arrived.chunk(2, 1)
    likelihood = _of_ends(last[: len(end)], end)
    possible = likelihood > -math.inf
    occupancy = (there + emitted + back.flip(0, 2) - torch.where(possible, likelihood, 0.0)[:, None]).exp()
    real = possible[None] if frames is None else possible & frames
    return Passed(likelihood, occupancy.masked_fill(~real[..., None], 0.0))


def _of_ends(last: Float[Tensor, "B S"], end: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """logsumexp of the last blank and the last label, if there is one."""
    blank = last.gather(1, end[:, None])
    label = last.gather(1, (end - 1).clamp(min=0)[:, None]).masked_fill((end == 0)[:, None], -math.inf)
    return torch.logaddexp(blank, label)[:, 0]
