import gzip

import pytest

from regard.tasks.documents import InputError
from regard.tasks.help_pages import libreoffice_help
from regard.tasks.parallel_text import ParallelText, read_parallel, read_parallel_folder, split_groups


def write(folder, name, text, encoding="utf-8"):
    data = text if isinstance(text, bytes) else text.encode(encoding)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def two(folder, source, target, end=""):
    return write(folder, f"a.en{end}", source), write(folder, f"a.de{end}", target)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_line_by_line(tmp_path, end):
    found = read_parallel(*two(tmp_path, "a  b\r\nc\na b\n", "ä\nß\u2028x\nö", end))
    assert found.source == ("a b", "c", "a b")
    assert found.target == ("ä", "ß x", "ö")  # a line separator of Unicode ends no line
    assert found.groups == (f"a.en{end}:1", f"a.en{end}:2", f"a.en{end}:1")  # equal sources stay together
    assert found.remarks == ()


def test_a_byte_order_mark_is_no_text(tmp_path):
    assert read_parallel(*two(tmp_path, b"\xef\xbb\xbfa\n", "b\n")).source == ("a",)


def test_unequal_numbers_of_lines_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"a\.en has 3 lines and .*a\.de has 2"):
        read_parallel(*two(tmp_path, "a\nb\nc\n", "x\ny\n"))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_another_encoding_is_refused_with_its_place(tmp_path, mark):
    paths = two(tmp_path, "a\nb\nc\n", mark + "Haus\nGrö".encode() + b"\xdfe\nx\n")
    with pytest.raises(InputError, match=r"a\.de, line 2, byte 5 of it \(0xdf\): this is not UTF-8.*iconv"):
        read_parallel(*paths)


def test_empty_lines_are_refused_or_left_out(tmp_path):
    paths = two(tmp_path, "a\nb\n \nd\n", "w\n\ny\nz\n")
    with pytest.raises(InputError, match=r"a\.de, line 2 is empty, and so are 1 more"):
        read_parallel(*paths)
    found = read_parallel(*paths, empty="leave_out")
    assert (found.source, found.target) == (("a", "d"), ("w", "z"))
    assert found.remarks == ("2 pairs without words on one side left out",)
    with pytest.raises(InputError, match="no pair of sentences"):
        read_parallel(*two(tmp_path, "\n\n", "a\nb\n"), empty="leave_out")


def test_long_sentences_are_refused_or_cut_and_told(tmp_path):
    paths = two(tmp_path, "a\nb\n", "four\nfive5 x\n")
    with pytest.raises(InputError, match=r"a\.de, line 2 has 7 characters and 1 lines have more than 6.*truncate"):
        read_parallel(*paths, limit=6)
    found = read_parallel(*paths, limit=6, beyond="truncate")
    assert found.target == ("four", "five5")
    assert found.remarks == (f"1 sentences of {paths[1]} cut after 6 characters",)
    assert read_parallel(*paths, limit=7).remarks == ()


def test_files_that_are_missing_empty_or_damaged_are_refused(tmp_path):
    good = write(tmp_path, "a.en", "a\n")
    with pytest.raises(InputError, match="does not exist"):
        read_parallel(good, tmp_path / "b")
    with pytest.raises(InputError, match="is empty"):
        read_parallel(good, write(tmp_path, "b", ""))
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"a\n" * 99)[:-9])
    with pytest.raises(InputError, match=r"b\.gz is damaged"):
        read_parallel(good, tmp_path / "b.gz")


def folder_of_parts(folder, names=("train", "val", "test_2016", "test_2017")):
    for number, name in enumerate(names):
        write(folder, f"{name}.en.gz", f"{name}\n" * (number + 1))
        write(folder, f"{name}.de.gz", "x\n" * (number + 1))


def test_a_folder_of_parts(tmp_path):
    folder_of_parts(tmp_path)
    found = read_parallel_folder(tmp_path)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [1, 2, 3]
    assert found.remarks == (f"of several test sets {tmp_path}/test_2016.en.gz is taken",)
    other = read_parallel_folder(tmp_path, test="test_2017")
    assert len(other.test) == 4
    assert other.digest != found.digest
    with pytest.raises(InputError, match=r"no train part: there is no pair train\*\.de and train\*\.fr"):
        read_parallel_folder(tmp_path, ("de", "fr"))
    with pytest.raises(InputError, match="is not a directory"):
        read_parallel_folder(tmp_path / "none")


