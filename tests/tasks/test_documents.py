import os

import pytest

from regard.tasks.documents import Document, InputError, drop_duplicates, fingerprint, read_documents


def test_reads_files_and_directories_of_any_bytes(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "b.bin").write_bytes(bytes(range(256)))
    (tmp_path / "deep" / "a.txt").write_bytes(b"\xff\xfenot utf-8")
    (tmp_path / "deep" / ".hidden").write_bytes(b"secret")
    (tmp_path / "deep" / "empty").write_bytes(b"")
    (tmp_path / "alone").write_bytes(b"one file")
    documents, remarks = read_documents([tmp_path / "deep", str(tmp_path / "alone")])
    assert [document.name for document in documents] == ["a.txt", "er/b.bin", "alone"]
    assert documents[1].data == bytes(range(256))
    assert remarks == ["1 empty file left out"]


def test_leaves_out_what_races_wrote_and_prints_any_name(tmp_path):
    (tmp_path / "regard-race" / "entrants" / "full").mkdir(parents=True)
    for name in ("regard-race/race.json", "regard-race/entrants/full/log.txt", "race.json"):
        (tmp_path / name).write_text(name)
    odd = os.fsencode(tmp_path) + b"/\xff.txt"
    with open(odd, "wb") as file:
        file.write(b"odd name")
    documents, _ = read_documents([tmp_path])
    assert [document.name for document in documents] == ["race.json", "\ufffd.txt"]
    assert read_documents([os.fsdecode(odd)])[0] == documents[1:]
    inside, _ = read_documents([tmp_path / "regard-race"])
    assert [document.name for document in inside] == ["entrants/full/log.txt", "race.json"]


def test_keeps_equal_documents_once(tmp_path):
    for name in "abc":
        (tmp_path / name).write_bytes(b"same" if name < "c" else b"other")
    documents, remarks = read_documents([tmp_path])
    assert [document.name for document in documents] == ["a", "c"]
    assert remarks == ["1 repeated document left out"]
    assert drop_duplicates([Document("x", b"1"), Document("y", b"1")]) == [Document("x", b"1")]


def test_names_what_is_wrong(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path, words in {"missing": "does not exist", "empty": "is empty", "pipe": "not a regular file"}.items():
        with pytest.raises(InputError, match=f"{path}.*{words}"):
            read_documents([tmp_path / path])
    with pytest.raises(InputError, match=r"nothing to read in .*folder"):
        read_documents([tmp_path / "folder"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_names_a_file_that_may_not_be_read(tmp_path):
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "secret").chmod(0)
    with pytest.raises(InputError, match=r"cannot read .*secret: Permission denied"):
        read_documents([tmp_path / "secret"])


def test_the_fingerprint_tells_names_and_borders():
    one, two = Document("a", b"xy"), Document("a", b"x")
    assert len({fingerprint([one]), fingerprint([two]), fingerprint([two, Document("b", b"y")]), fingerprint([])}) == 4
    assert fingerprint([Document("a\udcff", b"x")])
