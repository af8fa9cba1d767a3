import hashlib
from itertools import pairwise

import pytest
import torch

from regard.models.speech_recognizer import SpeechRecognizer
from regard.tasks import speech_frames
from regard.tasks.documents import InputError
from regard.tasks.like_length import batches_of_like_length
from regard.tasks.speech import Speech
from regard.tasks.speech_baselines import LIKE_LENGTH, speech_baselines
from regard.tasks.speech_data import Prompt, Prompts
from regard.tasks.speech_frames import Variation, frames_of
from regard.train.budget import Budget
from regard.train.trainer import Trainer

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")

PARTS = ("train", "train", "train", "validation", "test")
TONES = {"a": 400, "b": 900, "c": 1500, " ": 0}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "cache"))


def spoken(text, rate=8000):
    """A tone of a fifth of a second for each letter."""
    times = torch.arange(rate // 5) / rate
    return torch.cat([0.3 * torch.sin(2 * torch.pi * TONES[sign] * times) for sign in text])


def recorded(folder, texts, parts=PARTS, pace=(0.0, 99.0)):
    prompts = []
    for number, text in enumerate(texts):
        path = folder / f"{number}.wav"
        soundfile.write(path, spoken(text).numpy(), 8000)
        prompts.append(Prompt(str(number), path, text, parts[number % len(parts)]))
    return Prompts("tones", tuple(prompts), (), pace)


def made(folder, texts=("abc", "cab a", "b", "ba", "ac"), **options):
    return Speech(recorded(folder, texts), **{"num_mels": 16, "seconds": 1.0, **options})


def test_frames_are_computed_once_and_long_recordings_are_not(tmp_path, monkeypatch):
    prompts = recorded(tmp_path, ["abc", "abcabcabc"]).prompts
    first = frames_of(prompts, 8000, 16, longest=1.0)
    assert [tuple(one.shape) for one in first] == [(60, 16), (180, 16)]
    assert not first[0].is_meta
    assert first[1].is_meta
    assert first[0].mean().abs() < 1e-2
    assert first[0].std() == pytest.approx(1, abs=0.02)
    monkeypatch.setattr(speech_frames, "read_audio", lambda *_: pytest.fail("heard again"))
    again = frames_of(prompts, 8000, 16, longest=1.0)
    assert torch.equal(first[0], again[0])
    monkeypatch.undo()
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "cache"))
    soundfile.write(prompts[0].path, spoken("bb").numpy(), 8000)
    assert len(frames_of(prompts, 8000, 16, longest=1.0)[0]) == 40


def test_variation_stretches_and_hides(tmp_path):
    frames = torch.ones(100, 20)
    generator = torch.Generator().manual_seed(0)
    plain = Variation(tempo=0, bands=0, gaps=0).apply(frames, 1, generator)
    assert torch.equal(plain, frames)
    assert torch.equal(frames, torch.ones(100, 20))
    lengths = [len(Variation(tempo=0.2, bands=0, gaps=0).apply(frames, 1, generator)) for _ in range(200)]
    assert 80 <= min(lengths) < 85
    assert 115 < max(lengths) <= 120
    assert min(len(Variation(tempo=0.2).apply(frames, 97, generator)) for _ in range(50)) == 97
    for _ in range(50):
        varied = Variation(tempo=0, bands=1, band=0.2, gaps=1, gap=0.1).apply(frames, 1, generator)
        hidden = varied == 0
        assert hidden.all(1).sum() < 10
        assert hidden.all(0).sum() < 4
        assert hidden.sum() == hidden.all(1).sum() * 20 + hidden.all(0).sum() * (100 - hidden.all(1).sum())


