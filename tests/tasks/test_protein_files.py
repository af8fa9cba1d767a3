import gzip

import pytest
import torch

from regard.tasks.documents import InputError
from regard.tasks.protein_files import GAP, numbers, parse_alignment, read_alignment, read_sequences, spell, spread


def letters(alignment):
    return [spell(row) for row in alignment.letters]


def test_insertions_of_a3m_are_removed_and_counted():
    found = parse_alignment(">a\nAC-DE\n>b x\nAgCyy.KDaa-\n", "x.a3m")
    assert letters(found) == ["AC-DE", "ACKD-"]
    assert found.names == ("a", "b x")
    assert found.deletions.tolist() == [[0] * 5, [0, 1, 2, 0, 2]]


def test_onto_a_row_keeps_its_columns_and_counts_the_lost_ones():
    found = parse_alignment(">a\n--AC-D\n>b\nWWAyC-D\n>c\nW-A-KD\n", "x").onto(0)
    assert letters(found) == ["ACD", "ACD", "A-D"]
    assert found.deletions.tolist() == [[0, 0, 0], [2, 1, 0], [1, 0, 1]]
    other = parse_alignment(">a\n-AC\n>b\nWAC\n", "x").onto(1)
    assert (other.names, letters(other)) == (("b", "a"), ["WAC", "-AC"])


def test_lines_remarks_ends_and_rare_letters(tmp_path):
    path = tmp_path / "x.fasta.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf; a remark\r\n>one\r\nACBZ\r\nUXOJ*\r\n\r\n"))
    found = read_sequences(path)
    assert letters(found) == ["ACDECXXX"]
    (tmp_path / "low.fasta").write_text(">one\nacd\n")  # alone, lower case is no insertion
    assert letters(read_sequences(tmp_path / "low.fasta")) == ["ACD"]


def test_letters_go_to_numbers_and_back():
    assert spell(numbers("ARNDCQEGHILKMFPSTWYVX-")) == "ARNDCQEGHILKMFPSTWYVX-"
    assert numbers("AV-").tolist() == [0, 19, GAP]


def test_spread_keeps_the_first_and_never_repeats():
    assert spread(3, 16) == [0, 1, 2]
    assert spread(100, 4) == [0, 33, 66, 99]
    assert spread(9, 1) == [0]
    assert all(len(set(spread(n, 16))) == 16 for n in range(16, 200))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("; nothing\n", "holds no sequence"),
        ("ACD\n", "line 1: letters before any name"),
        (">a\n\n>b\nAC\n", "line 1: the sequence 'a' is empty"),
        (">a\n---\n>b\nACD\n", "line 1: the sequence 'a' is empty"),
        (">a\nAC\nA1D\n", "line 3: '1' is no amino acid"),
        (">a\nA*C\n", r"line 2: '\*' is no amino acid"),
        (">a\nACD\n>b\nACyy\n", "line 3: 'b' has 2 columns, the first row 3"),
    ],
)
def test_refusals_name_the_line(tmp_path, text, told):
    (tmp_path / "x.a3m").write_text(text)
    with pytest.raises(InputError, match=told):
        read_alignment(tmp_path / "x.a3m")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_alignment(tmp_path / "none.fasta")
    (tmp_path / "bad.gz").write_bytes(gzip.compress(b">a\nACD\n")[:-9])
    with pytest.raises(InputError, match="is damaged"):
        read_alignment(tmp_path / "bad.gz")
    (tmp_path / "bytes.fasta").write_bytes(b">a\nA\xffC\n")
    with pytest.raises(InputError, match="line 2: no text"):
        read_alignment(tmp_path / "bytes.fasta")


def test_an_alignment_is_cut_to_rows():
    found = parse_alignment(">a\nAC\n>b\nCC\n>c\nDC\n", "x").rows([2, 0])
    assert (found.names, letters(found), len(found)) == (("c", "a"), ["DC", "AC"], 2)
    assert torch.equal(found.deletions, torch.zeros(2, 2, dtype=torch.long))
