"""Aspect sentiment: what is read and refused, the published figures on small cases by hand, and the baselines."""

import json
import math

import pytest
import torch

from regard.tasks import aspects
from regard.tasks.aspect_scores import aspect_scores, auc, sentihood_scores
from regard.tasks.aspect_words import PAD, START, UNKNOWN, AspectBatches, Words, bag_of_words, majority
from regard.tasks.aspects import example_data, read_published, read_semeval, read_sentihood
from regard.tasks.documents import InputError


def opinion(place="LOCATION1", aspect="price", sentiment="Positive"):
    return {"target_entity": place, "aspect": aspect, "sentiment": sentiment}


def json_file(folder, records, name="part.json"):
    path = folder / name
    path.write_text(records if isinstance(records, str) else json.dumps(records), "utf-8")
    return path


def sentence(text="Good food", *opinions, number="1"):
    said = "".join(f'<aspectCategory category="{c}" polarity="{p}"/>' for c, p in opinions)
    return f'<sentence id="{number}"><text>{text}</text><aspectCategories>{said}</aspectCategories></sentence>'


def xml_file(folder, *sentences, head='<?xml version="1.0" encoding="UTF-8"?>', name="part.xml"):
    path = folder / name
    path.write_text(f"{head}<sentences>{''.join(sentences)}</sentences>", "utf-8")
    return path


def test_sentihood_asks_four_aspects_of_each_place(tmp_path):
    records = [
        {
            "text": " LOCATION1 is cheap, LOCATION2 is not ",
            "opinions": [opinion(), opinion("LOCATION2", "price", "Negative")],
        },
        {"text": "LOCATION2 is lively", "opinions": [opinion("LOCATION2", "nightlife")]},
    ]
    path = json_file(tmp_path, records)
    data = read_sentihood(path, path, path)
    assert data.none == 0
    found = [(asked.text[:9], data.contexts[asked.context], data.labels[asked.label]) for asked in data.train]
    assert found[1] == ("LOCATION1", "LOCATION1 price", "positive")
    assert found[5] == ("LOCATION1", "LOCATION2 price", "negative")
    assert len(found) == 12
    assert sum(label != "none" for *_, label in found) == 2, "other aspects are left out"
    assert len({asked.unit for asked in data.train}) == 3


def test_semeval_asks_five_categories_and_holds_a_tenth_out(tmp_path):
    rows = [sentence("Good food", ("food", "positive"), ("price", "conflict"), number=str(n)) for n in range(20)]
    data = read_semeval(xml_file(tmp_path, *rows), xml_file(tmp_path, sentence("Hm"), name="test.xml"))
    assert (len(data.train), len(data.validation), len(data.test)) == (90, 10, 5)
    assert [data.labels[asked.label] for asked in data.train[:5]] == ["positive", "none", "conflict", "none", "none"]
    assert not {asked.unit for asked in data.train} & {asked.unit for asked in data.validation}
    assert {asked.label for asked in data.test} == {data.none}


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is no list of records"),
        ([{"text": "LOCATION1"}], "record 1: expected 'opinions' to be a list, found None"),
        ([{"opinions": []}], "record 1: expected 'text' to be a str"),
        (["LOCATION1"], "record 1: expected 'text'"),
        ([{"text": "LOCATION1", "opinions": [{}]}], "expected 'target_entity' to be a str"),
        ([{"text": "LOCATION1", "opinions": [opinion(sentiment="Mixed")]}], "sentiment 'Mixed' is neither"),
        (
            [{"text": "LOCATION1", "opinions": []}, {"text": "here", "opinions": [opinion()]}],
            "record 2: .*no place that",
        ),
        ([{"text": "LOCATION1", "opinions": [opinion(), opinion(sentiment="Negative")]}], "contradict"),
    ],
)
def test_sentihood_refuses(tmp_path, records, words):
    path = json_file(tmp_path, records)
    with pytest.raises(InputError, match=words):
        read_sentihood(path, path, path)


@pytest.mark.parametrize(
    ("sentences", "head", "words"),
    [
        (["<sentence>"], "", "is not valid XML"),
        ([], "", "has no <sentence>"),
        (['<sentence id="1"/>'], "", "sentence 1: it has no text"),
        ([sentence(), sentence("x", ("music", "positive"))], "", "sentence 2: category 'music'"),
        ([sentence("x", ("food", "good"))], "", "polarity 'good' is none of positive"),
        ([sentence("&e;")], '<!DOCTYPE sentences [<!ENTITY e "x">]>', "document type or entities"),
    ],
)
def test_semeval_refuses(tmp_path, sentences, head, words):
    path = xml_file(tmp_path, *sentences, head=head)
    with pytest.raises(InputError, match=words):
        read_semeval(path, path)


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "part.json"
    path.write_bytes("LOCATION1 café".encode("latin-1"))
    with pytest.raises(InputError, match=r"is not UTF-8 text: .* at byte 13"):
        read_published([path] * 3)
    with pytest.raises(InputError, match="1 files: SentiHood has three"):
        read_published([path])
    with pytest.raises(InputError, match="no-such-file"):
        read_published([tmp_path / "no-such-file"] * 2)


