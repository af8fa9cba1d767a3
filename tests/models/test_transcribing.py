import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from regard.models.speech_recognizer import SpeechRecognizer
from regard.models.transcribing import Timed, TimedWord, timed_labels, timed_words, transcribe
from regard.ops.ctc_loss import ctc_loss
from regard.ops.ctc_search import GreedySearch, PrefixSearch
from regard.registry import UnsupportedError

RATE, SECONDS = 2000, 0.12
STEPS, RATE_OF_LEARNING = 60, 5e-3
SAID = [(1, 2, 3), (3, 3, 1), (2, 1, 2, 4), (4, 2)]
"""Utterances of tones: after so many steps every method must spell each of them without a mistake."""


def small(num_labels=5, **options):
    torch.manual_seed(0)
    sizes = {"sample_rate": RATE, "num_mels": 12, "channels": 8, "convolution": 3, "dropout": 0.0}
    return SpeechRecognizer(num_labels, 24, 1, 2, **{**sizes, "decoder_options": {"dim": 24}, **options})


def tones():
    """Label n is a tone of 150 n Hz in a little noise, half as long as what stands between two of them."""
    generator = torch.Generator().manual_seed(0)
    rows, time = [], torch.arange(round(RATE * SECONDS)) / RATE
    for labels in SAID:
        gap = torch.zeros(len(time) // 2)
        parts = [gap]
        for label in labels:
            parts += [(2 * math.pi * 150 * label * time).sin(), gap]
        row = torch.cat(parts)
        rows.append(row + 0.01 * torch.randn(row.shape, generator=generator))
    lengths = torch.tensor([len(row) for row in rows])
    counts = torch.tensor([len(labels) for labels in SAID])
    labels = torch.nn.utils.rnn.pad_sequence([torch.tensor(labels) for labels in SAID], batch_first=True)
    x = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return x, torch.arange(x.shape[1]) < lengths[:, None], labels, torch.arange(4) < counts[:, None]


def taught(model):
    x, mask, labels, label_mask = tones()
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE_OF_LEARNING)
    for _ in range(STEPS):
        optimiser.zero_grad()
        model.loss(x, labels, key_mask=mask, label_mask=label_mask).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
    return model.eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mechanism": "local", "chunk": 4},
        pytest.param({"decoder": "transformer"}, marks=pytest.mark.slow),
        pytest.param({"mechanism": "linear_transformer"}, marks=pytest.mark.slow),
        pytest.param({"mechanism": "local", "causal": True, "window": 4}, marks=pytest.mark.slow),
    ],
)
def test_tones_are_learned_by_heart(options):
    model, (x, mask, labels, label_mask) = taught(small(**options)), tones()
    for method in ("greedy", "beam", "joint", "attention"):
        found = [transcript.labels for transcript in transcribe(model, x, mask, method=method, beams=3)]
        assert found == SAID, method
    for spans, row, said in zip(
        timed_labels(model, x, labels, key_mask=mask, label_mask=label_mask), mask, SAID, strict=True
    ):
        assert tuple(timed.label for timed in spans) == said
        times = [time for timed in spans for time in (timed.start, timed.end)]
        assert times == sorted(times)
        assert times[-1] <= math.ceil(int(row.sum()) / RATE / model.frame_seconds) * model.frame_seconds
        assert all(timed.probability > 0.5 for timed in spans)


@pytest.mark.parametrize("decoder", ["lstm", "transformer"])
@pytest.mark.parametrize(("method", "weight"), [("joint", 0.3), ("attention", 0.0), ("beam", 1.0)])
@torch.no_grad()
def test_with_beams_enough_a_search_finds_the_best_of_all(decoder, method, weight):
    model = small(decoder=decoder, num_labels=3).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    x = torch.randn(2, 240)
    encoded = model.encode(x)
    log_probs = model.log_probs(encoded)
    assert log_probs.shape[1] == 3
    best = [(-math.inf, ())] * 2
    longest = 4 if method == "attention" else 3
    for said in itertools.chain.from_iterable(itertools.product((1, 2), repeat=n) for n in range(longest + 1)):
        labels = torch.tensor([said] * 2, dtype=torch.long).view(2, len(said))
        nats = model.decoder_logits(encoded, labels).log_softmax(-1)
        spelled = nats.gather(2, F.pad(labels, (0, 1), value=model.end)[..., None]).sum((1, 2))
        heard = -ctc_loss(log_probs, labels, reduction="none", zero_infinity=False)
        score = spelled if method == "attention" else weight * heard + ((1 - weight) * spelled if weight < 1 else 0)
        best = [max(old, (value, said)) for old, value in zip(best, score.tolist(), strict=True)]
    found = transcribe(model, x, method=method, beams=40)  # 0.3 is the default, and not for them all
    for (score, said), transcript in zip(best, found, strict=True):
        assert transcript.labels == said
        assert transcript.score == pytest.approx(score, abs=1e-4)


