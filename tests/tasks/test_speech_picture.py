import re

import pytest
import torch

from regard.tasks.speech_picture import SaidWord, speech_picture

pytest.importorskip("matplotlib")
SIGNS = "\N{EMPTY SET} abc"


def drawn(*, attention=None, spelled=(), words=(), title="", seconds=1.0):
    posteriors = torch.full((round(25 * seconds), 5), 0.01)
    posteriors[3, 2], posteriors[9, 4] = 0.9, 0.8
    frames = torch.zeros(round(100 * seconds), 8)
    options = {"frame_seconds": 0.01, "state_seconds": 0.04, "attention": attention, "spelled": spelled}
    return speech_picture(frames, posteriors, SIGNS, words, title=title, form="svg", **options).decode()


def written(svg):
    """matplotlib leaves each text as a comment before its outlines."""
    return [text.strip() for text in re.findall(r"<!--(.*?)-->", svg)]


def test_words_and_likely_labels_are_written():
    texts = written(drawn(words=[SaidWord("cab", 0.1, 0.5, 0.9)], title="one: cab"))
    assert "cab" in texts
    assert "one: cab" in texts
    assert [text for text in texts if len(text) == 1 and text in "abc"] == ["a", "c"]  # b never matters
    assert "CTC" in texts
    assert "decoder" not in texts


def test_the_decoder_has_a_row_for_each_label_and_the_end():
    texts = written(drawn(attention=torch.rand(4, 25), spelled=["c", " ", "b", "#"]))
    assert "decoder" in texts
    assert [text for text in texts if text in ("c", "\N{OPEN BOX}", "b", "#")][-4:] == ["c", "\N{OPEN BOX}", "b", "#"]
    assert drawn(attention=torch.zeros(1, 25), spelled=["#"])  # nobody looked anywhere


def test_long_titles_are_wrapped_and_long_recordings_widen_the_picture():
    title = "word " * 60
    lines = [text for text in written(drawn(title=title)) if text.startswith("word")]
    assert " ".join(lines) == title.strip()
    assert len(lines) > 2
    width = [float(re.search(r'width="([\d.]+)pt"', drawn(seconds=s))[1]) for s in (1.0, 20.0, 300.0)]
    assert width[0] == 6 * 72
    assert width[1] == pytest.approx(19.5 * 72)
    assert width[2] == 40 * 72
