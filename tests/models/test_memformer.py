import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.models.memformer import Memformer


def small(**options):
    options = {"dim": 8, "num_heads": 2, "depth": 2, "num_slots": 3, **options}
    return Memformer(11, **options, dtype=torch.float64).eval()


def translator(**options):
    return small(target_vocab_size=7, decoder_depth=2, **options)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_neither_the_encoding_nor_the_slots(side):
    model, tokens = translator(), torch.randint(11, (1, 6))
    pads = (2, 0) if side == "left" else (0, 2)
    mask, target = F.pad(torch.ones_like(tokens), pads) > 0, torch.randint(7, (1, 4))
    (y, after), (padded, others) = model(tokens), model(F.pad(tokens, pads), key_mask=mask)
    assert_close(padded[mask], y[0], rtol=0, atol=1e-12)
    assert_close(others.slots, after.slots, rtol=0, atol=1e-12)
    logits, _ = model(F.pad(tokens, pads), target, key_mask=mask)
    assert_close(logits, model(tokens, target)[0], rtol=0, atol=1e-12)


def test_what_was_read_before_is_known_later_and_only_through_the_slots():
    model, tokens = small(), torch.randint(11, (1, 12))
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 11
    outs = []
    for source in (tokens, changed):
        _, memory = model.stream(source[:, :6], model.memory(1))
        outs.append(model.stream(source[:, 6:], memory)[0])
        outs.append(model.stream(source[:, 6:], model.memory(1))[0])
    assert not torch.allclose(outs[0], outs[2])
    assert_close(outs[1], outs[3], rtol=0, atol=0)


def test_the_encoder_sees_both_ways_and_the_decoder_only_back():
    model, tokens, target = translator(), torch.randint(11, (1, 6)), torch.randint(7, (1, 5))
    changed, moved = tokens.clone(), target.clone()
    changed[:, 5], moved[:, 3] = (changed[:, 5] + 1) % 11, (moved[:, 3] + 1) % 7
    assert not torch.allclose(model(changed)[0][:, 0], model(tokens)[0][:, 0])
    first, second = model(tokens, target)[0], model(tokens, moved)[0]
    assert_close(second[:, :3], first[:, :3], rtol=0, atol=1e-12)
    assert not torch.allclose(second[:, 3:], first[:, 3:])


def test_distances_have_two_sides_in_the_encoder():
    model, tokens = small(depth=1), torch.zeros(1, 5, dtype=torch.long)
    y, _ = model(tokens)
    with torch.no_grad():
        model.encoder.bias.weight[17] += 3  # one place ahead
    changed, _ = model(tokens)
    assert_close(changed, y, rtol=0, atol=1e-12)  # equal tokens: weights do not matter
    tokens[0, 4] = 1
    with torch.no_grad():
        model.encoder.bias.weight[17] -= 3
    before = model(tokens)[0]
    with torch.no_grad():
        model.encoder.bias.weight[17] += 3
    gap = (model(tokens)[0] - before).abs().amax(-1)[0]
    assert gap[3] > 1e-3, "the token before the other one looks ahead"
    assert gap[4] < 1e-12, "the last one has nothing ahead"


def test_every_parameter_is_reached_through_two_segments():
    model, memory = translator(update="gru"), None
    for segment in torch.randint(11, (2, 10)).split(5, 1):
        logits, memory = model(segment, torch.randint(7, (2, 4)), memory)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_it_remembers_across_segments_when_gradients_flow_through_the_slots():
    """The first token of the first segment is asked for in the second."""
    torch.manual_seed(0)
    model, read_out = Memformer(6, dim=16, num_heads=2, depth=1, num_slots=2), torch.nn.Linear(16, 4)
    optimizer = torch.optim.Adam([*model.parameters(), *read_out.parameters()], 3e-2)
    for _ in range(25):
        answer = torch.randint(4, (32,))
        _, memory = model.stream(torch.stack((answer, torch.full((32,), 4)), 1), model.memory(32))
        y, _ = model.stream(torch.full((32, 2), 5), memory)
        loss = F.cross_entropy(read_out(y[:, 0]), answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5  # ln 4 = 1.39 without a memory


def test_refusals():
    for options in ({"target_vocab_size": 7}, {"decoder_depth": 1}):
        with pytest.raises(ValueError, match="a decoder needs both"):
            small(**options)
    with pytest.raises(ValueError, match="has no decoder"):
        small()(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(TypeError, match="key_mask"):
        small()(torch.zeros(1, 3, dtype=torch.long), key_mask=torch.ones(1, 3).float())
    with pytest.raises(ValueError, match="memory"):
        small().stream(torch.zeros(2, 3, dtype=torch.long), small().memory(1))