def test_batches_depend_on_seed_and_step_alone(tmp_path):
    first, second, other = made(tmp_path), made(tmp_path), made(tmp_path, seed=1)
    for step in (5, 0, 2):
        one, two = first.batch(step), second.batch(step)
        assert torch.equal(one.tokens, two.tokens)
        assert one.units == two.units
    assert any(not torch.equal(first.batch(n).tokens[:1, :9], other.batch(n).tokens[:1, :9]) for n in range(3))
    seen = [unit for step in range(first.steps_a_pass) for unit in first.batch(step).units]
    assert sorted(seen) == ["0", "1", "2"]


def test_every_step_and_every_seed_varies_anew(tmp_path):
    task, other = (made(tmp_path, ("abc", "abc", "abc", "a", "b"), seconds=99.0, seed=seed) for seed in (0, 1))
    lengths = [sorted(given.batch(step).key_mask.sum(1).tolist()) for given in (task, other) for step in (0, 1)]
    assert len({tuple(some) for some in lengths}) == 4


def test_states_that_are_padding_make_no_room_for_labels(tmp_path):
    task = made(tmp_path, seconds=99.0, variation=None, ctc_weight=1.0)
    batch = task.batch(0)
    log_probs = torch.zeros(3, 25, 5).log_softmax(-1)
    certain = torch.tensor([0.0, *[-torch.inf] * 4])
    row = int(batch.context_mask.sum(1).argmax())
    log_probs[row, 3:] = certain  # three states for five labels
    with pytest.raises(ValueError, match="1 of 3"):
        task.loss(log_probs, batch)


def test_a_batch_is_padded_and_its_masks_say_so(tmp_path):
    task = made(tmp_path, seconds=99.0, variation=None)
    batch = task.batch(0)
    assert task.alphabet.signs == " abc"
    assert batch.tokens.shape == (3, 100, 16)
    assert batch.context is batch.targets
    for row, unit in enumerate(batch.units):
        text = task.parts["train"][int(unit)].text
        assert batch.key_mask[row].sum() == 20 * len(text)
        assert not batch.tokens[row, 20 * len(text) :].any()
        assert task.alphabet.decode(batch.targets[row, batch.context_mask[row]].tolist()) == text
        assert batch.amounts[row] == len(text)
        assert torch.equal(batch.tokens[row, : 20 * len(text)], task.frames(task.parts["train"][int(unit)]))


def test_what_cannot_be_learned_from_is_left_out_and_told(tmp_path):
    texts = ["abc", "a", "b", "c", "ba", "abcabcabcabcabc", "ca"]
    prompts = recorded(tmp_path, texts)
    soundfile.write(prompts.prompts[6].path, spoken("ca").numpy()[:520], 8000)
    soundfile.write(tmp_path / "7.wav", spoken("c").numpy()[:80], 8000)
    fast = Prompt("7", tmp_path / "7.wav", "c", "train")
    parts = ("train", "train", "train", "validation", "test", "train", "train")
    some = tuple(Prompt(p.name, p.path, p.text, part) for p, part in zip(prompts.prompts, parts, strict=True))
    task = Speech(Prompts("tones", (*some, fast), ("1 before",), (4, 30)), num_mels=16, longest=2.0)
    assert task.remarks == [
        "1 before",
        "1 of more than 2 s left out",
        "1 said faster than one character in four frames left out",
        "1 with less than 4 or more than 30 characters a second left out",
    ]
    assert task.sizes() == {"train": (3, 100), "validation": (1, 20), "test": (1, 40)}
    with pytest.raises(InputError, match="no recording of the validation part is left"):
        Speech(Prompts("tones", some[:3]), num_mels=16)


def test_equal_neighbours_need_a_state_between_them():
    from regard.tasks.speech import _least

    assert [_least(text) for text in ("", "a", "ab", "aa", "aab")] == [0, 4, 8, 12, 16]


