import math

import pytest
import torch

from regard.models.transformer_2017 import Transformer
from regard.registry import UnsupportedError
from regard.tasks.alignment_picture import CELL, alignment_picture
from regard.tasks.documents import InputError
from regard.tasks.gallery import STRONG, WEAK
from regard.tasks.numerals import english, german, numerals
from regard.tasks.parallel_text import ParallelText, split_groups
from regard.tasks.phrase_lookup import PhraseLookup
from regard.tasks.subwords import Subwords
from regard.tasks.translation import NO_TARGET, TeacherForced, Translation
from regard.tasks.translation_baselines import subword_baselines
from regard.tasks.translation_gallery import TranslationGallery
from regard.tasks.translation_scores import bleu, chrf, sentence_chrf

pytest.importorskip("tokenizers")
pytest.importorskip("sacrebleu")

SPLIT = split_groups(numerals(80))
SUBWORDS = Subwords.train((*SPLIT.train.source, *SPLIT.train.target), size=300)


def task(**options):
    return Translation(SPLIT, SUBWORDS, **{"length": 60, "batch": 2, "seed": 3, **options})


class Echo(torch.nn.Module):
    """Writes its source again, token by token; looks at the token that it writes."""

    def __init__(self, kinds):
        super().__init__()
        self.kinds, self.weight = kinds, torch.nn.Parameter(torch.zeros(()))

    def begin(self, src, src_mask=None):
        return (src, torch.zeros_like(src[:, 0]))

    def step(self, tokens, memory):
        src, place = memory
        wanted = src.gather(1, place.clamp(max=src.shape[1] - 1)[:, None])[:, 0]
        return 50.0 * torch.nn.functional.one_hot(wanted, self.kinds), (src, place + 1)

    def forward(self, src, tgt, *, src_mask=None, tgt_mask=None):
        return torch.stack([50.0 * torch.nn.functional.one_hot(column, self.kinds) for column in src.unbind(1)], 1)

    def align(self, src, tgt, *, src_mask=None, tgt_mask=None):
        return torch.eye(tgt.shape[1], src.shape[1]).expand(len(src), -1, -1)


def test_a_batch_holds_what_is_read_and_what_comes_next():
    found = task()
    batch = found.batch(0)
    for row in range(len(batch.tokens)):
        real, source_real = batch.key_mask[row], batch.context_mask[row]
        read, wanted = batch.tokens[row][real].tolist(), batch.targets[row][real].tolist()
        assert read[0] == SUBWORDS.start
        assert wanted[-1] == SUBWORDS.end
        assert read[1:] == wanted[:-1]
        pair = SUBWORDS.decode(batch.context[row][source_real].tolist()), SUBWORDS.decode(wanted)
        assert pair in set(zip(SPLIT.train.source, SPLIT.train.target, strict=True))
        assert batch.amounts[row] == len(pair[1].encode()) + 1
        assert (batch.targets[row][~real] == NO_TARGET).all()
        assert batch.context[row][source_real][-1] == SUBWORDS.end


def test_a_pass_has_every_sentence_once_and_batches_follow_from_seed_and_step():
    one, other = task(), task()
    steps = one.steps_a_pass
    seen = [text for step in range(steps) for text in one.batch(step).units]
    assert sorted(seen) == sorted(SPLIT.train.groups)
    for step in (0, steps - 1, steps, 3 * steps + 1):
        assert torch.equal(one.batch(step).tokens, other.batch(step).tokens)
    first, second = ({frozenset(one.batch(a + step).units) for step in range(steps)} for a in (0, steps))
    assert first != second  # other neighbours, not only another order
    assert task(seed=4).batch(0).units != one.batch(0).units
    largest = max(one.batch(step).tokens.numel() for step in range(steps))
    assert largest < 2 * 2 * 60  # about batch x length


def test_bits_are_those_of_the_whole_target_and_padding_costs_nothing():
    found = task()
    kinds = found.vocab_size
    for batch in found.held_out("test"):
        scores = found.scores(torch.zeros(*batch.tokens.shape, kinds), batch)
        assert scores.tolist() == pytest.approx((batch.key_mask.sum(1) * math.log2(kinds)).tolist())
        noisy = torch.randn(*batch.tokens.shape, kinds)
        loss, real = float(found.loss(noisy, batch)), int(batch.key_mask.sum())
        assert loss * real / math.log(2) == pytest.approx(float(found.scores(noisy, batch).sum()), rel=1e-4)


