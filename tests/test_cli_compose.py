"""``regard compose``: trained first, then used; what lies beside the sound; and what is refused before any training."""

import json

import pytest
import torch

from regard.cli.compose import print_composition
from regard.tasks.audio import read_audio
from regard.tasks.documents import InputError
from regard.tasks.music import RATE
from regard.train import composer
from tests.tasks.music_here import tune

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")

USUAL = {
    "seconds": 0.2,
    "model": None,
    "data": None,
    "budget": 0.3,
    "prime": None,
    "seed": 0,
    "temperature": 1.0,
    "top_p": 0.9,
}


def test_it_trains_composes_and_measures_then_uses_what_is_there(tmp_path, monkeypatch, capsys):
    small = {"dim": 8, "depth": 1}
    monkeypatch.setattr(composer, "SIZES", dict.fromkeys(composer.SIZES, small))
    soundfile.write(tmp_path / "song.wav", tune("a", 46).waveform.numpy(), RATE)
    out = tmp_path / "new.wav"
    options = USUAL | {"model": tmp_path / "model", "data": [tmp_path / "song.wav"]}
    print_composition(out, **options)
    told = capsys.readouterr().out
    for word in (
        "training into",
        "trained on 1 song",
        "codes in held-out music",
        "held-out music",
        "silence",
        "new.png",
    ):
        assert word in told
    assert read_audio(out).seconds == 0.2
    report = json.loads(out.with_suffix(".json").read_text())
    assert report["figures"].keys() == {"composed", "held-out music", "silence", "noise"}
    assert report["figures"]["silence"]["flatness"] is None
    assert len(report["training"]) == 3
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")

    first = out.read_bytes()
    print_composition(out, **options | {"data": None})
    assert "training into" not in capsys.readouterr().out
    assert out.read_bytes() == first
    print_composition(tmp_path / "on.flac", **options | {"prime": tmp_path / "song.wav"})
    assert "the first 8.00 s are the recording" in capsys.readouterr().out
    assert read_audio(tmp_path / "on.flac").seconds == 8.2
    soundfile.write(tmp_path / "other.wav", tune("b", 46, 5).waveform.numpy(), RATE)
    with pytest.raises(InputError, match="was trained on other music"):
        print_composition(out, **options | {"data": [tmp_path / "other.wav"]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0.01}, "--seconds 0.01: from 0.064 to 600"),
        ({"seconds": 1e9}, r"--seconds 1e\+09"),
        ({"seconds": float("nan")}, "--seconds nan"),
        ({"temperature": -1.0}, "--temperature -1"),
        ({"top_p": 0.0}, "--top-p 0"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        print_composition(tmp_path / "x.wav", **USUAL | options)


def test_files_that_cannot_be_are_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("regard.tasks.music.PACKAGE", tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"x\.mp4: sound is written as \.wav"):
        print_composition(tmp_path / "x.mp4", **USUAL)
    with pytest.raises(InputError, match="there is no folder"):
        print_composition(tmp_path / "none" / "x.wav", **USUAL)
    with pytest.raises(InputError, match="does not exist"):
        print_composition(tmp_path / "x.wav", **USUAL | {"prime": tmp_path / "p.wav"})
    (tmp_path / "p.wav").write_bytes(b"no sound at all")
    with pytest.raises(InputError, match="is no audio"):
        print_composition(tmp_path / "x.wav", **USUAL | {"prime": tmp_path / "p.wav"})
    with pytest.raises(InputError, match="apt-get install asterisk-moh-opsound-wav"):
        print_composition(tmp_path / "x.wav", **USUAL | {"model": tmp_path / "model"})
    assert torch.tensor([path.suffix == ".wav" for path in tmp_path.iterdir()]).sum() == 1
