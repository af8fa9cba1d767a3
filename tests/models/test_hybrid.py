"""The hybrid objective as loops: end, label smoothing, both normalisations, weights."""

import math

import pytest
import torch
from torch.testing import assert_close

from regard.models.hybrid import attention_loss, hybrid_loss
from regard.ops.ctc_loss import ctc_loss

LABELS = torch.tensor([[1, 2, 2], [3, 0, 0], [0, 0, 0]])
REAL = torch.arange(3) < torch.tensor([3, 1, 0])[:, None]
END = 4


def logits():
    return torch.randn(3, 4, 5, dtype=torch.float64)


def summed(likely, labels, smoothing):
    """One utterance."""
    total = 0.0
    for row, label in zip(likely, [*labels.tolist(), END], strict=False):
        total -= (1 - smoothing) * row[label].item() + smoothing * row.mean().item()
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_of_labels_and_end(smoothing):
    given = logits()
    dirty = given.clone()
    dirty[1, 2:], dirty[2, 1:] = math.nan, math.nan
    found = attention_loss(dirty, LABELS, label_mask=REAL, end=END, smoothing=smoothing)
    rows = zip(given.log_softmax(-1), LABELS, REAL, strict=True)
    expected = [summed(likely, labels[real], smoothing) for likely, labels, real in rows]
    assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    dirty.requires_grad_()
    attention_loss(dirty, LABELS, label_mask=REAL, end=END, smoothing=smoothing).sum().backward()
    assert dirty.grad.isfinite().all()
    assert not dirty.grad[1, 2:].any()


@pytest.mark.parametrize("normalise", ["utterance", "token"])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_weighted_sum(weight, normalise):
    frames, given = torch.randn(3, 8, 5, dtype=torch.float64), logits()
    found = hybrid_loss(frames, given, LABELS, label_mask=REAL, end=END, ctc_weight=weight, normalise=normalise)
    ctc = ctc_loss(frames, LABELS, label_mask=REAL, reduction="none")
    attention = attention_loss(given, LABELS, label_mask=REAL, end=END)
    assert_close(found.ctc, ctc)
    assert_close(found.attention, attention)
    counts = (3, 3) if normalise == "utterance" else (4, 7)
    expected = weight * ctc.sum() / counts[0] + (1 - weight) * attention.sum() / counts[1]
    assert_close(found.loss, expected)


def test_a_part_without_weight_has_no_say():
    options = {"label_mask": REAL, "end": END, "ctc_weight": 0.0, "zero_infinity": False}
    found = hybrid_loss(torch.randn(3, 2, 5), logits(), LABELS, **options)
    assert found.ctc[0] == math.inf
    assert found.loss.isfinite()


def test_refusals():
    given, frames = logits(), torch.randn(3, 8, 5)
    for words, options in {
        "end=5": {"end": 5},
        "smoothing=1.0": {"end": END, "smoothing": 1.0},
        "real labels stand first": {"end": END, "label_mask": REAL.flip(1)},
        r"labels \[2\]: .* not the end 2": {"end": 2},
    }.items():
        with pytest.raises(ValueError, match=words):
            attention_loss(given, LABELS, **options)
    with pytest.raises(ValueError, match=r"the decoder answers \(B, L \+ 1, V\)"):
        attention_loss(given[:, :3], LABELS, end=END)
    for options in ({"ctc_weight": 1.2}, {"normalise": "all"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            hybrid_loss(frames, given, LABELS, end=END, **options)