def test_held_out_sentences_are_those_chosen():
    found = task(judged={"validation": 3, "test": 2})
    assert [sum(len(batch.units) for batch in found.held_out(part)) for part in ("validation", "test")] == [3, 2]
    assert len(found.sentences("test")) == 2
    assert sorted(unit for batch in task(judged=None).held_out("test") for unit in batch.units) == sorted(
        SPLIT.test.groups
    )
    assert found.sizes()["test"][0] == 2


@pytest.mark.parametrize("beyond", ["refuse", "truncate", "leave_out"])
def test_sentences_over_the_limit(beyond):
    if beyond == "refuse":
        with pytest.raises(InputError, match=r"training sentences have more than --length 20 subwords, the first \(of"):
            task(length=20)
        return
    found = task(length=20, beyond=beyond)
    word = {"truncate": "cut", "leave_out": "left out"}[beyond]
    assert any(remark.endswith(f"of more than 19 subwords {word}") for remark in found.remarks)
    assert (len(found.train) == len(SPLIT.train)) == (beyond == "truncate")
    assert max(batch.tokens.shape[1] for batch in (found.batch(step) for step in range(found.steps_a_pass))) <= 20
    for batch in found.held_out("test"):  # amounts are those of what is left
        texts = [SUBWORDS.decode(row[row != NO_TARGET].tolist()) for row in batch.targets]
        assert batch.amounts == tuple(float(len(text.encode()) + 1) for text in texts)


def test_a_limit_below_all_sentences_is_refused():
    with pytest.raises(InputError, match="no training sentence of at most 1 subwords"):
        task(length=2, beyond="leave_out")


def test_translations_come_back_in_order_whatever_their_length():
    found, model = task(), Echo(len(SUBWORDS)).train()
    sentences = [*SPLIT.test.source, "one", *SPLIT.validation.source]
    for beams in (1, 3):
        assert found.translate(model, sentences, beams=beams) == sentences
    assert found.translate(TeacherForced(model), ["two"]) == ["two"]
    assert model.training


def test_a_translator_is_trained_as_it_is():
    """The adapter hands the source over as context: the loss is that of the network itself."""
    found = task()
    torch.manual_seed(0)
    model = Transformer(len(SUBWORDS), dim=16, num_heads=2, depth=1, hidden=16).eval()
    batch = found.batch(1)
    prediction, told = TeacherForced(model)(batch.tokens, **batch.options, return_aux=True)
    direct = model(batch.context, batch.tokens, src_mask=batch.context_mask, tgt_mask=batch.key_mask)
    assert torch.equal(prediction, direct)
    assert told == {}
    mechanism, told = found.model(16, 1, 2, "head_pruning")(batch.tokens, **batch.options, return_aux=True)
    assert mechanism.shape == direct.shape
    assert told


def test_baselines_that_need_no_source():
    found = task()
    values = subword_baselines(found)
    counts, total = torch.ones(len(SUBWORDS)), 0.0
    for target in found.train.target:
        for token in [*target, SUBWORDS.end]:
            counts[token] += 1
    amount = 0
    for number in found.chosen["test"]:
        tokens = torch.tensor([*found.parts["test"].target[number], SUBWORDS.end])
        total -= float((counts / counts.sum())[tokens].log2().sum())
        amount += len(found.parts["test"].text.target[number].encode()) + 1
    assert values["unigram"] == pytest.approx(total / amount, rel=1e-5)
    assert values["bigram"] < values["unigram"]


def test_the_bigrams_are_probabilities():
    """Witten-Bell of a training part of two sentences, by hand."""
    text = ParallelText(("a", "b", "c"), ("a", "a", "a"), ("1", "2", "3"))
    split = SPLIT.__class__(text.at([0, 1]), text.at([2]), text.at([2]), "")
    found = Translation(split, SUBWORDS, 60, 1, 0)
    tokens = [*SUBWORDS.encode("a"), SUBWORDS.end]  # each comes twice, and always behind the same one
    unigram = 3 / (2 * len(tokens) + len(SUBWORDS))
    expected = -len(tokens) * math.log2((2 + 1 * unigram) / (2 + 1)) / 2
    assert subword_baselines(found)["bigram"] == pytest.approx(expected)


