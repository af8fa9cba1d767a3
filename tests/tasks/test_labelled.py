import json

import pytest
import torch

from regard.tasks.classification import Classification
from regard.tasks.documents import InputError
from regard.tasks.labelled import read_labelled, split_labelled


def directory(path, sizes):
    for label, count in sizes.items():
        (path / label).mkdir(parents=True)
        for number in range(count):
            (path / label / f"{number}.txt").write_text(f"{label} text {number} " * (number + 1))
    return path


def test_a_directory_per_class(tmp_path):
    found = read_labelled([directory(tmp_path, {"ham": 4, "spam": 3})])
    assert found.classes == ["ham", "spam"]
    assert found.labels == ("ham",) * 4 + ("spam",) * 3
    assert found.documents[0].name == "ham/0.txt"
    again = read_labelled([tmp_path / "ham", tmp_path / "spam"])
    assert again.documents == found.documents


def test_csv_and_jsonl_say_the_same(tmp_path):
    rows = [("good, very", "1"), ('two\nlines "quoted"', "0"), ("plain", "1")]
    quoted = "".join('"' + text.replace('"', '""') + f'",{label}\n' for text, label in rows)
    (tmp_path / "a.csv").write_text("\ufefftext,label\n" + quoted, encoding="utf-8")
    lines = [json.dumps({"text": text, "label": int(label)}) for text, label in rows]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, ""]))
    tables = [read_labelled([tmp_path / name]) for name in ("a.csv", "a.jsonl")]
    for found in tables:
        assert [document.data.decode() for document in found.documents] == [text for text, _ in rows]
        assert found.labels == ("1", "0", "1")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"body,label\nx,1\n", r"no column text: its first line says \['body', 'label'\]"),
        ("a.csv", b"text,label\nx\n", "line 2: the row has too few columns"),
        ("a.csv", b"text,label\n", "no rows"),
        ("a.csv", b'text,label\n"x"y,1\n', "line 2: not valid CSV"),
        ("a.csv", b"\xff\xfe", "not UTF-8"),
        ("a.jsonl", b'{"text": "x", "label": "1"}\n{"text"', "line 2: not valid JSON"),
        ("a.jsonl", b'{"text": 5, "label": "1"}\n', "line 1: expected"),
        ("a.jsonl", b'{"text": "x", "label": "1"}\n', "holds 1 class"),
    ],
)
def test_names_what_is_wrong_and_where(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_labelled([tmp_path / name])


def test_needs_input_and_three_documents_a_class(tmp_path):
    with pytest.raises(InputError, match="needs a directory"):
        read_labelled([])
    with pytest.raises(InputError, match="'spam' has 2 different documents"):
        split_labelled(read_labelled([directory(tmp_path, {"ham": 5, "spam": 2})]))


def test_the_split_keeps_the_mixture(tmp_path):
    found = read_labelled([directory(tmp_path, {"ham": 40, "spam": 10})])
    split = split_labelled(found)
    assert sorted(split.train + split.validation + split.test) == list(range(50))
    for part in (split.validation, split.test):
        assert [found.labels[number] for number in part] == ["ham"] * 4 + ["spam"]
    assert split_labelled(found) == split


def test_batches_are_masked_and_scored(tmp_path):
    found = read_labelled([directory(tmp_path, {"ham": 8, "spam": 6})])
    task = Classification(found, split_labelled(found), length=20, batch=5, seed=3)
    batch = task.batch(0)
    assert torch.equal(batch.tokens, task.batch(0).tokens)
    assert batch.tokens.shape == batch.key_mask.shape == (5, min(20, batch.tokens.shape[1]))
    assert not batch.tokens[~batch.key_mask].any()
    assert task.truncated == 12
    (held,) = task.held_out("test")
    right = torch.nn.functional.one_hot(held.targets, 2).float()
    assert task.scores(right, held).tolist() == [1.0, 1.0]
    assert task.scores(-right, held).tolist() == [0.0, 0.0]
    assert task.majority() == 0.5
