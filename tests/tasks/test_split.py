import pytest

from regard.tasks.documents import Document, InputError
from regard.tasks.split import split_documents


def documents(*sizes):
    return [Document(f"d{number}", bytes([number]) * size) for number, size in enumerate(sizes)]


def parts(split):
    return split.train, split.validation, split.test


@pytest.mark.parametrize("sizes", [[100] * 30, [10] * 3, [10, 20, 30, 60], [1] * 50 + [100]])
def test_deals_whole_documents_and_loses_none(sizes):
    given = documents(*sizes)
    split = split_documents(given, length=8)
    dealt = [document for part in parts(split) for document in part]
    assert sorted(document.name for document in dealt) == sorted(document.name for document in given)
    assert all(parts(split))
    assert "by document" in split.rule


def test_holds_out_about_a_tenth_of_the_bytes():
    split = split_documents(documents(*[100] * 200), length=8)
    train, validation, test = (sum(len(document.data) for document in part) for part in parts(split))
    assert (train, validation, test) == (16_000, 2_000, 2_000)


def test_depends_on_content_only():
    given = documents(*range(10, 60))
    renamed = [Document(f"x{document.name}", document.data) for document in reversed(given)]
    one, two = (split_documents(these, length=8) for these in (given, renamed))
    assert {document.data for document in one.test} == {document.data for document in two.test}


def test_cuts_a_single_document_with_gaps_and_says_so():
    data = bytes(number % 251 for number in range(100_000))
    split = split_documents([Document("book", data)], length=64)
    (train,), (validation,), (test,) = parts(split)
    assert "by position with gaps" in split.rule
    assert data.startswith(train.data)
    assert data.endswith(test.data)
    assert data[len(train.data) + 64 :].startswith(validation.data)
    assert (len(train.data), len(validation.data), len(test.data)) == (80_000 - 64, 10_000 - 64, 10_000)


def test_two_documents_test_on_the_smaller():
    split = split_documents(documents(500, 1000), length=8)
    assert [document.name for document in split.test] == ["d0"]
    assert split.train[0].name.startswith("d1[0:")
    assert split.validation[0].name.startswith("d1[900:")


def test_a_text_that_dwarfs_the_others_is_cut_and_they_train():
    split = split_documents(documents(5000, 1, 2, 3), length=8)
    assert [document.name for document in split.train] == ["d0[0:3992]", "d1", "d2", "d3"]
    assert (len(split.validation[0].data), len(split.test[0].data)) == (492, 500)
    assert "d0 holds nearly all bytes" in split.rule


def test_refuses_what_cannot_be_cut():
    with pytest.raises(InputError, match=r"tiny has only 9 bytes"):
        split_documents([Document("tiny", b"123456789")], length=8)
