"""The hybrid objective: CTC and an attention decoder on one encoder.

Kim, Hori and Watanabe 2016, arXiv:1609.06773, eq. 13::

    loss = lambda CTC + (1 - lambda) cross entropy of the decoder, over the labels and the end

CTC teaches the encoder to go from left to right; the decoder learns how labels follow one another. What both find
together is searched by :func:`regard.models.joint_decoding.joint_search`.
"""

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.models.joint_decoding import JointHypothesis, joint_search
from regard.ops.ctc_loss import ctc_loss
from regard.ops.ctc_trellis import check_labels

__all__ = ["HybridLoss", "JointHypothesis", "attention_loss", "hybrid_loss", "joint_search"]


class HybridLoss(NamedTuple):
    """The objective, and its two parts for each utterance: sums over its labels."""

    loss: Float[Tensor, ""]
    ctc: Float[Tensor, " B"]
    attention: Float[Tensor, " B"]


def attention_loss(
    logits: Float[Tensor, "B P V"],
    labels: Int[Tensor, "B L"],
    *,
    label_mask: Bool[Tensor, "B L"] | None = None,
    end: int,
    smoothing: float = 0.0,
) -> Float[Tensor, " B"]:
    """Cross entropy of a decoder, summed over the labels of an utterance and its end, in float32 at least.

    Args:
        logits: after the start and after each label; what stands behind the end does not count.
        labels: what was said.
        label_mask: True for real labels, which stand first.
        end: the token after the last label.
        smoothing: eps in (1 - eps) (-log p(y)) + eps mean over all V of -log p.

    Raises:
        ValueError, TypeError: shapes, labels or masks that do not fit.

    Example:
        >>> attention_loss(torch.zeros(1, 3, 4), torch.tensor([[1, 2]]), end=3)  # 3 ln 4
        tensor([4.1589])
    """
    if logits.ndim != 3 or logits.shape[:2] != (labels.shape[0], labels.shape[-1] + 1):
        raise ValueError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}: the decoder answers (B, L + 1, V), after "
            "the start and after each of the L labels"
        )
    vocabulary = logits.shape[2]
    if not 0 <= end < vocabulary or not 0 <= smoothing < 1:
        raise ValueError(f"end={end}, smoothing={smoothing}: one of {vocabulary} tokens, and a share from 0 up to 1")
    check_labels(labels, logits.shape[0], vocabulary, label_mask, blank=end, name="end")
    after_last = labels.new_full((labels.shape[0], 1), end)
    targets, counted = torch.cat((labels, after_last), 1), None
    if label_mask is not None:
        if not torch.compiler.is_compiling() and bool((label_mask[:, 1:] & ~label_mask[:, :-1]).any()):
            raise ValueError("label_mask: real labels stand first, as the decoder has read them; padding comes behind")
        real = torch.cat((label_mask, torch.zeros_like(after_last, dtype=torch.bool)), 1)
        targets = torch.where(real, targets, end)
        counted = torch.cat((torch.ones_like(real[:, :1]), label_mask), 1)
        logits = logits.masked_fill(~counted[..., None], 0.0)
    likely = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    loss = -likely.gather(2, targets[..., None])[..., 0]
    if smoothing:
        loss = (1 - smoothing) * loss - smoothing * likely.mean(-1)
    return (loss if counted is None else loss.masked_fill(~counted, 0.0)).sum(1)


def hybrid_loss(
    ctc_logits: Float[Tensor, "B T C"],
    attention_logits: Float[Tensor, "B P V"],
    labels: Int[Tensor, "B L"],
    *,
    frame_mask: Bool[Tensor, "B T"] | None = None,
    label_mask: Bool[Tensor, "B L"] | None = None,
    end: int,
    blank: int = 0,
    ctc_weight: float = 0.3,
    smoothing: float = 0.0,
    normalise: Literal["utterance", "token"] = "utterance",
    zero_infinity: bool | None = None,
) -> HybridLoss:
    """lambda CTC + (1 - lambda) cross entropy; see the head of this file.

    Args:
        ctc_logits: of C classes at T frames.
        attention_logits: of the decoder, after the start and after each label.
        labels: what was said.
        frame_mask, label_mask: True for real frames, and for real labels, which stand first.
        end: the decoder's token after the last label.
        blank: the class of CTC that is no label.
        ctc_weight: lambda.
        smoothing: of the decoder's labels; see :func:`attention_loss`.
        normalise: "utterance": the mean over utterances of sums over their labels; "token": each part over the number
            of its labels, so that long utterances weigh more.
        zero_infinity: of :func:`regard.ops.ctc_loss.ctc_loss`.

    Raises:
        ValueError, TypeError: what the two parts refuse, or a weight that is none.

    Example:
        >>> labels = torch.tensor([[1, 2]])
        >>> hybrid_loss(torch.zeros(1, 5, 4), torch.zeros(1, 3, 4), labels, end=3).attention
        tensor([4.1589])
    """
    if not 0 <= ctc_weight <= 1 or normalise not in ("utterance", "token"):
        raise ValueError(f'ctc_weight={ctc_weight}, normalise={normalise!r}: from 0 to 1; "utterance" or "token"')
    masks: dict[str, Any] = {"frame_mask": frame_mask, "label_mask": label_mask}
    ctc = ctc_loss(ctc_logits, labels, **masks, blank=blank, reduction="none", zero_infinity=zero_infinity)
    attention = attention_loss(attention_logits, labels, label_mask=label_mask, end=end, smoothing=smoothing)
    counts = torch.ones_like(ctc), torch.ones_like(ctc)
    if normalise == "token":
        lengths = torch.full_like(ctc, labels.shape[1]) if label_mask is None else label_mask.sum(1).to(ctc.dtype)
        counts = lengths, lengths + 1
    weights = ctc_weight, 1 - ctc_weight
    parts = [
        weight * part.sum() / count.sum().clamp(min=1)
        for weight, part, count in zip(weights, (ctc, attention), counts, strict=True)
        if weight
    ]
    return HybridLoss(torch.stack(parts).sum(), ctc, attention)
