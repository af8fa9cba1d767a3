"""Captions: padding, step by step, and what the three objectives minimise."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from regard.models.caption_losses import CaptionLoss
from regard.models.captioner import Captioner
from regard.registry import UnsupportedError

SIZES = {"dim": 5, "embedding_dim": 4, "context_dim": 3}
BUILD = {
    "soft": {},
    "hard": {"attention": "hard", "temperature": 2.0},
    "deep": {"num_layers": 2, "attention_layers": 3, "output_layers": 2},
    "plain": {"init_layers": 1, "selector": False, "previous_out": False, "context_out": False},
    "dropout": {"dropout": 0.5, "gate_dropout": True},
}


def build(seed=0, **options):
    model = Captioner(7, **SIZES, **options).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6, generator=generator)
    return model


def inputs(batch=2, length=4, places=3):
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(7, (batch, length), generator=generator)
    return words, torch.randn(batch, places, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind", BUILD)
def test_padding_changes_nothing(kind):
    model = build(**BUILD[kind]).eval()
    words, annotations = inputs()
    alone = model(words, annotations)
    places = torch.cat((annotations, annotations.new_full((2, 2, 3), torch.nan)), 1).flip(1)
    real = (torch.arange(5) >= 2).expand(2, 5)
    for left in (0, 2):
        padded = torch.nn.functional.pad(words, (left, 2 - left))
        mask = (torch.arange(6) >= left) & (torch.arange(6) < left + 4)
        options = {"word_mask": mask.expand(2, 6), "location_mask": real}
        assert_close(model(padded, places, **options)[:, mask], alone, rtol=0, atol=1e-12)
        loss = CaptionLoss(doubly_stochastic=1.0)
        assert_close(loss(model, padded, places, **options)[0], loss(model, words, annotations)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", BUILD)
def test_step_by_step_is_the_same(kind):
    model = build(**BUILD[kind]).eval()
    words, annotations = inputs()
    memory = model.begin(annotations)
    previous = torch.full((2,), -1)
    for word, expected in zip(words.T, model(words, annotations).transpose(0, 1), strict=True):
        logits, memory = model.step(previous, memory)
        assert_close(logits, expected, rtol=0, atol=1e-12)
        previous = word


@pytest.mark.parametrize("end", [0, 1])
def test_a_caption_is_the_likeliest_words_up_to_the_end(end):
    model = build().eval()
    _, annotations = inputs(batch=5)
    words = model.caption(annotations, end=end, max_length=9)
    logits = model(words, annotations)
    for row, scores in zip(words, logits, strict=True):
        length = int((row == end).nonzero()[0]) + 1 if (row == end).any() else len(row)
        assert_close(row[:length], scores.argmax(-1)[:length])
        assert bool((row[length:] == end).all())


def test_captions_are_drawn_by_a_generator():
    model = build().eval()
    _, annotations = inputs(batch=5)
    drawn = [model.caption(annotations, temperature=2.0, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert_close(drawn[0], drawn[1])
    assert drawn[0].shape != drawn[2].shape or not torch.equal(drawn[0], drawn[2])
    words = model.caption(annotations, temperature=9.0, max_length=20, generator=torch.Generator().manual_seed(0))
    ended = (words == 0).cumsum(1) > 0
    assert ended[:, -2].any(), "some end before the last word"
    assert not words[ended].any(), "and nothing follows the end"


def jensen(model, words, annotations):
    """The bound by a loop over all rows of places."""
    total = 0.0
    for b in range(len(words)):
        for path in itertools.product(range(annotations.shape[1]), repeat=words.shape[1]):
            samples = torch.nn.functional.one_hot(torch.tensor([path]), annotations.shape[1]).double()
            run = model.run(words[b : b + 1], annotations[b : b + 1], samples=samples, sampled=torch.tensor(True))
            log_p = sum(run.log_weights[0, t, place] for t, place in enumerate(path))
            nll = -run.logits.log_softmax(-1)[0].gather(-1, words[b][:, None]).sum()
            total = total + log_p.exp() * nll
    return total / len(words)


def test_the_exact_bound_is_the_sum_over_all_rows_of_places():
    model = build(attention="hard")
    words, annotations = inputs(length=3)
    loss, _ = CaptionLoss(objective="bound")(model, words, annotations)
    expected = jensen(model, words, annotations)
    assert_close(loss, expected, rtol=0, atol=1e-12)
    found, wanted = (torch.autograd.grad(value, model.decoder[0].attention.u)[0] for value in (loss, expected))
    assert_close(found, wanted, rtol=0, atol=1e-12)
    padded, mask = torch.nn.functional.pad(words, (0, 1)), (torch.arange(4) < 3).expand(2, 4)
    assert_close(
        CaptionLoss(objective="bound")(model, padded, annotations, word_mask=mask)[0], loss, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(
    "objective",
    [
        {"objective": "bound", "num_samples": 4},
        {"objective": "bound", "num_samples": 1},
        {"objective": "reinforce", "entropy_weight": 0.0},
    ],
    ids=str,
)
def test_draws_have_the_gradient_of_the_bound_in_the_mean(objective):
    model = build(attention="hard", sampling=1.0).train()
    words, annotations = inputs(batch=1, length=2)
    names = dict(model.named_parameters())
    wanted = torch.autograd.grad(CaptionLoss(objective="bound")(model, words, annotations)[0], names.values())
    rows, place = 3000, torch.Generator().manual_seed(3)
    loss = CaptionLoss(**objective)
    value, _ = loss(model, words.expand(rows, -1), annotations.expand(rows, -1, -1), generator=place)
    found = torch.autograd.grad(value, names.values())
    for name, slope, expected in zip(names, found, wanted, strict=True):
        assert_close(slope, expected, rtol=0, atol=0.12, msg=lambda text, name=name: f"{name}: {text}")
    key = [name.endswith("attention.u") for name in names].index(True)
    assert wanted[key].abs().max() > 0.15, "a draw without its score would be seen"


def test_the_baseline_follows_and_is_used():
    model = build(attention="hard", sampling=1.0).train()
    words, annotations = inputs()
    slopes = []
    for _ in range(2):
        seed = torch.Generator().manual_seed(0)
        before = float(model.baseline)
        loss, parts = CaptionLoss(objective="reinforce")(model, words, annotations, generator=seed)
        assert loss.item() == pytest.approx(parts["metric/nll"].item()), "what is added has the value 0"
        assert float(model.baseline) == pytest.approx(0.9 * before + 0.1 * loss.item())
        slopes.append(torch.autograd.grad(loss, model.decoder[0].attention.u)[0])
    assert not torch.allclose(*slopes), "the second had another baseline"
    model.eval()
    CaptionLoss(objective="reinforce")(model, words, annotations)
    assert float(model.baseline) == pytest.approx(0.19 * loss.item()), "evaluation leaves it alone"


def test_more_entropy_is_asked_for():
    model = build(attention="hard", sampling=0.0).train()
    words, annotations = inputs()
    plain, pushed = (
        torch.autograd.grad(
            CaptionLoss(objective="reinforce", entropy_weight=weight)(model, words, annotations)[0],
            model.decoder[0].attention.u,
        )[0]
        for weight in (0.0, 2.0)
    )
    weights = model.run(words, annotations).log_weights
    spread = -(weights.exp() * weights).sum(-1).sum(1).mean()
    assert_close(pushed - plain, -2 * torch.autograd.grad(spread, model.decoder[0].attention.u)[0], rtol=0, atol=1e-12)


def test_dropout_keeps_its_numbers_and_evaluation_shrinks_them():
    plain, dropping = build(init_layers=1), build(init_layers=1, dropout=0.5)
    words, annotations = inputs()
    dropping.load_state_dict(plain.state_dict())
    with torch.no_grad():
        plain.output.weight.mul_(0.5)
        plain.state_out.weight.mul_(0.5)
    assert_close(dropping.eval()(words, annotations), plain.eval()(words, annotations), rtol=0, atol=1e-12)
    first, second = (dropping.train()(words, annotations, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    assert not torch.allclose(first, second)


def test_it_learns_captions_by_heart():
    torch.manual_seed(0)
    model = Captioner(7, dim=24, embedding_dim=12, context_dim=3, init_layers=1, attention_layers=1)
    words, annotations = inputs(batch=6)
    annotations = annotations.float()
    optimiser = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(60):
        optimiser.zero_grad()
        loss, _ = CaptionLoss(doubly_stochastic=0.1)(model, words, annotations)
        loss.backward()
        optimiser.step()
    nll = CaptionLoss()(model, words, annotations)[0].item()
    assert nll < 0.3 * 4 * torch.log(torch.tensor(7.0)), "uniform words would cost 4 log 7"


def test_everything_is_made_where_asked():
    model = Captioner(7, **SIZES, encoder=True, output_layers=2, device="meta")
    assert {t.device.type for t in model.state_dict().values()} == {"meta"}
    model = Captioner(7, **SIZES, encoder=True, dtype=torch.bfloat16)
    words, annotations = inputs()
    assert model(words, annotations.bfloat16()).dtype == torch.bfloat16


def test_refusals():
    words, annotations = inputs()
    soft, hard = build(), build(attention="hard")
    with pytest.raises(UnsupportedError, match='for attention="hard"'):
        CaptionLoss(objective="reinforce")(soft, words, annotations)
    with pytest.raises(UnsupportedError, match=r"2 x 30\^4 rows of places"):
        CaptionLoss(objective="bound")(hard, words, torch.randn(2, 30, 3).double())
    with pytest.raises(UnsupportedError, match="takes no samples"):
        CaptionLoss(objective="bound")(hard, words, annotations, sampled=torch.tensor(True))
    with pytest.raises(UnsupportedError, match="one layer"):
        CaptionLoss(objective="bound", num_samples=2)(build(attention="hard", num_layers=2), words, annotations)
    with pytest.raises(UnsupportedError, match="encoder=True"):
        build(encoder=True)(words, annotations, location_mask=torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="no captions of 2 images"):
        soft(words[:1], annotations)
    with pytest.raises(ValueError, match="dim=0"):
        Captioner(7, dim=0)
    for options in ({"objective": "guess"}, {"num_samples": 2}, {"eps": -1.0}, {"baseline_decay": 1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            CaptionLoss(**options)
    with pytest.raises(ValueError, match="doubly_stochastic"):
        CaptionLoss(objective="bound", doubly_stochastic=1.0)
