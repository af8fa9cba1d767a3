"""Sentence pairs: wrong translations that only their words give away, files of the user, tokens and baselines."""

from collections import Counter

import pytest
import torch

from regard.tasks.documents import InputError
from regard.tasks.numerals import numerals
from regard.tasks.pair_baselines import baselines, logistic, told
from regard.tasks.pairs import PairMatching
from regard.tasks.parallel_text import ParallelText, split_groups
from regard.tasks.sentence_pairs import RIGHT, WRONG, matching, read_pairs, with_wrong_ones


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGARD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def split():
    return matching(split_groups(numerals(200)))


def task_of(split, **options):
    return PairMatching(split, **({"length": 64, "batch": 8, "seed": 0, "vocab_size": 300} | options))


def page(count, name="p"):
    words = [f"{name}{number} " + "x" * (number % 7) for number in range(count)]
    return ParallelText(tuple(words), tuple(word.upper() for word in words), (name,) * count)


@pytest.mark.parametrize("count", [2, 3, 7, 10])
def test_every_sentence_comes_once_in_a_right_and_once_in_a_wrong_pair(count):
    found = page(count)
    pairs = with_wrong_ones(found)
    assert Counter(pairs.labels) == {RIGHT: count, WRONG: count}
    right = dict(zip(found.source, found.target, strict=True))
    for label in (RIGHT, WRONG):
        chosen = [number for number, some in enumerate(pairs.labels) if some == label]
        assert sorted(pairs.second[number] for number in chosen) == sorted(found.target)
        assert sorted(pairs.first[number] for number in chosen) == sorted(found.source)
        assert all((right[pairs.first[n]] == pairs.second[n]) == (label == RIGHT) for n in chosen)


def test_wrong_ones_are_from_the_same_page_and_near_in_length():
    one, other = page(6), page(8, "q")
    joined = ParallelText(one.source + other.source, one.target + other.target, one.groups + other.groups)
    pairs = with_wrong_ones(joined)
    for first, second, label in zip(pairs.first, pairs.second, pairs.labels, strict=True):
        assert first[0].upper() == second[0]
        if label == WRONG:
            assert abs(len(first) - len(second)) <= 2


def test_pages_of_one_sentence_exchange_among_themselves_and_equal_ones_are_left_out():
    texts = ("a", "b", "c c c c c", "d d d d d")
    found = ParallelText(texts, ("w", "w", "y y y", "z z z"), ("1", "2", "3", "4"))
    pairs = with_wrong_ones(found)
    assert set(pairs.first) == {"c c c c c", "d d d d d"}, "a and b have the same translation"
    with pytest.raises(InputError, match="no two different sentences"):
        matching(split_groups(ParallelText(("a", "b", "c"), ("w", "w", "w"), ("1", "2", "3"))))


def test_no_sentence_that_is_judged_was_learned_from(split):
    for part in (split.validation, split.test):
        assert not set(part.first) & set(split.train.first)
    assert split.classes == [WRONG, RIGHT]
    assert split.digest == matching(split_groups(numerals(200))).digest != matching(split_groups(numerals(201))).digest


def write(tmp_path, data):
    path = tmp_path / "pairs.tsv"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_a_file_of_the_user(tmp_path):
    lines = [f"{'yes' if n % 3 else 'no'}\tquestion {n // 2}\tanswer  {n} ü\r" for n in range(60)]
    found = read_pairs(write(tmp_path, "\ufeff" + "\n".join([*lines, lines[-1]]) + "\n"))
    assert found.classes == ["no", "yes"]
    parts = (found.train, found.validation, found.test)
    assert sum(map(len, parts)) == 60
    firsts = [set(part.first) for part in parts]
    assert sum(map(len, firsts)) == len(set().union(*firsts)), "a question stands in one part"
    for part in parts:
        for first, second, label in zip(part.first, part.second, part.labels, strict=True):
            number = int(second.split()[1])
            assert (first, second) == (f"question {number // 2}", f"answer {number} ü")
            assert label == ("yes" if number % 3 else "no")
    assert any("1 repeated pairs left out" in remark for remark in found.remarks)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("1\ta\tb\n0\ta c\n", "line 2 has 2 columns: each line is a label, a tab"),
        ("1\ta\tb\tc\n", "line 1 has 4 columns"),
        ("1\ta\tb\n\n", "line 2 has 1 columns"),
        ("1\ta\t \n", "line 1: the second sentence is empty"),
        ("1\t\tb\n", "line 1: the first sentence is empty"),
        ("\ta\tb\n", "line 1: the label is empty"),
        (b"1\ta\tb\n1\tgr\xfc\tc\n", r"line 2, byte 5 of it \(0xfc\): this is not UTF-8"),
        ("1\ta\tb\n1\tc\td\n0\ta\tb\n", "line 1 calls a pair '1' and line 3 calls the same pair '0'"),
        ("1\ta\tb\n1\tc\td\n1\te\tf\n", "has 1 label: two are the least"),
        ("1\ta\tb\n0\ta\td\n", "1 groups of sentences: three are the least"),
    ],
)
def test_bad_files_are_refused_in_words(tmp_path, data, words):
    with pytest.raises(InputError, match=words):
        read_pairs(write(tmp_path, data))


