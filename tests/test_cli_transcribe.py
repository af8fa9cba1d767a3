import json

import pytest
import torch
from rich.console import Console

from regard.cli import transcribe
from regard.cli.hearing import draw, hear
from regard.cli.speech_model import KIND, load_recogniser
from regard.cli.transcribe import print_transcripts
from regard.models.speech_recognizer import SpeechRecognizer
from regard.tasks.documents import InputError
from regard.train.checkpoint import write_checkpoint

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")

SIGNS = " abc"
SIZES = {"dim": 8, "depth": 1, "num_heads": 2, "mechanism": "full"}
OPTIONS = {"decoder": "transformer", "channels": 2}
SOUND = {"sample_rate": 8000, "num_mels": 8}


def store(folder, **changed):
    """A recogniser that has learned nothing, as training leaves it."""
    torch.manual_seed(3)
    model = SpeechRecognizer(5, **SIZES, **OPTIONS, **SOUND)
    with torch.no_grad():  # it is sure of a little, so that something is said
        model.ctc_out.weight *= 4
        model.ctc_out.bias[0] -= 1.0
    facts = {"kind": KIND, "data": "tones", "budget": "9 steps", "alphabet": SIGNS, "sizes": SIZES, "options": OPTIONS}
    fitted = {"facts": {**facts, "sound": SOUND, **changed}, "test": {"character error rate": 0.5}}
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    folder.mkdir()
    write_checkpoint(folder, tensors, {"progress": {"steps": 9, "seconds": 1.0, "tokens": 0}, "fitted": fitted})
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store(tmp_path / "model")
    generator = torch.Generator().manual_seed(0)
    for name, seconds, rate in (("a.wav", 1.0, 8000), ("b.flac", 0.3, 16000)):
        soundfile.write(tmp_path / name, 0.1 * torch.randn(int(rate * seconds), generator=generator).numpy(), rate)
    soundfile.write(tmp_path / "silent.wav", torch.zeros(4000).numpy(), 8000)
    soundfile.write(tmp_path / "empty.wav", torch.zeros(0).numpy(), 8000)
    (tmp_path / "text.wav").write_text("no sound")
    return tmp_path


def asked(here, *files, decoder="ctc", beams=1, out=None, picture="png", monkeypatch=None, **options):
    console = Console(record=True, width=200)
    monkeypatch.setattr(transcribe, "make_console", lambda: console)
    given = {"model": here / "model", "data": None, "seconds": 1.0, **options}
    good = print_transcripts(
        [here / name for name in files], out=out, decoder=decoder, beams=beams, picture=picture, **given
    )
    return good, console.export_text()


@pytest.mark.parametrize(("decoder", "beams"), [("ctc", 1), ("ctc", 4), ("attention", 2), ("joint", 2)])
def test_words_times_a_picture_and_a_table(here, monkeypatch, capsys, decoder, beams):
    good, told = asked(here, "a.wav", "b.flac", decoder=decoder, beams=beams, monkeypatch=monkeypatch)
    assert good
    assert told.splitlines()[0] == "trained on tones for 1 s (9 steps); held out: character error rate 0.500"
    folder = here / "regard-transcripts"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["a.json", "a.png", "b.json", "b.png", "transcripts.tsv"]
    stored = [json.loads((folder / f"{name}.json").read_text("utf-8")) for name in "ab"]
    table = [line.split("\t") for line in (folder / "transcripts.tsv").read_text("utf-8").splitlines()]
    assert [row[1] for row in table] == [one["text"] for one in stored]
    assert stored[0]["seconds"] == 1.0
    assert (stored[1]["source_rate"], stored[1]["remarks"][0]) == (16000, "resampled from 16,000 to 8,000 Hz")
    assert stored[0]["model"]["training"]["test"] == {"character error rate": 0.5}
    assert (stored[0]["decoder"], stored[0]["beams"]) == (decoder, beams)
    for one in stored:
        if one["words"]:
            assert " ".join(word["text"] for word in one["words"]) == one["text"]
        times = [time for word in one["words"] for time in (word["start"], word["end"])]
        assert times == sorted(times)
        assert all(0 <= time <= one["seconds"] for time in times)
        assert all(0 <= word["confidence"] <= 1 for word in one["words"])
    if decoder == "ctc":
        assert stored[0]["words"]
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")


