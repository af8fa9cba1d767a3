"""The encoder against torch's packed LSTM, padding anywhere, the network's parts put together by hand."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.testing import assert_close

from regard.models.mac_network import Dropouts, ImageStem, MACNetwork
from regard.models.question_encoder import QuestionEncoder

SIZES = {"dim": 8, "steps": 3, "channels": 3, "embedding_dim": 6, "hidden_dim": 7, "strides": (2, 2)}


def reference(encoder):
    """The same weights in torch's own LSTM of two directions."""
    both = nn.LSTM(encoder.embedding.embedding_dim, encoder.forwards.hidden_size, batch_first=True, bidirectional=True)
    state = dict(encoder.forwards.state_dict())
    state |= {f"{name}_reverse": value for name, value in encoder.backwards.state_dict().items()}
    both.load_state_dict(state)
    return both


def test_the_encoder_is_a_packed_lstm_wherever_padding_stands():
    encoder, lengths = QuestionEncoder(20, 6, 8), torch.tensor([7, 3, 1])
    tokens = torch.randint(20, (3, 7))
    packed = pack_padded_sequence(encoder.embedding(tokens), lengths, batch_first=True)
    states, (last, _) = reference(encoder)(packed)
    expected, whole = pad_packed_sequence(states, batch_first=True)[0], torch.cat((last[0], last[1]), -1)
    real = torch.arange(7) < lengths[:, None]
    words, question = encoder(tokens, real)
    assert_close(words, expected)
    assert_close(question, whole)
    assert not words[~real].any()
    for shift in (1, 4):  # padding on both sides, or on the left
        turned, mask = (torch.stack([row.roll(shift * (b > 0)) for b, row in enumerate(t)]) for t in (tokens, real))
        again, q = encoder(turned, mask)
        assert_close(again[mask], expected[real])
        assert_close(q, whole)
    assert_close(encoder(tokens[:1])[1], whole[:1])


def test_holes_in_a_question_and_a_question_without_words():
    encoder, tokens = QuestionEncoder(20, 6, 8), torch.randint(20, (2, 5))
    mask = torch.tensor([[True, False, True, True, False], [False] * 5])
    words, question = encoder(tokens.masked_fill(~mask, 10**6), mask)
    alone, whole = encoder(tokens[:1, [0, 2, 3]])
    assert_close(words[0, [0, 2, 3]], alone[0])
    assert_close(question[0], whole[0])
    assert not words[1].any()
    assert not question[1].any()


def test_forget_gates_start_open():
    encoder = QuestionEncoder(20, 6, 8)
    for lstm in (encoder.forwards, encoder.backwards):
        total = lstm.bias_ih_l0 + lstm.bias_hh_l0
        assert total.tolist() == [0.0] * 4 + [1.0] * 4 + [0.0] * 8
    with pytest.raises(ValueError, match="dim=7 is odd"):
        QuestionEncoder(20, 6, 7)


def test_the_stem_knows_where_things_are():
    x = torch.zeros(1, 3, 4, 6)
    assert ImageStem(3, 8)(x).shape == (1, 8, 4, 6)
    inner = ImageStem(3, 8)(x)[0, :, 1:3, 1:5].flatten(1)
    assert_close(inner, inner[:, :1].expand_as(inner))
    stem, seen = ImageStem(3, 8, strides=(2,), positions=True), []
    stem.convolutions[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert stem(x).shape == (1, 8, 2, 3)
    assert_close(seen[0][0, 3], torch.linspace(-1, 1, 4)[:, None].expand(4, 6))
    assert_close(seen[0][0, 4], torch.linspace(-1, 1, 6).expand(4, 6))


def test_the_parts_put_together_and_what_they_tell():
    model = MACNetwork(20, 5, **SIZES).double().eval()
    tokens, images = torch.randint(20, (2, 6)), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    words, q = model.encoder(tokens, mask)
    cells = model.stem(images).flatten(2).mT
    memory = model.mac(words, cells, question=q, query_mask=mask)
    both = torch.cat((memory, model.question_proj(q)), -1)
    expected = model.classifier.last(nn.functional.elu(model.classifier.first(both)))
    logits, told = model(tokens, context=images, key_mask=mask, return_aux=True)
    assert_close(logits, expected, rtol=0, atol=0)
    assert {name: tuple(value.shape) for name, value in told.items()} == {
        "map/mac/words": (2, 3, 6),
        "map/mac/knowledge": (2, 3, 16),
    }
    assert_close(model(tokens[1:, :4], context=images[1:]), logits[1:])
    half = torch.arange(16).expand(2, -1) < 8
    _, told = model(tokens, context=images, context_mask=half, return_aux=True)
    assert not told["map/mac/knowledge"][..., 8:].any()


def test_dropouts_reach_their_places():
    tokens, images = torch.randint(20, (4, 6)), torch.randn(4, 3, 16, 16)
    for name in Dropouts._fields:
        none = dict.fromkeys(Dropouts._fields, 0.0)
        model = MACNetwork(20, 5, **SIZES, dropouts=Dropouts(**none | {name: 0.5}))
        assert not torch.equal(model.train()(tokens, context=images), model.eval()(tokens, context=images)), name
    assert Dropouts() == (0.15, 0.08, 0.18, 0.15, 0.15, 0.15)
    still = MACNetwork(20, 5, **SIZES, dropouts=Dropouts(*[0.0] * 6))
    assert_close(still.train()(tokens, context=images), still.eval()(tokens, context=images), rtol=0, atol=0)


def test_every_parameter_learns_and_is_reset():
    model = MACNetwork(20, 5, **SIZES, positions=True, feed_control=True, self_attention="continuous", gate="vector")
    model(torch.randint(20, (4, 6)), context=torch.randn(4, 3, 16, 16)).logsumexp(-1).sum().backward()
    flat = ("logits.bias", "self_logits.bias")  # a softmax does not see them
    assert not [n for n, p in model.named_parameters() if not n.endswith(flat) and (p.grad is None or not p.grad.any())]
    for parameter in model.parameters():
        nn.init.constant_(parameter, torch.nan)
    model.reset_parameters()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_images_of_other_channels_are_refused():
    with pytest.raises(ValueError, match=r"context has shape \(2, 1, 16, 16\), expected \(batch, 3, height, width\)"):
        MACNetwork(20, 5, **SIZES)(torch.randint(20, (2, 6)), context=torch.randn(2, 1, 16, 16))
