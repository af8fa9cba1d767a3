from fractions import Fraction

import pytest

from regard.tasks.abc_tunes import bars, music21_corpus, read_tunes, tunes_of, unit_and_bar
from regard.tasks.documents import InputError

BOOK = """% An old book
% 1778

X:0001
T:The Ranting Highlandman.
T:The White Cockade
M:C|
L:1/8
Q:1/2=112
%% G A B c
K:G
AG|"Em"B2B2 B2AG |  B2``B2 B2g2|\\
GA|B2B2 cBAG::  % a comment
w: words of a song
Bc|d2B2 g2B2:|

This is a remark.
X:2
M:3/4
K:D
!trill!d2 e2 f2 | d6 | e2 f2 g2 |]
X:3
T: no key
M:3/4
d2 e2 f2 | d6 |]
X:4
K:C
short
"""


def test_tunes_come_in_one_form():
    assert tunes_of(BOOK) == [
        "X:1\nM:C|\nL:1/8\nK:G\nAG|B2B2 B2AG|B2B2 B2g2|GA|B2B2 cBAG::\nBc|d2B2 g2B2:|\n\n",
        "X:1\nM:3/4\nK:D\nd2 e2 f2|d6|e2 f2 g2|]\n\n",
    ]
    assert tunes_of(BOOK.replace("\n", "\r\n")) == tunes_of(BOOK)
    assert tunes_of("X:1\nK:C\nCDEF GABc \u00e9 cBAG FEDC\n") == ["X:1\nK:C\nCDEF GABc ? cBAG FEDC\n\n"]


def test_files_and_folders_are_read_and_equal_tunes_kept_once(tmp_path):
    (tmp_path / "below").mkdir()
    for place in ("a.abc", "below/b.abc"):
        (tmp_path / place).write_text(BOOK)
    (tmp_path / "notes.txt").write_text(BOOK)
    assert [tune.name for tune in read_tunes([tmp_path])] == ["a 1", "a 2"]
    assert len(read_tunes([tmp_path / "below" / "b.abc"])) == 2


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"is not there: give .abc files"):
        read_tunes([tmp_path / "none.abc"])
    (tmp_path / "empty.abc").write_text("X:1\nT:nothing\n")
    with pytest.raises(InputError, match=r"no tune in .*a line X: and a line K:"):
        read_tunes([tmp_path])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps music21"):
        music21_corpus()


@pytest.mark.parametrize(
    ("head", "unit", "bar"),
    [
        ("M:6/8\nL:1/8\n", Fraction(1, 8), Fraction(3, 4)),
        ("M:C\nL:1/16\n", Fraction(1, 16), 1),
        ("M:C|\n", Fraction(1, 8), 1),
        ("M:2/4\n", Fraction(1, 16), Fraction(1, 2)),
        ("M:none\n", Fraction(1, 8), None),
        ("", Fraction(1, 8), None),
    ],
)
def test_metre_and_unit(head, unit, bar):
    assert unit_and_bar(f"X:1\n{head}K:C\n") == (unit, bar)


@pytest.mark.parametrize(
    ("music", "lengths"),
    [
        ("ABcd", [4]),
        ("A2 B/2 c/ d// e3/2", [2 + Fraction(1, 2) + Fraction(1, 2) + Fraction(1, 4) + Fraction(3, 2)]),
        ("^A=B_c' d,, z4 x", [9]),
        ("A>B c<<d", [4]),
        ("{gab}A2|{/g}B2|", [2, 2]),
        ("(3ABc d", [3]),
        ("(3A2B2c2 (2AB", [Fraction(7)]),
        ("(3:2:2A2B2 c", [Fraction(11, 3)]),
        ("[CEG]2 [C2E2G2]", [4]),
        ("|:A2|1 B2:|2 c2||d2|]", [2, 2, 2, 2]),
        ("A2::B2:|:c2[|d2", [2, 2, 2, 2]),
        ("|||", []),
    ],
)
def test_lengths_of_bars(music, lengths):
    assert bars(music) == lengths