def test_bad_files_are_told_and_passed_over(here, monkeypatch, capsys):
    files = ("empty.wav", "text.wav", "a.wav", "silent.wav")
    good, told = asked(here, *files, out=here / "new", picture="svg", monkeypatch=monkeypatch)
    assert not good
    assert "empty.wav is 0 seconds long" in told
    assert "text.wav is no audio" in told
    assert "(nothing is said)" in told
    assert "silent: no sample above -80 dB" in told
    assert sorted(path.name for path in (here / "new").iterdir()) == [
        "a.json",
        "a.svg",
        "silent.json",
        "silent.svg",
        "transcripts.tsv",
    ]
    assert json.loads((here / "new" / "silent.json").read_text())["text"] == ""
    assert b"<svg" in (here / "new" / "a.svg").read_bytes()
    with pytest.raises(InputError, match="already holds transcripts"):
        asked(here, "a.wav", out=here / "new", monkeypatch=monkeypatch)


def test_equal_names_do_not_overwrite_each_other(here, monkeypatch, capsys):
    (here / "sub").mkdir()
    for name in ("a.flac", "sub/a.wav"):
        soundfile.write(here / name, torch.zeros(800).numpy(), 8000)
    asked(here, "a.wav", "a.flac", "sub/a.wav", out=here / "new", monkeypatch=monkeypatch)
    names = {path.name for path in (here / "new").glob("*.json")}
    assert names == {"a.wav.json", "a.flac.json", "a.wav-2.json"}


def test_what_cannot_be_done_is_refused_before_training(here, monkeypatch):
    monkeypatch.setattr("regard.tasks.speech_data.INSTALLED", here)
    for files, options, words in (
        (("none.wav",), {}, r"none\.wav does not exist"),
        (("model",), {}, "not a regular file"),
        (("a.wav",), {"beams": 0}, "--beams 0 is not positive"),
        (("a.wav",), {"model": here / "new"}, "apt-get install asterisk-core-sounds-en-wav"),
        (("a.wav",), {"model": here / "new", "data": here / "none"}, "is not a folder of recordings"),
    ):
        with pytest.raises(InputError, match=words):
            asked(here, *files, monkeypatch=monkeypatch, **options)
    assert not (here / "regard-transcripts").exists()


def test_long_recordings_are_refused(here, monkeypatch):
    monkeypatch.setattr("regard.cli.hearing.LONGEST", 0.9)
    with pytest.raises(InputError, match=r"a\.wav is 1 s long: cut it, 0\.9 s are the most"):
        hear(load_recogniser(here / "model"), here / "a.wav", decoder="ctc", beams=1)


def test_a_text_that_does_not_fit_has_no_times(here, monkeypatch):
    recogniser = load_recogniser(here / "model")
    from regard.models.transcribing import Transcript

    monkeypatch.setattr("regard.cli.hearing.transcribe", lambda *_, **__: [Transcript((2, 2) * 30, -1.0)])
    heard = hear(recogniser, here / "a.wav", decoder="attention", beams=1)
    assert heard.words == ()
    assert heard.text == "a" * 60
    assert "too long for the recording" in heard.remarks[-1]
    assert draw(recogniser, heard, "png").startswith(b"\x89PNG")


def test_models_of_another_version_are_refused(here):
    for name, changed in (("x", {"sizes": {**SIZES, "depth": 2}}), ("y", {"options": {"no": 1}}), ("z", {"sound": 1})):
        store(here / name, **changed)
        with pytest.raises(InputError, match="another version of regard: train again"):
            load_recogniser(here / name)


def test_trains_first_where_there_is_no_model(here, monkeypatch, capsys):
    monkeypatch.setenv("REGARD_CACHE", str(here / "cache"))
    monkeypatch.setattr("regard.cli.speech_model.SIZES", SIZES)
    monkeypatch.setattr("regard.cli.speech_model.OPTIONS", OPTIONS)
    monkeypatch.setattr("regard.cli.speech_model.SOUND", SOUND)
    (here / "data").mkdir()
    for number in range(12):
        soundfile.write(here / "data" / f"{number}.wav", (0.1 * torch.randn(4000)).numpy(), 8000)
        (here / "data" / f"{number}.txt").write_text("abc"[number % 3] * (1 + number // 3) + " a")
    options = {"model": here / "new", "data": here / "data", "seconds": 0.05, "monkeypatch": monkeypatch}
    good, told = asked(here, "a.wav", **options)
    assert good
    assert "training into" in told
    assert "(10 recordings, 0 min) for 0.05 s" in told
    assert load_recogniser(here / "new").alphabet.signs == SIGNS
    _, again = asked(here, "a.wav", **{**options, "data": None})
    assert "training into" not in again