def chances(rows):
    """Probabilities in which these answers are the likeliest."""
    return torch.tensor(rows, dtype=torch.float64)


def test_figures_of_sentihood():
    """Three units of two aspects: one right, one with the wrong sentiment and an aspect too many, one empty."""
    labels = torch.tensor([[1, 0], [2, 0], [0, 0]])
    no, yes, bad = [0.8, 0.15, 0.05], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5]
    found = sentihood_scores(labels, chances([[yes, no], [yes, bad], [no, no]]))
    precision, recall = (1 + 1 / 2) / 2, 1.0
    assert found == pytest.approx(
        {
            "aspect strict accuracy": 2 / 3,
            "aspect macro F1": 2 * precision * recall / (precision + recall),
            "aspect AUC": 1.0,  # of the first aspect; the second is never there
            "sentiment accuracy": 0.5,
            "sentiment AUC": 0.5,
        }
    )


def test_figures_of_semeval():
    data = example_like_semeval()
    labels = torch.tensor([0, 4, 3, 4, 4, 4, 1, 2, 4, 4, 4, 4, 4, 4, 4])
    answers = torch.tensor([0, 0, 4, 4, 4, 4, 1, 0, 4, 4, 4, 4, 0, 4, 4])
    probabilities = 0.9 * torch.nn.functional.one_hot(answers, 5).double()
    probabilities[2, 3] = 0.05  # behind "none", the likeliest
    probabilities[7, 2] = 0.1
    found = aspect_scores(data, labels, probabilities)
    assert found["aspect precision"] == pytest.approx(3 / 4), "a sentence without any aspect does not count"
    assert found["aspect recall"] == pytest.approx(3 / 4)
    assert found["sentiment accuracy, 4-way"] == pytest.approx(3 / 4)
    assert found["sentiment accuracy, 3-way"] == pytest.approx(2 / 3)
    assert found["sentiment accuracy, 2-way"] == pytest.approx(1 / 2)


def example_like_semeval():
    return aspects.AspectData("x", aspects.CATEGORIES, aspects.SEMEVAL_LABELS, 5, (), (), ())


def test_areas_count_pairs():
    positive, scores = torch.rand(40) < 0.4, torch.randint(7, (40,)).float()
    pairs = [(a, b) for a in scores[positive] for b in scores[~positive]]
    expected = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)
    assert auc(positive, scores) == pytest.approx(expected)
    assert math.isnan(auc(torch.ones(3, dtype=torch.bool), torch.rand(3)))


def test_figures_need_whole_units():
    with pytest.raises(ValueError, match="whole units of 5 rows"):
        aspect_scores(example_like_semeval(), torch.zeros(7, dtype=torch.long), torch.zeros(7, 5))


def test_words():
    words = Words(["A b c", "A b c", "a B"], least=2)  # the same text counts once
    assert len(words) == 5
    assert words.numbers_of("b c a", 4) == [START, 4, UNKNOWN, 3]
    with pytest.raises(InputError, match=r"record 7 has 4 words, the limit is 3"):
        words.numbers_of("a a a a", 4, where="record 7")
    assert words.numbers_of("a a a a", 4, truncate=True) == [START, 3, 3, 3]


def test_batches_hold_questions_and_masks():
    batches = AspectBatches(example_data(), 16)
    seen = torch.cat([batch.targets for batch in batches.held_out("test", rows=5)])
    assert torch.equal(seen, batches.labels("test"))
    batch = next(batches.train(8, torch.Generator().manual_seed(0)))
    assert torch.equal(batch.key_mask, batch.tokens != PAD)
    assert (batch.tokens[:, 0] == START).all()
    assert batch.context.shape == batch.targets.shape == (8,)
    again = next(batches.train(8, torch.Generator().manual_seed(0)))
    assert torch.equal(batch.tokens, again.tokens)


def test_truncation_only_when_asked():
    with pytest.raises(InputError, match=r"has 9 words, the limit is 8"):
        AspectBatches(example_data(), 9)
    assert AspectBatches(example_data(), 9, truncate=True).truncated == 3
    assert AspectBatches(example_data(), 16).truncated == 0


def test_baselines():
    batches = AspectBatches(example_data(), 16, least=1)
    shares = majority(batches, "test")
    assert torch.allclose(shares.sum(-1), torch.ones(len(shares)))
    assert torch.allclose(shares, torch.tensor([0.75, 0.125, 0.125]).expand_as(shares))
    answered = bag_of_words(batches, "test", decay=1e-6)
    assert torch.equal(answered.argmax(-1), batches.labels("test")), "every sentence has words of its own"
    found = aspect_scores(batches.data, batches.labels("test"), answered)
    assert set(found.values()) == {1.0}
    assert not torch.equal(shares.argmax(-1), batches.labels("test"))
