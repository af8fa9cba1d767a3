"""The decoder as its loop; stepwise as at once; padding."""

import math

import pytest
import torch
from torch.testing import assert_close

from regard.memory import reorder
from regard.models.location_decoder import LocationDecoder


def decoder(**options):
    made = LocationDecoder(7, 5, dim=6, embed_dim=4, hidden_dim=3, channels=2, radius=2, **options).double().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return made


def equations(model, frames, tokens):
    """Logits and weights of one utterance."""
    hidden = cell = torch.zeros(6, dtype=torch.float64)
    attention, rows, logits = model.attention, [], []
    weights = torch.full((len(frames),), 1 / len(frames), dtype=torch.float64)
    for token in tokens.tolist():
        padded = torch.nn.functional.pad(weights, (2, 2))
        heard = torch.stack([attention.filters.weight[:, 0] @ padded[j : j + 5] for j in range(len(frames))])
        inside = attention.key_proj(frames) + attention.query_proj(hidden) + attention.filter_proj(heard)
        weights = (attention.scaling * attention.vector(inside.tanh())[:, 0]).softmax(0)
        below = torch.cat((model.embed.weight[token], weights @ frames))
        gates = model.cell.weight_ih @ below + model.cell.bias_ih + model.cell.weight_hh @ hidden + model.cell.bias_hh
        i, f, g, o = gates.chunk(4)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        rows.append(weights)
        logits.append(model.out_proj(hidden))
    return torch.stack(logits), torch.stack(rows)


def test_matches_the_equations_and_padding_changes_nothing():
    model, frames, tokens = decoder(), torch.randn(2, 9, 5).double(), torch.tensor([[6, 1, 2, 3], [6, 4, 4, 5]])
    mask = torch.arange(9) < torch.tensor([[9], [5]])
    logits, weights = model(frames.masked_fill(~mask[..., None], math.nan), tokens, key_mask=mask)
    for number, length in enumerate((9, 5)):
        expected, rows = equations(model, frames[number, :length], tokens[number])
        assert_close(logits[number], expected, rtol=0, atol=1e-12)
        assert_close(weights[number, :, :length], rows, rtol=0, atol=1e-12)
        assert not weights[number, :, length:].any()


def test_steps_in_another_order_are_those_of_the_whole():
    model, frames, tokens = decoder(), torch.randn(3, 8, 5).double(), torch.randint(7, (3, 4))
    order = torch.tensor([2, 0, 0])
    logits, weights = model(frames[order], tokens)
    memory = reorder(model.begin(frames), order)
    for place, token in enumerate(tokens.unbind(1)):
        found, memory = model.step(token, memory)
        assert_close(found, logits[:, place], rtol=0, atol=1e-12)
        assert_close(memory.weights, weights[:, place], rtol=0, atol=1e-12)


def test_every_parameter_learns_and_is_drawn_again():
    model = decoder()
    logits, _ = model(torch.randn(2, 8, 5).double(), torch.randint(7, (2, 4)))
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        if name != "attention.vector.bias":  # a softmax does not see what is added to all scores
            assert parameter.grad.any(), name
    before = {name: t.clone() for name, t in model.state_dict().items()}
    model.reset_parameters()
    assert all(not t.equal(before[name]) for name, t in model.state_dict().items())


def test_dropout_is_for_training():
    model, frames, tokens = decoder(drop=0.5), torch.randn(1, 8, 5).double(), torch.randint(7, (1, 4))
    assert_close(model(frames, tokens)[0], model(frames, tokens)[0], rtol=0, atol=0)
    model.train()
    assert not model(frames, tokens)[0].equal(model(frames, tokens)[0])


def test_refusals():
    with pytest.raises(ValueError, match=r"context has shape \(1, 8, 4\), expected \(batch, length, 5\)"):
        decoder()(torch.randn(1, 8, 4).double(), torch.tensor([[6]]))
