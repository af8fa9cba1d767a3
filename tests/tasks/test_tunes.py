import math

import pytest
import torch
from torch.testing import assert_close

from regard.tasks.documents import Document, InputError
from regard.tasks.tune_faults import END, faults, figures
from regard.tasks.tunes import SIGNS, Tunes, compose_tunes, corpus, ngram_tunes, split_tunes, text_of, tokens_of
from regard.train.budget import Budget
from regard.train.trainer import Trainer

NOTES = "CDEFGABcdefgab"


def some_tunes(count=80, bars=4):
    """Scales, up from a note or down to it."""
    made = []
    for number in range(count):
        up = [NOTES[(number + step) % len(NOTES)] for step in range(8)]
        line = "|".join("".join(up[: 4 + number % 3]) for _ in range(bars))
        made.append(Document(f"tune {number}", f"X:1\nM:C\nL:1/8\nK:C\n{line}|{number}\n\n".encode()))
    return made


def task(**options):
    return Tunes(split_tunes(some_tunes()), **{"length": 48, "batch": 4, **options})


def test_characters_are_numbers_and_back():
    assert len(SIGNS) == Tunes.vocab_size == 96
    assert text_of(tokens_of(SIGNS).tolist()) == SIGNS
    assert tokens_of(SIGNS).tolist() == list(range(96))


def test_the_split_depends_on_the_text_alone():
    tunes = some_tunes()
    split = split_tunes(tunes)
    other = split_tunes([Document("another name", tune.data) for tune in reversed(tunes)])
    for part in ("train", "validation", "test"):
        assert {tune.data for tune in getattr(split, part)} == {tune.data for tune in getattr(other, part)}
    assert len(split.train) + len(split.validation) + len(split.test) == 80
    with pytest.raises(InputError, match="1 tunes are too few"):
        split_tunes(tunes[:1])


def test_training_rows_begin_with_a_tune_and_are_full():
    made = task(seed=3)
    batch = made.batch(5)
    assert batch.tokens.shape == (4, 48)
    assert torch.equal(batch.tokens, made.batch(5).tokens)
    assert not torch.equal(batch.tokens, made.batch(6).tokens)
    assert not torch.equal(batch.tokens, task(seed=4).batch(5).tokens)
    assert batch.targets is batch.tokens
    train = {tune.data.decode() for tune in made.split.train}
    for row in batch.tokens.tolist():
        whole = text_of(row).split(END)[0] + END
        assert any(tune.startswith(whole.rstrip("\n")) for tune in train)


def test_every_held_out_character_is_judged_once():
    made = task(length=20)  # so that tunes are cut
    for part in ("validation", "test"):
        there = sorted("".join(tune.data.decode() for tune in getattr(made.split, part)))
        judged = "".join(
            text_of(tokens[real].tolist())
            for batch in made.held_out(part)
            for tokens, real in zip(batch.tokens, batch.key_mask, strict=True)
        )
        assert sorted(judged) == there
        assert sum(sum(batch.amounts) for batch in made.held_out(part)) == len(there)


def test_loss_and_scores_leave_padding_out():
    made = task()
    (batch, *_) = made.held_out("test")
    logits = torch.zeros(*batch.tokens.shape, 96)
    assert_close(float(made.loss(logits, batch)), math.log(96), rtol=0, atol=1e-5)
    assert_close(made.scores(logits, batch), torch.tensor(batch.amounts).double() * math.log2(96), rtol=0, atol=1e-3)
    other = torch.where(batch.key_mask[..., None], logits, 100 * torch.randn_like(logits))
    assert_close(made.scores(other, batch), made.scores(logits, batch))


def test_baselines_know_more_and_more():
    found = task().baselines()
    assert_close(found["uniform"], math.log2(96))
    assert found["uniform"] > found["unigram"] > found["bigram"] > found["trigram"] > 0
    assert 0 < found["xz"] < found["uniform"]


def test_an_ngram_judges_each_character_after_all_before_it():
    made = task()
    model = made.ngram(3)
    bits = count = 0
    for tune in made.split.test:
        tokens = tokens_of(tune.data.decode()).tolist()
        for place, token in enumerate(tokens):
            bits -= float(model.score([tuple(tokens[:place])])[0, token]) / math.log(2)
            count += 1
    assert_close(made.baselines()["trigram"], bits / count, rtol=0, atol=1e-9)


def test_a_prior_learns_scales():
    made = task(length=64, batch=8)
    torch.manual_seed(0)
    model = made.model(32, 3, 2, row_length=8, attention_ratio=1.0, init_scale=4.0)
    trainer = Trainer(model, made, Budget(steps=60), rate=1e-2, device="cpu")
    before = trainer.judge("validation").quality
    while trainer.spent < 1:
        trainer.step()
    assert trainer.judge("validation").quality < 0.6 * before
    written = compose_tunes(model, 4, temperature=0.5, generator=torch.Generator().manual_seed(0))
    assert all(set(tune) <= set(SIGNS) for tune in written)
    with pytest.raises(InputError, match="Jukebox prior"):
        made.model(32, 3, 2, "full")


def test_an_ngram_writes_tunes_that_end():
    (tune, other) = ngram_tunes(task().ngram(4), 2, 200, generator=torch.Generator().manual_seed(0))
    assert tune.endswith(END)
    assert tune.count(END) == 1
    assert tune != other


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("X:1\n", "", ["no number"]),
        ("K:G", "K:H", ["no key"]),
        ("M:2/4", "M:", ["no metre"]),
        ("GABc|", "(GABc|", ["brackets do not close"]),
        ("GABc|", "{GABc|", ["brackets do not close"]),
        ("GABc|", "(3GABc|", []),
        ("GABc|", "(GAB)c|", []),
        ("dcBA|GABc|", "", ["fewer than 4 bars"]),
        ("\n\n", "\n", ["no end"]),
    ],
)
def test_faults(old, new, found):
    sound = "X:1\nM:2/4\nL:1/8\nK:G\nGABc|dcBA|GABc|dcBA|\n\n"
    assert faults(sound.replace(old, new, 1)) == found


def test_figures_are_shares():
    sound = "X:1\nM:2/4\nL:1/8\nK:G\nGABc|dcBA|GABc|dcB|\n\n"
    assert figures([sound, sound.replace("K:G", "K:H")]) == {"well formed": 0.5, "whole bars": 0.75}
    assert figures([]) == {"well formed": 0.0, "whole bars": 0.0}


def test_a_folder_like_music21s(tmp_path):
    for name in ("oneills1850", "airdsAirs", "bach"):
        (tmp_path / name).mkdir()
    for name in ("oneills1850", "airdsAirs"):
        (tmp_path / name / "a.abc").write_text("X:1\nT:a\nM:C\nL:1/8\nK:C\nCDEF GABc|cBAG FEDC|\n")
    with pytest.raises(InputError, match="no melody"):
        corpus(tmp_path)
