"""The CTC loss -log p(y | x), which needs no labels of single frames: the sum over all alignments.

Graves et al. 2006, "Connectionist Temporal Classification: Labelling Unsegmented Sequence Data with Recurrent Neural
Networks", ICML, eq. 14 and 15. With the probability g[t, s] of being in state s at frame t (:mod:`.ctc_trellis`)::

    d loss / d log p[t, c] = -sum over s with z_s = c of g[t, s]
    d loss / d logit[t, c] = softmax[t, c] - sum over s with z_s = c of g[t, s]

An alignment exists if there are at least as many frames as labels and pairs of equal neighbours, between which a blank
must stand. (The "twice as many frames as labels" that one reads is not needed.)
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.ops.ctc_trellis import (
    Chain,
    both_ways,
    chain,
    check_frames,
    check_labels,
    emissions,
    forward_only,
    labels_first,
)
from regard.ops.masks import check_mask, hide

Reduction = Literal["mean", "sum", "none", "utterances"]
Engine = Literal["torch", "own"]


def ctc_loss(
    logits: Float[Tensor, "B T C"],
    labels: Int[Tensor, "..."],
    *,
    frame_mask: Bool[Tensor, "B T"] | None = None,
    label_mask: Bool[Tensor, "B L"] | None = None,
    label_lengths: Int[Tensor, " B"] | None = None,
    blank: int = 0,
    reduction: Reduction = "mean",
    engine: Engine = "torch",
    zero_infinity: bool | None = None,
) -> Float[Tensor, "..."]:
    """-log p(labels | logits), in float32 at least, with its exact gradient.

    Args:
        logits: scores of C classes at T frames; log-probabilities will do as well, for their log-softmax is themselves.
        labels: (B, L), padded; or all labels one after the other, and ``label_lengths`` then.
        frame_mask: True for real frames; the others have no influence and no gradient.
        label_mask: True for real labels.
        label_lengths: how many of the concatenated labels each utterance has.
        blank: the class that is no label.
        reduction: "none": (B,); "sum"; "mean", as in torch, of each loss over its number of labels, 1 at least;
            "utterances", as in ESPnet: the sum over B.
        engine: "torch": ``torch.nn.functional.ctc_loss``; "own": the recursion in the log domain, frame by frame, which
            takes more time and any dtype.
        zero_infinity: what becomes of an utterance that has too few frames for its labels. None: it is refused; True:
            its loss and gradient are 0; False: its loss is infinite, and its gradient 0 ("own") or NaN ("torch").

    Raises:
        ValueError, TypeError: shapes, labels or masks that do not fit, or utterances with too few frames.

    Example:
        >>> ctc_loss(torch.zeros(1, 2, 3), torch.tensor([[1]])).exp()  # 9 equal paths, of which 3 say "1"
        tensor(3.)
    """
    check_frames(logits, frame_mask, blank)
    if labels.ndim == 1:
        labels, label_mask = split_labels(labels, label_lengths)
    elif label_lengths is not None:
        raise ValueError("label_lengths belong to concatenated labels (total,): padded ones (B, L) take a label_mask")
    check_labels(labels, logits.shape[0], logits.shape[2], label_mask, blank=blank)
    if reduction not in ("mean", "sum", "none", "utterances") or engine not in ("torch", "own"):
        raise ValueError(
            f'reduction={reduction!r}, engine={engine!r}: "mean", "sum", "none", "utterances"; "torch", "own"'
        )
    if zero_infinity is None and not torch.compiler.is_compiling():
        _refuse_infeasible(labels, frame_mask, label_mask, logits.shape[1])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_probs = hide(logits, frame_mask).log_softmax(-1)
    if engine == "torch" and labels.shape[1] and logits.shape[1]:
        loss = _by_torch(log_probs, labels, frame_mask, label_mask, blank, bool(zero_infinity))
    else:
        frames = None if frame_mask is None else frame_mask.mT
        loss: Tensor = _Loss.apply(log_probs, chain(labels, label_mask, blank=blank), frames)  # pyright: ignore
        loss = torch.where(loss == math.inf, 0.0, loss) if zero_infinity else loss
    if reduction == "none":
        return loss
    if reduction != "mean":
        return loss.sum() / (logits.shape[0] if reduction == "utterances" else 1)
    count = torch.full_like(loss, labels.shape[1]) if label_mask is None else label_mask.sum(1)
    return (loss / count.clamp(min=1)).mean()


def infeasible(
    labels: Int[Tensor, "B L"],
    *,
    frames: Int[Tensor, " B"] | int,
    label_mask: Bool[Tensor, "B L"] | None = None,
) -> Bool[Tensor, " B"]:
    """Which utterances have fewer frames than labels and pairs of equal neighbours, so that no path says the labels.

    Args:
        labels: of each utterance.
        frames: how many frames each has, after all subsampling.
        label_mask: True for real labels.

    Example:
        >>> infeasible(torch.tensor([[1, 2, 3], [1, 1, 2]]), frames=3).tolist()
        [False, True]
    """
    labels, length = labels_first(labels, label_mask)
    inside = torch.arange(labels.shape[1], device=labels.device)[1:] < length[:, None]
    repeats = ((labels[:, 1:] == labels[:, :-1]) & inside).sum(1)
    return length + repeats > frames


def split_labels(labels: Int[Tensor, " N"], lengths: Tensor | None) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """Concatenated labels as rows and their mask.

    Raises:
        ValueError: lengths that are missing or do not add up.

    Example:
        >>> split_labels(torch.tensor([5, 6, 7]), torch.tensor([2, 1]))[0].tolist()
        [[5, 6], [7, 0]]
    """
    if lengths is None or lengths.ndim != 1 or int(lengths.sum()) != labels.shape[0] or bool((lengths < 0).any()):
        said = "no label_lengths" if lengths is None else f"label_lengths {lengths.tolist()}"
        raise ValueError(
            f"{labels.shape[0]} concatenated labels and {said}: one length an utterance, in sum all labels"
        )
    lengths = lengths.to(labels.device)
    mask = torch.arange(int(lengths.max()) if len(lengths) else 0, device=labels.device) < lengths[:, None]
    return labels.new_zeros(mask.shape).masked_scatter(mask, labels), mask


class _Loss(torch.autograd.Function):
    """-log p of the labels; both recursions run at once where a gradient is wanted."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, states: Chain, frames: Tensor | None) -> Tensor:
        emitted = emissions(log_probs, states.symbols)
        if not ctx.needs_input_grad[0]:
            return -forward_only(emitted, states, frames)
        passed = both_ways(emitted, states, frames)
        ctx.save_for_backward(passed.occupancy, states.symbols)
        ctx.classes = log_probs.shape[2]
        return -passed.log_likelihood

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        occupancy, symbols = ctx.saved_tensors
        found = occupancy.new_zeros(*occupancy.shape[:2], ctx.classes)
        found.scatter_add_(2, symbols.expand_as(occupancy), occupancy)
        return found.transpose(0, 1) * -slope[:, None, None], None, None


