import sys

import pytest
import torch

from regard.tasks.audio import clipped_share, read_audio, resample, write_audio
from regard.tasks.documents import InputError

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")


def tone(frequency, rate, seconds=0.5, peak=0.5):
    return peak * torch.sin(2 * torch.pi * frequency * torch.arange(int(rate * seconds)) / rate)


def stored(path, *channels, rate=8000, subtype="FLOAT"):
    soundfile.write(path, torch.stack(channels, 1).numpy(), rate, subtype=subtype)
    return path


@pytest.mark.parametrize("ending", [".wav", ".flac", ".ogg", ".WAV"])
def test_what_is_written_is_read_back(tmp_path, ending):
    wave = tone(440, 16000)
    assert write_audio(tmp_path / f"a{ending}", wave, 16000) == ()
    sound = read_audio(tmp_path / f"a{ending}")
    assert (sound.rate, sound.source_rate, sound.channels, sound.remarks) == (16000, 16000, 1, ())
    assert sound.seconds == 0.5
    assert sound.waveform.dtype == torch.float32
    # 16 bits; a codec that throws away what is not heard
    assert (sound.waveform - wave).abs().max() < (0.05 if ending == ".ogg" else 1 / 32767)
    assert len(list(tmp_path.iterdir())) == 1


def test_resampling_keeps_what_fits_and_drops_what_does_not(tmp_path):
    path = stored(tmp_path / "a.wav", tone(1000, 16000) + tone(6000, 16000, peak=0.4), rate=16000)
    sound = read_audio(path, 8000)
    assert sound.remarks == ("resampled from 16,000 to 8,000 Hz",)
    assert len(sound.waveform) == 4000
    middle = slice(200, -200)
    assert (sound.waveform - tone(1000, 8000))[middle].abs().max() < 2e-3  # 6 kHz would come back as 2 kHz, 0.4 high
    up = resample(tone(1000, 8000), 8000, 44100)
    assert (up - tone(1000, 44100))[1000:-1000].abs().max() < 2e-3
    same = tone(1000, 8000)
    assert resample(same, 8000, 8000) is same


def test_stereo_is_the_mean_and_cancelling_channels_are_told(tmp_path):
    left, right = tone(440, 8000), tone(700, 8000)
    sound = read_audio(stored(tmp_path / "a.wav", left, right))
    assert torch.allclose(sound.waveform, (left + right) / 2)
    assert (sound.channels, sound.remarks) == (2, ("2 channels mixed down to one",))
    against = read_audio(stored(tmp_path / "b.wav", left, -left))
    assert against.remarks[1] == "silent: the channels cancel each other out"


def test_silence_is_told(tmp_path):
    assert read_audio(stored(tmp_path / "a.wav", torch.zeros(80))).remarks == ("silent: no sample above -80 dB",)
    assert read_audio(stored(tmp_path / "b.wav", torch.full((80,), 2e-4))).remarks == ()


def test_clipping_is_told_and_single_full_samples_are_not(tmp_path):
    loud = tone(100, 8000, peak=2.0).clamp(-1, 1)
    sound = read_audio(stored(tmp_path / "a.wav", loud, subtype="PCM_16"))
    assert sound.clipped == pytest.approx(float((loud.abs() == 1).double().mean()), abs=0.01)
    assert sound.clipped > 0.5
    assert sound.remarks[0].startswith("clipped: 6")
    whole = torch.zeros(20, 1)
    whole[3], whole[7:9], whole[12], whole[13], whole[14] = 1.0, 1.0, 1.0, -1.0, 1.0
    assert clipped_share(whole) == 0
    whole[9] = 1.0
    assert clipped_share(whole) == 3 / 20
    assert clipped_share(torch.ones(2, 1)) == 0


def test_louder_than_full_scale_becomes_softer_and_is_told(tmp_path):
    sound = read_audio(stored(tmp_path / "a.wav", tone(100, 8000, peak=4.0)))
    assert sound.waveform.abs().max() == 1
    assert torch.allclose(sound.waveform, tone(100, 8000, peak=1.0), atol=2e-3)
    assert sound.remarks[0] == "peaks of 4.00: made softer by that factor"
    told = write_audio(tmp_path / "b.wav", tone(100, 8000, peak=4.0), 8000)
    assert told == ("peaks of 4.00: made softer by that factor",)
    again = read_audio(tmp_path / "b.wav")
    assert torch.allclose(again.waveform, tone(100, 8000, peak=1.0), atol=2e-3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "not a regular file"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"no sound at all" * 9), "no audio that libsndfile can read"),
        (lambda path: stored(path, torch.zeros(0)), "0 seconds long"),
        (lambda path: stored(path, torch.tensor([0.0, float("nan")])), "samples that are no numbers"),
        (lambda path: stored(path, torch.zeros(1), rate=96000), "shorter than one sample at 8,000 Hz"),
    ],
)
def test_what_is_no_sound_is_refused(tmp_path, make, words):
    path = tmp_path / "a.wav"
    make(path)
    with pytest.raises(InputError, match=words):
        read_audio(path, 8000)


def test_damaged_files_are_refused(tmp_path):
    write_audio(tmp_path / "a.flac", torch.rand(9000) - 0.5, 8000)
    data = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"a\.flac"):
        read_audio(tmp_path / "a.flac")


def test_files_over_the_limit_are_refused_before_they_are_read(tmp_path, monkeypatch):
    path = stored(tmp_path / "a.wav", torch.zeros(100), torch.zeros(100))
    monkeypatch.setattr("regard.tasks.audio.LARGEST", 799)
    with pytest.raises(InputError, match="takes 800 bytes as numbers: over 799"):
        read_audio(path)


def test_sound_that_cannot_be_written_is_refused_and_leaves_nothing(tmp_path):
    for path, wave, words in (
        (tmp_path / "a.mp4", torch.zeros(9), r"written as \.wav, \.flac, \.ogg"),
        (tmp_path / "a.wav", torch.zeros(0), "no sample"),
        (tmp_path / "a.wav", torch.tensor([float("inf")]), "no numbers"),
        (tmp_path / "none" / "a.wav", torch.zeros(9), "cannot write"),
    ):
        with pytest.raises(InputError, match=words):
            write_audio(path, wave, 8000)
    assert list(tmp_path.iterdir()) == []


def test_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(InputError, match=r"soundfile: pip install 'regard\[race\]'"):
        read_audio(tmp_path / "a.wav")


def test_minutes_are_written_without_harm(tmp_path):
    write_audio(tmp_path / "a.ogg", torch.zeros(1 << 21), 22050)  # in one piece it ends the process
    assert len(read_audio(tmp_path / "a.ogg").waveform) == 1 << 21
