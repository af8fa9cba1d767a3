import pytest

from regard.tasks.documents import InputError
from regard.tasks.transcripts import read_transcripts


def sounds(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"sound")


def rows(folder):
    found, remarks = read_transcripts(folder)
    return [(name, path.relative_to(folder).as_posix(), text) for name, path, text in found], remarks


def test_a_table_with_tabs(tmp_path):
    sounds(tmp_path, "a.wav", "sub/b.flac")
    (tmp_path / "texts.tsv").write_text("\ufeffa.wav\tOne, two\nsub/b\t Three\n\n", "utf-8")
    assert rows(tmp_path) == ([("a.wav", "a.wav", "One, two"), ("sub/b", "sub/b.flac", " Three")], ())


def test_a_table_with_commas_and_a_header(tmp_path):
    sounds(tmp_path, "clips/a.mp3")
    (tmp_path / "all.csv").write_text('id,path,sentence,age\n7,a.mp3,"Yes, no",30\n')
    assert rows(tmp_path) == ([("a.mp3", "clips/a.mp3", "Yes, no")], ())


def test_texts_beside_recordings(tmp_path):
    sounds(tmp_path, "x/a.wav", "x/b.ogg", "c.flac")
    (tmp_path / "x/a.txt").write_text("one")
    (tmp_path / "c.txt").write_text("three\n")
    found, remarks = rows(tmp_path)
    assert found == [("c", "c.flac", "three\n"), ("x/a", "x/a.wav", "one")]
    assert remarks == ("1 recordings without a text left out",)


def test_lists_of_librispeech(tmp_path):
    sounds(tmp_path, "84/1/84-1-0.flac", "84/1/84-1-1.flac")
    (tmp_path / "84/1/84-1.trans.txt").write_text("84-1-0 GO DO\n84-1-1 HERE\n")
    assert rows(tmp_path)[0] == [
        ("84/1/84-1-0", "84/1/84-1-0.flac", "GO DO"),
        ("84/1/84-1-1", "84/1/84-1-1.flac", "HERE"),
    ]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "0 recordings and no texts"),
        ({"a.wav": "sound"}, "1 recordings and no texts"),
        ({"a.tsv": "a.wav\tx\n", "b.csv": "a.wav,x\n"}, "has 2 tables, a.tsv, b.csv"),
        ({"a.wav": "sound", "a.tsv": "a.wav\tx\nb.wav\ty\n"}, r"a\.tsv, line 2: there is no recording 'b.wav'"),
        ({"a.wav": "sound", "a.tsv": "a.wav\n"}, r"line 1: 1 columns; file and text"),
        ({"a.wav": "sound", "a.csv": "a.wav,x,y\n"}, r"line 1: 3 columns; file and text"),
        ({"a.trans.txt": "b TEXT\n"}, r"line 1: there is no recording 'b' beside it"),
    ],
)
def test_what_has_no_texts_is_refused(tmp_path, files, words):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        read_transcripts(tmp_path)


def test_tables_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(InputError, match=r"cannot read .*a\.tsv"):
        read_transcripts(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        read_transcripts(tmp_path / "a.tsv")
