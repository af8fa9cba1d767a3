import zipfile

import pytest

from regard.tasks.abc_tunes import bars
from regard.tasks.documents import InputError
from regard.tasks.music_xml import read_melodies


def note(step, octave, duration, *, alter=None, more=""):
    change = "" if alter is None else f"<alter>{alter}</alter>"
    pitch = f"<pitch><step>{step}</step>{change}<octave>{octave}</octave></pitch>" if step else "<rest/>"
    return f"<note>{more}{pitch}<duration>{duration}</duration><voice>1</voice></note>"


OTHER = "<note><pitch><step>C</step><octave>2</octave></pitch><duration>8</duration><voice>2</voice></note>"
HEAD = (
    "<attributes><divisions>2</divisions><key><fifths>1</fifths><mode>minor</mode></key>"
    "<time><beats>4</beats><beat-type>4</beat-type></time></attributes>"
)


def score(*measures, head=HEAD):
    inside = "".join(f"<measure>{head if number == 0 else ''}{m}</measure>" for number, m in enumerate(measures))
    return (
        f"<score-partwise><part id='P1'>{inside}</part><part id='P2'><measure>{OTHER}</measure></part></score-partwise>"
    )


FIRST = note("E", 4, 2) + note("F", 4, 2, alter=1) + note("F", 4, 1) + note("F", 4, 1) + note("F", 5, 2) + OTHER
SECOND = (
    note("F", 4, 3, alter=1)
    + note("G", 4, 2, more="<chord/>")
    + note("G", 4, 0, more="<grace/>")
    + note(None, 0, 1)
    + note("C", 3, 4, alter=-1, more='<tie type="start"/>')
)


def test_the_first_voice_of_the_first_part_becomes_a_tune(tmp_path):
    (tmp_path / "one.musicxml").write_text(score(FIRST, SECOND))
    (tune,) = read_melodies([tmp_path])
    # F sharp stands in the key; a natural holds until the bar ends, in its own octave; quarters are two units
    assert tune.data.decode() == "X:1\nM:4/4\nL:1/8\nK:Em\nE2 F2 =F F =f2|F3 z _C,4-|]\n\n"
    assert tune.name == "one"
    assert bars(tune.data.decode().partition("K:Em\n")[2]) == [8, 8]


def test_four_bars_stand_in_a_line(tmp_path):
    (tmp_path / "one.musicxml").write_text(score(*[note("G", 4, 8)] * 6))
    assert read_melodies([tmp_path])[0].data.decode().endswith("K:Em\nG8|G8|G8|G8|\nG8|G8|]\n\n")


def test_zipped_scores_are_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "one.mxl", "w") as archive:
        archive.writestr("META-INF/container.xml", "<container><rootfile full-path='inside.xml'/></container>")
        archive.writestr("inside.xml", score(FIRST))
    assert len(read_melodies([tmp_path / "one.mxl"])) == 1


def test_flats_and_major_keys(tmp_path):
    head = HEAD.replace(">1<", ">-2<").replace("minor", "major")
    (tmp_path / "one.musicxml").write_text(score(note("B", 4, 4, alter=-1) + note("B", 4, 4), head=head))
    assert read_melodies([tmp_path])[0].data.decode().endswith("K:Bb\nB4 =B4|]\n\n")


@pytest.mark.parametrize("text", ["<score>", "<score-partwise/>", ""])
def test_what_is_no_score_is_refused(tmp_path, text):
    (tmp_path / "one.musicxml").write_text(text)
    with pytest.raises(InputError, match=r"one.musicxml is no score in MusicXML"):
        read_melodies([tmp_path])


def test_scores_without_a_melody_are_left_out(tmp_path):
    (tmp_path / "one.musicxml").write_text(score(note(None, 0, 8)))
    with pytest.raises(InputError, match="no melody with a metre"):
        read_melodies([tmp_path])
    (tmp_path / "two.musicxml").write_text(score(FIRST))
    assert [tune.name for tune in read_melodies([tmp_path])] == ["two"]
    with pytest.raises(InputError, match="is not there"):
        read_melodies([tmp_path / "three.mxl"])