def test_scores_are_wrong_characters_and_words(tmp_path):
    task = made(tmp_path, ("abc", "cab a", "b", "ba c", "ac"))
    (batch,) = task.held_out("validation")
    said = torch.full((1, 20, 5), -9.0)
    said[..., 0] = -1.0  # blank
    for place, label in enumerate(task.alphabet.encode("bac")):
        said[0, 3 * place, label] = 0.0
    scores = task.scores(said.log_softmax(-1), batch)
    assert scores.tolist() == [[1.0, 2.0, 2.0]]
    characters, told = task.tally(torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 2.0]]).double())
    assert characters.tolist() == [1, 0]
    assert told == {"word error rate": 0.5}


def test_what_the_training_part_never_writes_counts_as_wrong(tmp_path):
    task = made(tmp_path, ("ab", "b a", "b", "ca", "b"))
    (batch,) = task.held_out("validation")
    said = torch.full((1, 10, 4), -9.0)
    said[:, :, 0], said[0, 5, task.alphabet.encode("a")[0]] = -1.0, 0.0
    assert batch.amounts == (2.0,)
    assert task.scores(said.log_softmax(-1), batch)[0, 0] == 1


def test_the_loss_is_of_real_states_and_weighted(tmp_path):
    task = made(tmp_path, seconds=99.0, variation=None, ctc_weight=0.25)
    model = task.model(8, 1, 2, "full", channels=2).eval()
    assert isinstance(model, SpeechRecognizer)
    assert model.ctc_weight == 0.25
    batch = task.batch(0)
    prediction, told = model(batch.tokens, **batch.options, return_aux=True)
    assert "loss/attention" in told
    losses = []
    for row in range(3):
        frames, labels = batch.tokens[row][batch.key_mask[row]], batch.targets[row][batch.context_mask[row]]
        log_probs = model(frames[None])[0]
        lengths = torch.tensor([len(log_probs)]), torch.tensor([len(labels)])
        losses.append(torch.nn.functional.ctc_loss(log_probs[:, None], labels[None], *lengths))
    assert torch.allclose(task.loss(prediction, batch), 0.25 * torch.stack(losses).mean(), atol=1e-5)
    alone = made(tmp_path, ctc_weight=1.0).model(8, 1, 2, "full", channels=2)
    assert alone.decoder is None


def test_baselines_hear_nothing(tmp_path):
    texts = ("abc", "ab", "aba", "ba", "ab cab c")
    task = made(tmp_path, texts)
    found = speech_baselines(task)
    assert found["nothing"] == 1
    assert found["the commonest text"] == pytest.approx(6 / 8)  # "ab"
    assert found[LIKE_LENGTH] == pytest.approx(5 / 8)  # "aba" and "abc" are equally long, and "abc" is the first
    assert set(found) == {"nothing", "the commonest text", LIKE_LENGTH, "the likeliest characters"}
    assert found["the likeliest characters"] < 1


def test_lengths_are_alike_and_every_example_stands_once():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.rand(200, generator=generator) * 100
    batches = batches_of_like_length(lengths, 20, 0.0, generator)
    assert sorted(number for batch in batches for number in batch) == list(range(200))
    ranges = sorted((float(lengths[batch].min()), float(lengths[batch].max())) for batch in batches)
    assert all(one[1] <= other[0] for one, other in pairwise(ranges))
    totals = [float(lengths[batch].sum()) for batch in batches]
    assert max(totals) < 1.5 * min(totals)
    assert batches != batches_of_like_length(lengths, 20, 30.0, generator)


@pytest.mark.slow
def test_learns_tones(tmp_path):
    letters = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(30)]
    texts = ["".join("abc"[int(sign, 16) % 3] for sign in digest[:4]) for digest in letters]
    parts = ("train",) * 8 + ("validation", "test")
    task = Speech(recorded(tmp_path, texts, parts), num_mels=16, seconds=5.0, ctc_weight=1.0)
    torch.manual_seed(0)
    trainer = Trainer(task.model(24, 1, 2, "full", channels=4), task, Budget(steps=250), rate=5e-3, device="cpu")
    assert trainer.judge("test").quality > 0.7
    while trainer.spent < 1:
        trainer.step()
    assert trainer.judge("test").quality < 0.1
