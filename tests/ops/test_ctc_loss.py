"""-log p of labels as the sum over all paths; both engines, their gradients, masks, layouts, and too few frames."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.ops.ctc_loss import ctc_loss, infeasible, split_labels
from tests.ops.ctc_paths import NEVER, drawn, posteriors

LABELS = torch.tensor([[1, 1, 2], [2, 3, 1], [3, 0, 0], [0, 0, 0]])
REAL = torch.arange(3) < torch.tensor([3, 2, 1, 0])[:, None]
FRAMES = torch.arange(6) < torch.tensor([6, 4, 1, 5])[:, None]
WRONG = torch.tensor([[0, 4], [1, 2]])
LENGTHS = torch.tensor([2, 3])
BOTH = pytest.mark.parametrize("engine", ["own", "torch"])


def enumerated(log_probs, labels, blank=0):
    return -posteriors(log_probs, blank).get(tuple(labels.tolist()), NEVER)


@BOTH
@pytest.mark.parametrize("blank", [0, 3, 1])
def test_the_loss_is_the_sum_over_all_paths(engine, blank):
    logits = 1.5 * torch.randn(4, 6, 4, dtype=torch.float64)
    labels = torch.where(blank == LABELS, (blank + 1) % 4, LABELS)
    found = ctc_loss(
        logits, labels, frame_mask=FRAMES, label_mask=REAL, blank=blank, reduction="none", engine=engine,
        zero_infinity=False,
    )  # fmt: skip
    rows = zip(logits.log_softmax(-1), FRAMES, labels, REAL, strict=True)
    expected = [enumerated(row[frames], some[real], blank) for row, frames, some, real in rows]
    assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@BOTH
def test_left_padding_and_gaps_change_nothing(engine):
    logits = torch.randn(2, 9, 4, dtype=torch.float64, requires_grad=True)
    frames = torch.tensor([[0, 1, 1, 0, 1, 1, 1, 1, 0], [1, 0, 0, 0, 1, 1, 1, 1, 1]]).bool()
    labels = torch.tensor([[9, 2, 9, 2, 1], [1, 9, 9, 3, 3]])
    real = labels != 9
    dirty = logits.detach().masked_fill(~frames[..., None], math.nan).requires_grad_()
    found = ctc_loss(dirty, labels, frame_mask=frames, label_mask=real, reduction="none", engine=engine)
    alone = torch.stack(
        [ctc_loss(logits[b, frames[b]][None], labels[b, real[b]][None], engine="own", reduction="sum") for b in (0, 1)]
    )
    assert_close(found, alone, rtol=0, atol=1e-12)
    slopes = [torch.autograd.grad(loss.sum(), leaf)[0] for loss, leaf in ((found, dirty), (alone, logits))]
    assert_close(*slopes, rtol=0, atol=1e-12)
    assert not slopes[0][~frames].any()


def test_the_gradient_is_softmax_minus_occupancy():
    def loss(logits):
        return ctc_loss(
            logits, LABELS, frame_mask=FRAMES, label_mask=REAL, reduction="none", engine="own", zero_infinity=True
        )

    logits = torch.randn(4, 6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (logits,))
    weights = torch.randn(4, dtype=torch.float64)
    own = torch.autograd.grad((loss(logits) * weights).sum(), logits)[0]
    theirs = F.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), LABELS, FRAMES.sum(1), REAL.sum(1), 0, "none", zero_infinity=True
    )
    assert_close(own, torch.autograd.grad((theirs * weights).sum(), logits)[0], rtol=0, atol=1e-12)
    assert_close(own.sum(-1), torch.zeros(4, 6, dtype=torch.float64), rtol=0, atol=1e-12)


@BOTH
def test_too_few_frames_count_their_repeats(engine):
    labels = torch.tensor([[1, 1, 1], [1, 2, 1], [2, 2, 1]])
    logits = torch.zeros(3, 4, 3, requires_grad=True)
    assert infeasible(labels, frames=4).tolist() == [True, False, False]
    assert infeasible(labels, frames=torch.tensor([5, 2, 3])).tolist() == [False, True, True]
    with pytest.raises(ValueError, match=r"1 of 3 utterances have too few frames.*number 0 has 4 frames for 3 labels"):
        ctc_loss(logits, labels, engine=engine)
    infinite = ctc_loss(logits, labels, engine=engine, reduction="none", zero_infinity=False)
    assert infinite.isinf().tolist() == [True, False, False]
    zero = ctc_loss(logits, labels, engine=engine, reduction="none", zero_infinity=True)
    assert zero.tolist()[0] == 0
    assert_close(zero[1:], infinite[1:])
    slope = torch.autograd.grad(zero.sum(), logits)[0]
    assert slope.isfinite().all()
    assert not slope[0].any()
    assert slope[1].any()


def test_an_impossible_utterance_has_no_gradient_of_its_own():
    logits = torch.randn(2, 2, 3, requires_grad=True)
    loss = ctc_loss(logits, torch.tensor([[1, 1], [1, 2]]), engine="own", reduction="none", zero_infinity=False)
    assert loss[0] == math.inf
    slope = torch.autograd.grad(loss[1] + loss[0], logits)[0]
    assert slope.isfinite().all()
    assert slope[1].any()


@BOTH
def test_reductions_and_concatenated_labels(engine):
    logits = torch.randn(4, 8, 4)
    flat, lengths = LABELS[REAL], REAL.sum(1)

    def loss(reduction, labels=LABELS, **given):
        return ctc_loss(logits, labels, reduction=reduction, engine=engine, **given)

    single = loss("none", label_mask=REAL)
    theirs = F.ctc_loss(logits.log_softmax(-1).transpose(0, 1), LABELS, [8] * 4, lengths.tolist(), reduction="mean")
    assert_close(loss("mean", label_mask=REAL), theirs)
    assert_close(loss("sum", label_mask=REAL), single.sum())
    assert_close(loss("utterances", label_mask=REAL), single.sum() / 4)
    assert_close(loss("none", flat, label_lengths=lengths), single)
    assert split_labels(flat, lengths)[0].tolist() == [[1, 1, 2], [2, 3, 0], [3, 0, 0], [0, 0, 0]]


@BOTH
def test_nothing_said_and_nothing_heard(engine):
    nothing = torch.zeros(2, 0, dtype=torch.long)
    silence = drawn(2, 5, 3)
    assert_close(ctc_loss(silence, nothing, reduction="none", engine=engine), -silence[..., 0].sum(1))
    assert ctc_loss(silence[:, :0], nothing, reduction="none", engine=engine).tolist() == [0, 0]


@BOTH
def test_half_precision_is_summed_in_float32(engine):
    logits = torch.randn(2, 40, 5).bfloat16()
    labels = torch.randint(1, 5, (2, 9), generator=torch.Generator().manual_seed(0))
    found = ctc_loss(logits, labels, engine=engine, zero_infinity=True)
    assert found.dtype == torch.float32
    assert_close(found, ctc_loss(logits.float(), labels, engine=engine, zero_infinity=True))


def test_probabilities_of_zero_give_no_nan():
    log_probs = torch.tensor([[[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]).log().requires_grad_()
    found = ctc_loss(log_probs, torch.tensor([[1]]), engine="own")
    assert_close(found, torch.tensor(0.5).log().neg())


def test_refusals():
    logits, labels = torch.randn(2, 6, 4), torch.tensor([[1, 2], [3, 1]])
    wrong = [
        (r"labels \[0, 4\]: a label is a class from 0 to 3, and not the blank 0", (logits, WRONG, {})),
        ("blank=4 is none of the 4 classes", (logits, labels, {"blank": 4})),
        ("scores are torch.int64", (logits.long(), labels, {})),
        ("labels have shape", (logits, labels[:1], {})),
        (r"4 concatenated labels and label_lengths \[2, 3\]", (logits, labels.flatten(), {"label_lengths": LENGTHS})),
        ("no label_lengths", (logits, labels.flatten(), {})),
        ("label_mask", (logits, labels, {"label_lengths": torch.tensor([2, 2])})),
        ("frame_mask has shape", (logits, labels, {"frame_mask": torch.ones(2, 5, dtype=torch.bool)})),
        ("reduction='all'", (logits, labels, {"reduction": "all"})),
    ]  # fmt: skip
    for words, (given, said, options) in wrong:
        with pytest.raises(ValueError, match=words):
            ctc_loss(given, said, **options)
    for words, (said, options) in {
        "labels are torch.float32": (labels.float(), {}),
        "frame_mask is torch.int64": (labels, {"frame_mask": torch.ones(2, 6).long()}),
    }.items():
        with pytest.raises(TypeError, match=words):
            ctc_loss(logits, said, **options)
