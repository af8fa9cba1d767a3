"""Music as sound: files, parts that lie apart, windows, the score of a part, and what needs no network."""

import math

import pytest
import torch
from torch.testing import assert_close

from regard.models.sound_loss import ALONE, magnitudes
from regard.ops.codebook import nearest_code
from regard.registry import UnsupportedError
from regard.tasks import music
from regard.tasks.documents import InputError
from regard.tasks.music import RATE, Music, Song, build_vqvae, read_songs, split_songs
from regard.tasks.music_baselines import coloured_noise, learn_frames, mean_spectrum, music_baselines
from tests.tasks.music_here import tune


@pytest.fixture(scope="module")
def songs():
    return split_songs([tune("a", 50), tune("b", 60, 1), tune("short", 5, 2)])


@pytest.fixture(scope="module")
def task(songs):
    return Music(songs, length=2048, batch=3, seed=4)


def test_parts_lie_apart_and_beginnings_and_ends_are_learned_from():
    song = Song("a", torch.arange(50 * RATE, dtype=torch.float32))
    parts = split_songs([song])
    held = [*parts.validation, *parts.test]
    assert [len(p.waveform) for p in held] == [5 * RATE, 5 * RATE]
    assert (float(parts.validation[0].waveform[0]), float(parts.test[0].waveform[0])) == (15 * RATE, 30 * RATE)
    for learned in parts.train:
        for passage in held:
            low, high = float(passage.waveform[0]) - RATE, float(passage.waveform[-1]) + RATE
            assert float(learned.waveform[-1]) < low or float(learned.waveform[0]) > high
    assert float(parts.train[0].waveform[0]) == 0
    assert float(parts.train[-1].waveform[-1]) == 50 * RATE - 1
    assert sum(len(p.waveform) for p in parts.train) == 36 * RATE


def test_files_and_folders_are_read_and_silence_is_left_out(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    (tmp_path / "deep").mkdir()
    soundfile.write(tmp_path / "deep" / "a.wav", tune("a", 50).waveform.numpy(), RATE)
    soundfile.write(tmp_path / "b.flac", torch.zeros(RATE).numpy(), RATE)
    (tmp_path / "notes.txt").write_text("not sound")
    found = read_songs([tmp_path])
    assert {song.name for song in found.train} == {"a.wav"}
    assert found.remarks == ("b.flac: silent: no sample above -80 dB",)
    assert found.describe() == "1 song, 0.6 minutes to learn from, at 8,000 Hz"
    assert found.digest != read_songs([tmp_path / "deep", tmp_path / "deep" / "a.wav"]).digest
    with pytest.raises(InputError, match="nothing but silence"):
        read_songs([tmp_path / "b.flac"])
    with pytest.raises(InputError, match="is no audio"):
        read_songs([tmp_path / "notes.txt"])


def test_refusals_of_data(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="does not exist"):
        read_songs([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="no sound in"):
        read_songs([tmp_path])
    monkeypatch.setattr(music, "PACKAGE", tmp_path / "package")
    with pytest.raises(InputError, match=r"apt-get install asterisk-moh-opsound-wav.*--data"):
        read_songs()
    with pytest.raises(InputError, match="no song of 45 seconds"):
        split_songs([tune("a", 44)])
    with pytest.raises(InputError, match="longer than a window"):
        Music(split_songs([tune("a", 50)]), length=20 * RATE)
    quiet = split_songs([Song("a", tune("a", 50).waveform * (torch.arange(50 * RATE) < 29 * RATE))])
    with pytest.raises(InputError, match="nothing but silence"):
        Music(quiet)


def test_batches_are_windows_of_the_training_part_and_a_function_of_the_step(task, songs):
    batch = task.batch(7)
    assert batch.tokens.shape == (3, 2048, 1)
    assert batch.tokens is batch.targets
    assert batch.tokens.equal(task.batch(7).tokens)
    assert not batch.tokens.equal(task.batch(8).tokens)
    for row in batch.tokens[..., 0]:
        starts = [
            (song.waveform, int(place))
            for song in songs.train
            for place in (song.waveform == row[0]).nonzero().flatten()
        ]
        assert any(wave[start : start + 2048].equal(row) for wave, start in starts)


def test_quality_is_the_sum_of_distances_over_the_sum_of_sizes(task):
    rows, amounts, expected = [], [], [[0.0, 0.0, 0.0, 0.0] for _ in range(2)]
    for batch in task.held_out("validation"):
        y = torch.stack((0.5 * batch.tokens, torch.zeros_like(batch.tokens)), 1)
        rows.append(task.scores(y, batch))
        amounts += batch.amounts
        for level in range(2):
            for x, out in zip(batch.tokens[..., 0], y[:, level, :, 0], strict=True):
                whole = magnitudes(x[None], ALONE)
                expected[level][0] += float((whole - magnitudes(out[None], ALONE)).square().sum().sqrt())
                expected[level][1] += float(whole.square().sum().sqrt())
                expected[level][2] += float(x.square().sum())
                expected[level][3] += float((x - out).square().sum())
    scores, told = task.tally(torch.cat(rows).double())
    assert_close(float(scores.sum()) / sum(amounts), 0.5, rtol=1e-5, atol=0)
    for level, (distance, size, power, error) in enumerate(expected):
        assert_close(told[f"spectral convergence, level {level}"], distance / size, rtol=1e-5, atol=0)
        assert_close(
            told[f"signal to noise in dB, level {level}"], 10 * math.log10(power / error), rtol=1e-4, atol=1e-5
        )


def test_a_step_of_training(task):
    model = task.model(8, 1, codes=16, code_width=4)
    batch = task.batch(0)
    prediction, told = model(batch.tokens, **batch.options, return_aux=True)
    loss = task.loss(prediction, batch)
    (loss + told["loss/commit"]).backward()
    assert loss.isfinite()
    assert model.hops == (16, 64)
    with pytest.raises(UnsupportedError, match="full with 1 heads"):
        task.model(8, 1, 1, "full")
    assert len(build_vqvae().codebooks[1].table) == 512


def test_noise_has_the_spectrum_that_it_is_given():
    windows = torch.stack([tune("a", 0.256, seed).waveform for seed in range(8)])
    spectrum = mean_spectrum(windows)
    assert_close(spectrum, torch.fft.rfft(windows).abs().square().mean(0).sqrt())
    noise = coloured_noise(spectrum, windows.new_zeros(400, 2048), torch.Generator().manual_seed(0))
    ratio = torch.fft.rfft(noise).abs().square().mean(0).sqrt() / spectrum
    assert (ratio[1:-1] - 1).abs().mean() < 0.05


def test_frames_are_learned_by_k_means():
    windows = torch.cat((torch.randn(8, 64) * 0.01, torch.randn(8, 64) * 0.01 + 1))
    table = learn_frames(windows, 4, 2)
    assert_close(table.mean(-1).sort().values, torch.tensor([0.0, 1.0]), rtol=0, atol=0.02)
    frames = windows.unfold(-1, 4, 4).flatten(0, 1)
    codes = nearest_code(frames, table)[0]
    for code in range(2):  # no code would rather be somewhere else
        assert_close(table[code], frames[codes == code].mean(0), rtol=0, atol=1e-4)


def test_baselines(task, monkeypatch):
    monkeypatch.setattr("regard.tasks.music_baselines.CODES", 32)
    found = music_baselines(task, "validation")
    assert found["silence"] == 1.0
    assert 0.9 < found["noise"] < 1.5
    assert found["k-means of frames, level 0"] < found["k-means of frames, level 1"] < 1.0
