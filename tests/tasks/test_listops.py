from statistics import median

import pytest
import torch

from regard.tasks.cache import cached
from regard.tasks.listops import END, MED, MIN, PAD, SIGNS, SM, VOCABULARY, draw_listops, evaluate
from regard.tasks.sequences import SequenceClassification, Sequences
from regard.tasks.task import Metric


@pytest.fixture(scope="module")
def drawn():
    torch.set_num_threads(1)
    return draw_listops(1200, 16, 64, seed=1)


def words(found):
    """The expressions as text, as the benchmark writes them."""
    return [
        " ".join(VOCABULARY[token] for token in tokens.tolist())
        for tokens in found.tokens.split(found.lengths.tolist())
    ]


def tree(text):
    """The expression as nested lists, by way of Python's own reader."""
    for name in ("MIN", "MAX", "MED", "SM"):
        text = text.replace(f"[{name}", f"['{name}'")
    return eval(text.replace(" ", ",").replace(",]", "]"))


def value(node):
    if isinstance(node, int):
        return node
    operator, *children = node
    operators = {
        "MIN": min,
        "MAX": max,
        "MED": lambda values: int(median(values)),
        "SM": lambda values: sum(values) % 10,
    }
    return operators[operator]([value(child) for child in children])


def depth(node):
    return 1 if isinstance(node, int) else 1 + max(map(depth, node[1:]))


def nodes(node):
    """All lists below and including this one, with their depth."""
    found = [(node, 1)]
    for lists, below in found:
        found += [(child, below + 1) for child in lists[1:] if isinstance(child, list)]
    return found


def test_labels_are_the_values(drawn):
    texts = words(drawn)
    assert texts[0].startswith("[")
    for text, tokens, label in zip(
        texts, drawn.tokens.split(drawn.lengths.tolist()), drawn.labels.tolist(), strict=True
    ):
        assert value(tree(text)) == evaluate(tokens.tolist()) == label, text


def test_the_reference_evaluator_knows_its_grammar():
    assert evaluate([MED, 3, 6, END]) == 4, "the median is rounded down"
    assert evaluate([SM, 9, 9, MIN, 3, 1, END, END]) == 9
    assert evaluate([7]) == 7
    for broken in ([MIN, END], [MIN, 3], [3, END], [3, 4], [], [PAD]):
        with pytest.raises(ValueError, match=r"cannot stand there|not one whole expression"):
            evaluate(broken)


def test_the_recipe(drawn):
    texts = words(drawn)
    assert len(set(texts)) == len(texts) == 1200, "nothing comes twice"
    assert (int(drawn.lengths.min()), int(drawn.lengths.max())) == (17, 63)
    lists = [found for text in texts for found, _ in nodes(tree(text))]
    counts = torch.tensor([len(found) - 1 for found in lists]).bincount()
    assert counts.nonzero().flatten().tolist() == list(range(2, 11))
    names = [found[0] for found in lists]
    for name in ("MIN", "MAX", "MED", "SM"):
        assert names.count(name) / len(names) == pytest.approx(0.25, abs=0.03)
    digits = torch.tensor([child for found in lists for child in found[1:] if isinstance(child, int)]).bincount()
    assert (digits / digits.sum() - 0.1).abs().max() < 0.02


def test_long_expressions_reach_depth_ten_and_no_further():
    found = draw_listops(20, 500, 2000, seed=0)
    assert max(depth(tree(text)) for text in words(found)) == 10
    assert 700 < found.lengths.double().mean() < 1300
    for tokens, label in zip(found.tokens.split(found.lengths.tolist()), found.labels.tolist(), strict=True):
        assert evaluate(tokens.tolist()) == label


def test_seeds():
    one, again, other = (draw_listops(50, 16, 64, seed=seed) for seed in (0, 0, 1))
    assert one.digest == again.digest != other.digest
    assert Sequences(one.tokens, one.lengths, 9 - one.labels).digest != one.digest


