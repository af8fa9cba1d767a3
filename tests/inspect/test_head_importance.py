"""Importance against finite differences of the loss by a factor on each head; confidence from written-out maps."""

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.inspect import head_confidence, head_importance
from regard.inspect.headed import attentions
from tests.inspect.head_models import IDS, OURS, THEIRS, bert, gpt2, language


def scaled(model, run, name, head, factor, sequence):
    """What comes out for one sequence with one head times a factor, by the weights of its output projection."""
    headed = attentions(model)[name]
    width, weight = headed.width, headed.output.weight
    part = weight if isinstance(headed.output, torch.nn.Linear) else weight.T
    with torch.no_grad():
        kept = part[:, head * width : (head + 1) * width].clone()
        part[:, head * width : (head + 1) * width] *= factor
        found = run(model)[sequence]
        part[:, head * width : (head + 1) * width] = kept
    return found


@pytest.mark.parametrize("make", [language, bert, gpt2])
def test_importance_is_the_mean_slope_of_each_sequence(make):
    model, run = make()
    model.double().eval()
    goal = run(model).detach().roll(1, -1)
    found = head_importance(model, [run], lambda model, run: (run(model) - goal).square().mean())
    assert found.keys() == attentions(model).keys()
    for name, importance in found.items():
        for head in (0, 3):
            slopes = []
            for b in range(2):
                high, low = (
                    (scaled(model, run, name, head, factor, b) - goal[b]).square().mean() for factor in (1.001, 0.999)
                )
                slopes.append(abs(high - low) / 0.002)
            assert_close(importance[head], sum(slopes) / 2, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("make", OURS + THEIRS)
def test_it_leaves_the_model_as_it_was(make):
    model, run = make()
    model.train()
    first = next(model.children())
    first.eval()
    modes = [part.training for part in model.modules()]
    head_importance(model, [run], lambda model, run: run(model).square().mean())
    assert [part.training for part in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(found.output._forward_pre_hooks for found in attentions(model).values())
    with pytest.raises(RuntimeError, match="stop"):
        head_importance(model, [run], failing)
    assert not any(found.output._forward_pre_hooks for found in attentions(model).values())


def failing(model, batch):
    raise RuntimeError("stop")


def test_batches_weigh_the_same_and_frozen_models_can_be_measured():
    model, _ = language()
    model.requires_grad_(False)
    loss = lambda model, tokens: model(tokens).square().mean()  # noqa: E731
    name = "blocks.1.attention"
    one, other = (head_importance(model, [tokens], loss)[name] for tokens in (IDS[:1], IDS[:, :4]))
    with torch.no_grad():  # whoever asks
        both = head_importance(model, [IDS[:1], IDS[:, :4]], loss)[name]
    assert_close(both, (one + other) / 2)
    plain = head_importance(model, [IDS], loss)[name]
    assert_close(head_importance(model, [IDS], loss, normalise=True)[name], plain / plain.norm())


def test_a_head_that_reaches_nothing_has_none():
    model, run = language()
    with torch.no_grad():
        model.blocks[0].attention.out_proj.weight[:, 4:8] = 0.0
    found = head_importance(model, [run], lambda model, run: run(model).square().mean())["blocks.0.attention"]
    assert found[1] == 0
    assert (found[[0, 2, 3]] > 0).all()


def test_confidence_is_the_mean_largest_weight():
    layer = regard.create("full", dim=12, num_heads=3)
    x = torch.randn(2, 5, 12)
    words = torch.tensor([[True] * 5, [True, True, False, False, False]])
    q, k = (linear(x).unflatten(-1, (3, 4)).transpose(1, 2) for linear in (layer.q_proj, layer.k_proj))
    maps = (q @ k.mT / 2).softmax(-1)
    (found,) = head_confidence(layer, [x[:1], x[1:]], lambda layer, x: layer(x)).values()
    assert_close(found, maps.amax(-1).mean((0, 2)))
    (found,) = head_confidence(layer, [x], lambda layer, x: layer(x), lambda x: words).values()
    largest = torch.cat([maps[0].amax(-1), maps[1, :, :2, :2].amax(-1)], 1)
    assert_close(found, largest.mean(1))


def test_refusals():
    model, _ = language()
    with pytest.raises(ValueError, match="no batches to measure the importance"):
        head_importance(model, [], lambda model, batch: model(batch))
    with pytest.raises(ValueError, match=r"the loss has shape \(2, 7, 50\): it must be one number"):
        head_importance(model, [IDS], lambda model, batch: model(batch))
    with pytest.raises(ValueError, match="that depends on the heads"):
        head_importance(model, [IDS], lambda model, batch: torch.tensor(1.0))
    with pytest.raises(ValueError, match="no batches to measure the confidence"):
        head_confidence(model, [], lambda model, batch: model(batch))
    with pytest.raises(ValueError, match=r"has maps \(2, 4, 7, 7\), to which words of \(2, 6\) do not fit"):
        head_confidence(model, [IDS], lambda model, batch: model(batch), lambda batch: batch[:, 1:] > 0)
