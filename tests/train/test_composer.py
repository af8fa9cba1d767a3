"""Composing: three trainings in one folder, what is read back, drawing and continuing, and what is refused."""

import json
import shutil

import pytest
import torch
from torch.testing import assert_close

from regard.tasks.documents import InputError
from regard.tasks.music import split_songs
from regard.train import composer
from regard.train.budget import Budget
from regard.train.composer import Composer, is_trained, stages
from regard.train.fitting import fit
from tests.tasks.music_here import tune


@pytest.fixture(scope="module")
def songs():
    return split_songs([tune("a", 46)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, songs):
    """A folder that two steps of each training went into, with small models."""
    path, asked = tmp_path_factory.mktemp("music"), []
    with pytest.MonkeyPatch.context() as patch:
        small = {"dim": 8, "depth": 1}
        patch.setattr(composer, "SIZES", {"vqvae": small, "prior-1": small | {"num_heads": 1}, "prior-0": small})
        for stage in stages(songs, path, seed=3):
            assert not is_trained(path)
            asked.append(stage.name)
            fit(stage.model, stage.task, path / stage.name, Budget(steps=2), rate=1e-3, facts=stage.facts)
    assert asked == ["vqvae", "prior-1", "prior-0"] == list(composer.SHARES)
    assert sum(composer.SHARES.values()) == pytest.approx(1)
    return path


@pytest.fixture
def found(folder):
    return Composer.read(folder)


def test_what_was_trained_is_read_back(folder, found, songs):
    assert is_trained(folder)
    assert [facts["stage"] for facts in found.facts] == ["vqvae", "prior-0", "prior-1"]
    assert all(facts["digest"] == songs.digest and facts["seed"] == 3 for facts in found.facts)
    assert found.model.hops == (16, 64)
    assert not found.model.training
    assert [prior.max_length for prior in found.priors] == [1024, 512]
    assert_close(found.example, songs.test[0].waveform[:32000], rtol=0, atol=1e-5)
    assert sum(found.reference.codes[1]) == sum(len(song.waveform) // 64 for song in songs.train)
    assert found.held_out["loudness (dB)"] > -40
    assert 1 <= found.codebooks["perplexity of codes, level 0"] <= 512


def test_music_is_drawn_from_the_seed_and_has_its_length(found):
    draws = [found.compose(0.1, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert [(len(sound), start) for sound, start in draws] == [(800, 0)] * 3
    assert draws[0][0].equal(draws[1][0])
    assert not draws[0][0].equal(draws[2][0])


def test_a_recording_is_continued_from_its_end(found, songs):
    wave, told = songs.test[0].waveform[:1000], []
    sound, start = found.compose(0.05, prime=wave, temperature=0, tell=lambda *where: told.append(where))
    assert (start, len(sound)) == (960, 1360)
    codes = found.model.encode(wave[None, -960:, None])
    given = found.model.decode(codes[0], 0)[0, :, 0]
    assert_close(sound[:700], given[:700])  # beyond it convolutions hear what is new
    assert {level for level, _, _ in told} == {0, 1}
    with pytest.raises(InputError, match="63 samples: a code takes 64"):
        found.compose(1.0, prime=wave[:63])


def test_refusals(folder, tmp_path):
    with pytest.raises(InputError, match="holds no trained model"):
        Composer.read(tmp_path)
    assert not is_trained(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "reference.json").write_text("{")
    with pytest.raises(InputError, match=r"reference\.json is damaged or missing"):
        Composer.read(copy)
    header = json.loads((copy / "prior-0" / "checkpoint.json").read_text())
    header["fitted"]["facts"]["codes"] = "others"
    (copy / "prior-0" / "checkpoint.json").write_text(json.dumps(header))
    with pytest.raises(InputError, match="prior-0 was trained on other codes"):
        Composer.read(copy)