def test_phrases_are_looked_up():
    source = ("Open the file", "Close the file", "Open the window", "the window", "Bold", "Save the file now")
    target = ("Datei öffnen", "Datei schließen", "Fenster öffnen", "das Fenster", "Fett", "Jetzt die Datei speichern")
    lookup = PhraseLookup(ParallelText(source, target, source))
    assert lookup.translate("Open the file") == "Datei öffnen"  # the sentence itself
    assert lookup.translate("bold the window!") == "Fett das Fenster!"  # whole sentences inside another one
    assert lookup.translate("Open Bold") == "Öffnen Fett"  # the word that keeps it company
    assert lookup.translate("bold Xyz 12") == "Fett Xyz 12"  # unknown words are copied


def test_scores_carry_their_signature():
    references = ["the cat sat on the mat", "a dog ran to the house"]
    assert bleu(references, references).value == chrf(references, references).value == 100
    assert "tok:13a" in bleu(references, references).signature
    assert "case:lc" in bleu(references, references, lowercase=True).signature
    assert bleu([text.upper() for text in references], references).value < 10
    assert bleu([text.upper() for text in references], references, lowercase=True).value == 100
    assert 0 < sentence_chrf("the cat", references[0]) < 100
    with pytest.raises(InputError, match="1 translations of 2 sentences"):
        chrf(references[:1], references)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, ("zero", "null")),
        (1, ("one", "eins")),
        (16, ("sixteen", "sechzehn")),
        (77, ("seventy-seven", "siebenundsiebzig")),
        (101, ("one hundred and one", "einhunderteins")),
        (1_001, ("one thousand and one", "eintausendeins")),
        (21_130, ("twenty-one thousand one hundred and thirty", "einundzwanzigtausendeinhundertdreißig")),
        (601_300, ("six hundred and one thousand three hundred", "sechshunderteintausenddreihundert")),
        (
            999_999,
            (
                "nine hundred and ninety-nine thousand nine hundred and ninety-nine",
                "neunhundertneunundneunzigtausendneunhundertneunundneunzig",
            ),
        ),
    ],
)
def test_numbers_in_words(number, words):
    assert (english(number), german(number)) == words


def test_an_alignment_is_drawn_with_its_tokens():
    weights = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, float("nan")]])
    picture = alignment_picture(weights, [" die", " Datei"], [" the", " file", "<end>"])
    top, left = picture.shape[0] - 3 - 2 * CELL, picture.shape[1] - 3 - 3 * CELL
    middle = picture[top + CELL // 2 :: CELL, left + CELL // 2 :: CELL][:2, :3].tolist()
    assert middle[0][0] == middle[1][1] == list(STRONG)
    assert middle[0][1] == middle[1][0] == middle[1][2] == list(WEAK)
    assert all(min(a, b) <= c <= max(a, b) for a, b, c in zip(STRONG, WEAK, middle[0][2], strict=True))
    assert (picture[:, : left - 3] < 128).any()  # the words
    with pytest.raises(ValueError, match="for 1 and 2 tokens"):
        alignment_picture(weights, ["a"], ["b", "c"])


def test_the_gallery_shows_translations_and_where_they_looked():
    found, model = task(), Echo(len(SUBWORDS))
    gallery = found.gallery()
    assert isinstance(gallery, TranslationGallery)
    answers, looked = gallery.ask(model)
    assert [sight.words for sight in gallery.inputs] == gallery.sentences
    for sentence, reference, answer, sight in zip(gallery.sentences, gallery.references, answers, looked, strict=True):
        assert answer.words == f"{sentence} (chrF {sentence_chrf(sentence, reference):.0f})"
        assert sight.picture.shape[0] > CELL * len(SUBWORDS.encode(sentence))


def test_a_gallery_without_weights_says_so():
    found = task()

    class Dark(Echo):
        def align(self, src, tgt, *, src_mask=None, tgt_mask=None):
            raise UnsupportedError("nothing has no weights to show")

    _, looked = found.gallery().ask(Dark(len(SUBWORDS)))
    assert {sight.words for sight in looked} == {"nothing has no weights to show"}
