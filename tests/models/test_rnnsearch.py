"""RNNsearch: the equations word by word, padding, steps, its start, and that it learns."""

import pytest
import torch
from torch.testing import assert_close

from regard.models import RNNsearch
from tests.models.translators import check_padding, check_steps, draw, learns_to_reverse, tokens


def built():
    return draw(RNNsearch(11, 13, dim=6, embedding_dim=5, maxout_dim=4, hidden_dim=3))


def test_step_by_step_is_the_whole():
    check_steps(built())


def test_padding_of_either_side_changes_nothing():
    check_padding(built())


def gated(contributions, state, recurrent):
    """z, r, candidate; U_z and U_r in one, U."""
    gates = state @ recurrent.state_gates.weight.T
    z = torch.sigmoid(contributions[0] + gates[:6])
    r = torch.sigmoid(contributions[1] + gates[6:])
    return (1 - z) * state + z * torch.tanh(contributions[2] + recurrent.state_candidate.weight @ (r * state))


def words_of(part, embedded):
    gates = part.word_gates.weight @ embedded
    return [gates[:6], gates[6:], part.word_candidate.weight @ embedded + part.word_candidate.bias]


@torch.no_grad()
def written_out(model, src, tgt):
    """One sentence."""
    zero = torch.zeros(6, dtype=torch.float64)
    onwards, back = [zero], [zero]
    for token in src:
        onwards.append(gated(words_of(model.forwards, model.embedding(token)), onwards[-1], model.forwards))
    for token in src.flip(0):
        back.append(gated(words_of(model.backwards, model.embedding(token)), back[-1], model.backwards))
    h = torch.stack([torch.cat(pair) for pair in zip(onwards[1:], back[:0:-1], strict=True)])
    s, logits = torch.tanh(model.first.weight @ back[-1] + model.first.bias), []
    decoder, attention = model.decoder, model.decoder.attention
    for token in tgt:
        scores = (
            torch.tanh(attention.query_proj.weight @ s + h @ attention.key_proj.weight.T) @ attention.vector.weight[0]
        )
        c = scores.softmax(0) @ h
        y = model.target_embedding(token)
        t = model.readout.weight @ torch.cat((s, y, c)) + model.readout.bias
        logits.append(model.output.weight @ torch.stack([t[2 * unit : 2 * unit + 2].max() for unit in range(4)]))
        from_context = (decoder.context_maps.weight @ c).chunk(3)
        s = gated([a + b for a, b in zip(words_of(model, y), from_context, strict=True)], s, decoder)
    return torch.stack(logits)


def test_is_what_the_paper_says_word_by_word():
    model, src, tgt = built(), tokens(2, 5, 11), tokens(2, 4, 13)
    found = model(src, tgt)
    for b in range(2):
        assert_close(found[b], written_out(model, src[b], tgt[b]), rtol=0, atol=1e-12)


def test_starts_as_the_paper_says():
    torch.manual_seed(0)
    model = RNNsearch(50, dim=40, embedding_dim=30, maxout_dim=20)
    for part in (model.forwards, model.backwards, model.decoder):
        for block in (*part.state_gates.weight.split(40), part.state_candidate.weight):
            assert_close(block @ block.T, torch.eye(40), rtol=0, atol=1e-5)
    for weight in (model.embedding.weight, model.readout.weight, model.decoder.context_maps.weight):
        assert abs(weight.std().item() / 0.01 - 1) < 0.1
    assert not model.decoder.attention.vector.weight.any()
    weights = model.align(tokens(1, 7, 50), tokens(1, 3, 50))
    assert_close(weights, torch.full((1, 3, 7), 1 / 7), rtol=0, atol=1e-6)


def test_in_half_precision():
    model, src, tgt = (
        RNNsearch(11, dim=6, embedding_dim=5, maxout_dim=4, dtype=torch.bfloat16),
        tokens(2, 5, 11),
        tokens(2, 4, 11),
    )
    logits = model(src, tgt)
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


def test_learns_to_reverse():
    model = RNNsearch(6, dim=24, embedding_dim=12, maxout_dim=24)
    accuracy, pointed = learns_to_reverse(model, steps=100)
    assert accuracy > 0.9
    assert pointed > 0.45, "of 1/3 by chance"


def test_refusals():
    model = built()
    with pytest.raises(ValueError, match=r"src_mask has shape \(2, 5\)"):
        model.begin(tokens(2, 6, 11), torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(TypeError, match="tgt_mask"):
        model(tokens(2, 6, 11), tokens(2, 4, 13), tgt_mask=torch.ones(2, 4))