def task(found, **changes):
    count = len(found.labels)
    sizes = {"train": count // 2, "validation": count // 4, "test": count - count // 2 - count // 4}
    metric = Metric("accuracy", lower_is_better=False, digits=3, items="expressions")
    given = {"vocab_size": 16, "num_classes": 10, "metric": metric, "unit": "tokens", "signs": SIGNS, "pad": PAD}
    return SequenceClassification(found, sizes, **{**given, "length": 64, "batch": 3, "seed": 0, **changes})


def test_batches_hold_whole_expressions(drawn):
    classes = task(drawn)
    texts = words(drawn)
    batch = classes.batch(0)
    assert torch.equal(batch.tokens, task(drawn).batch(0).tokens)
    assert not torch.equal(batch.targets, task(drawn, seed=1).batch(0).targets)
    seen = []
    for batch in (classes.batch(0), *classes.held_out("test"), *classes.held_out("validation")):
        for row, (tokens, target, name) in enumerate(
            zip(batch.tokens, batch.targets.tolist(), batch.units, strict=True)
        ):
            real = tokens if batch.key_mask is None else tokens[batch.key_mask[row]]
            assert (tokens[len(real) :] == PAD).all()
            text = " ".join(VOCABULARY[token] for token in real.tolist())
            assert text == texts[int(name)]
            assert value(tree(text)) == target
            seen.append(int(name))
    assert set(seen[:3]) <= set(range(600))
    assert sorted(seen[3:303]) == list(range(900, 1200)), "all of the test part"
    assert sorted(seen[303:]) == list(range(600, 856)), "the first of the validation part"


def test_scores_and_baselines():
    """By hand: the first token 0 means class 1 and 2 means 0 in training, and the larger class is 1."""
    tokens = torch.tensor([0, 0, 2, 0, 2, 0, 1], dtype=torch.uint8)
    labels = torch.tensor([1, 1, 0, 1, 0, 0, 1], dtype=torch.uint8)
    found = Sequences(tokens, torch.ones(7, dtype=torch.long), labels)
    metric = Metric("accuracy", lower_is_better=False, digits=3, items="expressions")
    sizes = {"train": 3, "validation": 0, "test": 4}
    small = SequenceClassification(
        found, sizes, vocab_size=3, num_classes=2, metric=metric, unit="tokens", length=1, batch=1, seed=0
    )
    assert small.majority() == 0.5
    assert small.first_token() == 0.5, "an unknown first token counts as class 0"
    assert small.sizes() == {"train": (3, 3), "validation": (0, 0), "test": (4, 4)}
    (held,) = small.held_out("test")
    right = torch.nn.functional.one_hot(held.targets, 2).float()
    assert small.scores(right, held).tolist() == [1.0] * 4
    assert small.scores(-right, held).tolist() == [0.0] * 4
    assert small.passage(9) == b"", "without signs there is nothing to see"


def test_the_first_token_tells_a_third(drawn):
    assert 0.27 < task(drawn).first_token() < 0.40
    assert 0.12 < task(drawn).majority() < 0.20


def test_passages_are_spelled_sign_by_sign(drawn):
    classes = task(drawn)
    passage = classes.passage(10)
    spelled = classes.spell(passage)
    assert len(spelled) == 10
    assert spelled.isascii()
    text = words(drawn)[900]
    for sign, name in (("<", "[MIN"), (">", "[MAX"), ("~", "[MED"), ("+", "[SM")):
        text = text.replace(name, sign)
    assert text.replace(" ", "").startswith(spelled)


def test_the_cache_is_used_renamed_and_survives_damage(tmp_path, monkeypatch):
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "deep" / "cache"))
    made = []

    def make():
        made.append(1)
        return {"x": torch.arange(3)}

    for _ in range(2):
        assert cached("name", make)["x"].tolist() == [0, 1, 2]
    assert len(made) == 1
    (file,) = (tmp_path / "deep" / "cache").iterdir()
    assert file.name == "name.safetensors"
    file.write_bytes(file.read_bytes()[:20])
    assert cached("name", make)["x"].tolist() == [0, 1, 2]
    assert len(made) == 2
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "file"))
    assert cached("name", make)["x"].tolist() == [0, 1, 2], "where nothing can be written it is made again"
    assert len(made) == 3
