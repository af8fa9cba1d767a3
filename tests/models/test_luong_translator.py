"""Luong's translator: order of reading, padding, steps, what feeding changes, and that it learns."""

import pytest
import torch
from torch.testing import assert_close

from regard.models import LuongTranslator
from tests.models.translators import check_padding, check_steps, draw, learns_to_reverse, tokens

FORMS = {
    "paper": {},
    "parallel": {"input_feeding": False},
    "global": {"alignment": "global", "score": "dot", "reverse_source": False},
    "monotonic": {"alignment": "local-m", "half_window": 2, "score": "concat"},
    "location": {"alignment": "global", "score": "location", "max_length": 9, "input_feeding": False},
}


def built(depth=2, **options):
    return draw(LuongTranslator(11, 13, dim=6, depth=depth, **options))


@pytest.mark.parametrize("form", FORMS)
def test_step_by_step_is_the_whole(form):
    check_steps(built(**FORMS[form]))


@pytest.mark.parametrize("form", FORMS)
def test_padding_of_either_side_changes_nothing(form):
    check_padding(built(**FORMS[form]))


def cell(lstm, layer, x, h, c):
    i, f, g, o = (x @ getattr(lstm, f"weight_ih_l{layer}").T + h @ getattr(lstm, f"weight_hh_l{layer}").T).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


@torch.no_grad()
def written_out(model, src, tgt):
    """Word by word, with global dot attention."""
    layers = range(model.decoder.depth)
    zero = torch.zeros(len(src), 6, dtype=torch.float64)
    hidden, cells, tops, logits = [zero for _ in layers], [zero for _ in layers], [], []
    for word in reversed(src.unbind(1)):
        x = model.embedding(word)
        for layer in layers:
            x, cells[layer] = cell(model.encoder, layer, x, hidden[layer], cells[layer])
            hidden[layer] = x
        tops.insert(0, x)
    y = zero
    for word in tgt.unbind(1):
        x = (
            torch.cat((model.target_embedding(word), y), -1)
            if model.decoder.input_feeding
            else model.target_embedding(word)
        )
        for layer in layers:
            x, cells[layer] = cell(model.decoder.lstm, layer, x, hidden[layer], cells[layer])
            hidden[layer] = x
        shares = torch.stack([(x * top).sum(-1) for top in tops], -1).softmax(-1)
        c = sum(shares[:, j, None] * top for j, top in enumerate(tops))
        y = (torch.cat((c, x), -1) @ model.decoder.attention.out_proj.weight.T).tanh()
        logits.append(y @ model.output.weight.T)
    return torch.stack(logits, 1)


@pytest.mark.parametrize("feeding", [True, False])
def test_is_what_the_paper_says_word_by_word(feeding):
    model = built(alignment="global", score="dot", input_feeding=feeding)
    src, tgt = tokens(3, 5, 11), tokens(3, 4, 13)
    assert_close(model(src, tgt), written_out(model, src, tgt), rtol=0, atol=1e-12)


def test_alignments_stand_at_the_places_of_the_words():
    model = built(alignment="local-m", half_window=1)
    weights = model.align(tokens(2, 6, 11), tokens(2, 8, 13))
    for t in range(8):
        centre = min(t, 5)
        assert weights[0, t].nonzero().flatten().tolist() == [j for j in range(6) if abs(j - centre) <= 1]
    assert_close(weights.sum(-1), torch.ones(2, 8, dtype=torch.float64))


@pytest.mark.parametrize("feeding", [True, False])
def test_dropout_acts_in_training_alone(feeding):
    for depth in (1, 2):
        model, src, tgt = built(depth, dropout=0.5, input_feeding=feeding), tokens(2, 6, 11), tokens(2, 4, 13)
        assert_close(model(src, tgt), model(src, tgt), rtol=0, atol=0)
        model.train()
        assert not torch.equal(model(src, tgt), model(src, tgt))


@pytest.mark.parametrize("feeding", [True, False])
def test_dropout_acts_on_the_input_of_every_lstm(feeding):
    src, tgt = tokens(2, 6, 11), tokens(2, 4, 13)
    for depth in (1, 2):
        model = built(depth, dropout=1.0, input_feeding=feeding).train()
        assert not model(src, tgt).any(), "where no word comes in, all states stay 0"


def test_starts_within_a_tenth_and_without_biases():
    model = LuongTranslator(11, dim=6, depth=2)
    assert all(name.endswith(("weight", "_l0", "_l1")) for name, _ in model.named_parameters())
    assert all(0.05 < parameter.abs().max() <= 0.1 for parameter in model.parameters())
    assert model.output.out_features == 11


def test_in_half_precision():
    logits = LuongTranslator(11, dim=6, depth=2, dtype=torch.bfloat16)(tokens(2, 5, 11), tokens(2, 4, 11))
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


def test_learns_to_reverse():
    model = LuongTranslator(6, dim=24, depth=1, alignment="global", dropout=0.0, input_feeding=False)
    accuracy, pointed = learns_to_reverse(model, steps=100)
    assert accuracy > 0.9
    assert pointed > 0.6, "of 1/3 by chance"


def test_refusals():
    model = built()
    with pytest.raises(ValueError, match=r"src_mask has shape \(2, 5\)"):
        model(tokens(2, 6, 11), tokens(2, 4, 13), src_mask=torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(TypeError, match="tgt_mask"):
        model(tokens(2, 6, 11), tokens(2, 4, 13), tgt_mask=torch.ones(2, 4))