def pairs_of(groups):
    source = tuple(f"{group} {number}" for group, size in groups.items() for number in range(size))
    names = tuple(sentence.split()[0] for sentence in source)
    return ParallelText(source, tuple(sentence.upper() for sentence in source), names)


@pytest.mark.parametrize(
    "sizes",
    [dict.fromkeys("abcdefghij", 3), {"a": 1, "b": 1, "c": 1000}, {"a": 1, "b": 1, "c": 1}, {"a": 9, "b": 9, "c": 1}],
)
def test_whole_groups_are_held_out(sizes):
    found = split_groups(pairs_of(sizes))
    parts = (found.train, found.validation, found.test)
    assert all(parts)
    assert sum(map(len, parts)) == sum(sizes.values())
    assert len({group for part in parts for group in set(part.groups)}) == sum(len(set(part.groups)) for part in parts)
    assert len(found.train) >= max(sizes.values())


def test_nothing_held_out_is_known_from_training():
    text = pairs_of(dict.fromkeys("abcdefghij", 4))
    source = tuple("same" if sentence.endswith("0") else sentence for sentence in text.source)
    twice = ParallelText((*source, *source), (*text.target, *text.target), (*text.groups, *text.groups))
    found = split_groups(twice)
    assert "same" in found.train.source
    assert not {"same"} & {*found.validation.source, *found.test.source}
    assert found.remarks[0] == "40 repeated pairs left out"
    assert found.remarks[1].endswith("held-out pairs whose source training has as well left out")


def test_too_little_to_split_is_refused():
    with pytest.raises(InputError, match="2 groups of sentences"):
        split_groups(pairs_of({"a": 5, "b": 5}))
    text = pairs_of(dict.fromkeys("abc", 1))
    with pytest.raises(InputError, match="nothing to judge on"):
        split_groups(ParallelText(("same",) * 3, text.target, text.groups))


def page(folder, language, name, *paragraphs):
    body = "\n".join(f'<p id="{key}" class="paragraph" dir="auto">{text}</p>' for key, text in paragraphs)
    write(folder, f"usr/share/libreoffice/help/{language}/text/{name}.html", f"<html><body>{body}</body></html>")


def test_help_pages_are_joined_by_page_and_id(tmp_path):
    page(tmp_path, "en-US", "b/two", ("par_id1", "Open <b>the\n file</b> &amp; go"), ("par_id2", "API"), ("x", "no id"))
    page(tmp_path, "de", "b/two", ("par_id2", "API"), ("par_id1", "Datei <i>öffnen</i>"), ("par_id9", "nur hier"))
    page(tmp_path, "en-US", "a", ("hd_id1", "Title"), ("par_id3", ""))
    page(tmp_path, "de", "a", ("hd_id1", "Titel"), ("par_id3", "leer"))
    for folder in (tmp_path, tmp_path / "usr/share/libreoffice/help"):
        found = libreoffice_help(folder)
        assert found.source == ("Title", "Open the file & go")
        assert found.target == ("Titel", "Datei öffnen")
        assert found.groups == ("a.html", "b/two.html")
        assert found.remarks == ("1 paragraphs that are the same in both languages left out",)


def test_missing_help_pages_are_said_with_the_commands_that_get_them(tmp_path):
    page(tmp_path, "en-US", "a", ("par_id1", "Title"))
    with pytest.raises(InputError) as caught:
        libreoffice_help(tmp_path)
    for words in ("help in de is missing", str(tmp_path), "apt-get install libreoffice-help-de", "dpkg -x"):
        assert words in str(caught.value)
    page(tmp_path, "de", "a", ("par_id1", "Title"))
    with pytest.raises(InputError, match="no paragraph in common that differs"):
        libreoffice_help(tmp_path)
    write(tmp_path, "usr/share/libreoffice/help/de/text/b.html", b"\xff")
    with pytest.raises(InputError, match=r"cannot read .*b\.html"):
        libreoffice_help(tmp_path)