def test_batches_are_the_pairs(split):
    task = task_of(split)
    batch = task.batch(3)
    assert torch.equal(batch.tokens, task.batch(3).tokens)
    assert not torch.equal(batch.targets, task_of(split, seed=1).batch(3).targets) or not torch.equal(
        batch.tokens[:, :1], task_of(split, seed=1).batch(3).tokens[:, :1]
    )
    assert batch.options.keys() == {"key_mask", "context", "context_mask"}
    seen = 0
    for held in task.held_out("test"):
        assert held.tokens.shape == held.key_mask.shape
        assert held.context.shape == held.context_mask.shape
        assert not held.tokens[~held.key_mask].any()
        assert held.tokens[held.key_mask].all(), "padding is masked, and nothing else"
        seen += len(held.units)
    assert seen == task.sizes()["test"][0] == len(split.test)
    assert task.targets("train").double().mean() == 0.5
    assert task.vocab_size <= 300
    again = task_of(split)  # from the cache
    assert torch.equal(batch.context, again.batch(3).context)
    assert again.vocab_size == task.vocab_size


def test_scores_and_loss(split):
    task = task_of(split)
    batch = task.batch(0)
    right = torch.nn.functional.one_hot(batch.targets, 2).float() * 20
    assert task.scores(right, batch).tolist() == [1.0] * 8
    assert task.scores(-right, batch).tolist() == [0.0] * 8
    assert task.loss(right, batch) < 1e-6


def test_sentences_over_the_limit(split):
    with pytest.raises(
        InputError, match=r"train pairs have a sentence of more than --length 6 subwords, the first \d+"
    ):
        task_of(split, length=6)
    cut = task_of(split, length=6, beyond="truncate")
    assert cut.batch(0).tokens.shape[1] <= 6
    assert len(cut.pairs["train"]) == len(split.train)
    assert any("train pairs with a sentence of more than 6 subwords cut" in remark for remark in cut.remarks)
    short = task_of(split, length=20, beyond="leave_out")
    assert 0 < len(short.pairs["train"]) < len(split.train)
    assert any("left out" in remark for remark in short.remarks)
    with pytest.raises(InputError, match="no train pair of at most 1 subwords"):
        task_of(split, length=1, beyond="leave_out")


def test_baselines_see_lengths_and_shared_words_only(tmp_path):
    rows = []
    for number in range(200):
        same = number % 2 == 0
        rows.append(f"{int(same)}\tchapter {number} ends\tKapitel {number if same else number + 1} endet\n")
    task = task_of(read_pairs(write(tmp_path, "".join(rows))))
    found = baselines(task)
    assert found["lengths, shared words and numbers"] == 1
    assert found["length ratio"] < 0.8
    assert 0.3 <= found["the most common label"] <= 0.7


def test_a_regression_is_one():
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(400, 3, generator=generator)
    answers = (known @ torch.randn(3, 3, generator=generator)).argmax(-1)
    assert (logistic(known, answers, known, 3) == answers).double().mean() > 0.9
    constant = torch.cat((known, torch.ones(400, 1)), 1)
    assert logistic(constant, answers, constant, 3).shape == (400,), "a column without spread does no harm"
    assert told("", "") == [pytest.approx(-6.9078, abs=1e-3), pytest.approx(6.9078, abs=1e-3), 0, 0, 1, 0]


def test_the_network_without_attention_and_its_rivals_fit(split):
    task = task_of(split)
    batch = task.batch(0)
    for model in (task.model(8, 1, 2, "full"), task.model(8, 1, 2, None), task.rival(8, 2, "both")):
        logits, told_more = model(batch.tokens, **batch.options, return_aux=True)
        assert logits.shape == (8, 2)
        assert task.loss(logits, batch).isfinite()
        assert isinstance(told_more, dict)