def _by_torch(
    log_probs: Tensor, labels: Tensor, frame_mask: Tensor | None, label_mask: Tensor | None, blank: int, zero: bool
) -> Tensor:
    """torch's, which wants all real frames and labels first."""
    labels, length = labels_first(labels, label_mask)
    frames = torch.full_like(length, log_probs.shape[1])
    if frame_mask is not None:
        frames = frame_mask.sum(1)
        if bool((frame_mask[:, 1:] & ~frame_mask[:, :-1]).any()):
            order = frame_mask.logical_not().to(torch.uint8).argsort(dim=-1, stable=True)
            log_probs = log_probs.take_along_dim(order[..., None], 1)
    return F.ctc_loss(log_probs.transpose(0, 1), labels, frames, length, blank, "none", zero)


def _refuse_infeasible(labels: Tensor, frame_mask: Tensor | None, label_mask: Tensor | None, length: int) -> None:
    check_mask(label_mask, *labels.shape, name="label_mask")
    frames = labels.new_full((labels.shape[0],), length) if frame_mask is None else frame_mask.sum(1)
    wrong = infeasible(labels, frames=frames, label_mask=label_mask)
    if not wrong.any():
        return
    number = int(wrong.nonzero()[0])
    count = labels.shape[1] if label_mask is None else int(label_mask[number].sum())
    raise ValueError(
        f"{int(wrong.sum())} of {len(wrong)} utterances have too few frames for their labels: number {number} has "
        f"{int(frames[number])} frames for {count} labels. CTC needs a frame for each label, and one more between "
        "equal neighbours: subsample less, leave these utterances out, or pass zero_infinity=True"
    )