@torch.no_grad()
def test_searches_go_along_with_a_stream():
    model, x = small(mechanism="local", causal=True, window=4).eval(), torch.randn(2, 2000)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    memory, greedy, beam = model.begin_stream(2), GreedySearch(2), PrefixSearch(2, 5, beams=4)
    said = [[], []]
    for piece in x.split((1, 777, 300, 922), 1):
        log_probs, memory = model.stream(piece, memory)
        beam.read(log_probs)
        for labels, new in zip(said, greedy.read(log_probs), strict=True):
            labels += new
    last = model.finish(memory)
    beam.read(last)
    for labels, new in zip(said, greedy.read(last), strict=True):
        labels += new
    assert [tuple(labels) for labels in said] == [transcript.labels for transcript in transcribe(model, x)]
    whole = transcribe(model, x, method="beam", beams=4)
    for transcript, (best, *_) in zip(whole, beam.results(), strict=True):
        assert tuple(best.labels) == transcript.labels
        assert best.score == pytest.approx(transcript.score, abs=1e-3)


@pytest.mark.parametrize("method", ["greedy", "beam", "joint", "attention"])
def test_in_no_time_nothing_is_said(method):
    model = small().eval()
    assert transcribe(model, torch.zeros(2, 0), method=method) == [((), 0.0)] * 2
    heard = transcribe(model, torch.zeros(2, 900), torch.zeros(2, 900, dtype=torch.bool), method=method)
    assert [transcript.labels for transcript in heard] == [(), ()]


def test_times_are_those_of_the_likeliest_path(monkeypatch):
    model = small(sample_rate=2000).eval()
    path = torch.tensor([[0, 2, 2, 0, 1, 0, 3, 0], [4, 4, 4, 4, 0, 0, 0, 0]])
    log_probs = torch.full((2, 8, 5), 0.05).scatter(2, path[..., None], 0.8).log()
    monkeypatch.setattr(model, "log_probs", lambda encoded: log_probs)
    labels, label_mask = torch.tensor([[2, 1, 3], [4, 0, 0]]), torch.tensor([[True] * 3, [True, False, False]])
    first, second = timed_labels(model, torch.randn(2, 8 * 80), labels, label_mask=label_mask)
    expected = [Timed(2, 0.04, 0.12, 0.8), Timed(1, 0.16, 0.2, 0.8), Timed(3, 0.24, 0.28, 0.8)]
    for found, timed in zip((*first, *second), (*expected, Timed(4, 0.0, 0.16, 0.8)), strict=True):
        assert found == pytest.approx(timed)
    (one, other) = timed_words(first, space=1)
    assert one == TimedWord((2,), *first[0][1:])
    assert other == TimedWord((3,), *first[2][1:])


def test_words_are_what_stands_between_spaces():
    assert timed_words([], space=1) == []
    assert timed_words([Timed(1, 0.0, 0.1, 1.0)] * 3, space=1) == []
    (word,) = timed_words([Timed(1, 0.0, 0.1, 1.0), Timed(2, 0.1, 0.2, 0.9), Timed(3, 0.3, 0.4, 0.4)], space=1)
    assert word.labels == (2, 3)
    assert word[1:] == pytest.approx((0.1, 0.4, 0.6))


def test_refusals():
    model, x = small(decoder=None).eval(), torch.randn(1, 500)
    with pytest.raises(UnsupportedError, match="no decoder"):
        transcribe(model, x, method="joint")
    with pytest.raises(ValueError, match="method='fast' is none of"):
        transcribe(model, x, method="fast")
    with pytest.raises(UnsupportedError, match="does not search"):
        transcribe(model, x, language_model=object())
    with pytest.raises(ValueError, match="too few frames"):
        timed_labels(model, x[:, :100], torch.tensor([[1, 1, 1]]))
