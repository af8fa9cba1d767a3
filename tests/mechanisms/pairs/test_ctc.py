"""Location-aware attention as loops over steps and frames, in float64; smoothing, windows, padding, steps, refusals."""

import math

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.pairs import ctc
from regard.mechanisms.pairs.ctc import LocationAware, window


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def drawn(*arguments, **options):
    """A layer whose weights are large enough to tell everything apart."""
    layer = LocationAware(*arguments, **options).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return layer


def equations(layer, x, context):
    """One utterance without padding: contexts (T, C') and weights (T, S)."""
    frames, radius = len(context), layer.filters.padding[0]
    before, contexts, rows = [1 / frames] * frames, [], []
    if layer.window is not None:
        before = [1.0] + [0.0] * (frames - 1)
    for state in x:
        median = next(j for j in range(frames) if sum(before[: j + 1]) >= 0.5 * sum(before))
        energies = []
        for j in range(frames):
            heard = torch.zeros(layer.filters.out_channels, dtype=torch.float64)
            for shift in range(-radius, radius + 1):
                if 0 <= j + shift < frames:
                    heard += layer.filters.weight[:, 0, shift + radius] * before[j + shift]
            inside = layer.query_proj.weight @ state + layer.key_proj.weight @ context[j] + layer.key_proj.bias
            inside = inside + layer.filter_proj.weight @ heard
            energy = (layer.vector.weight[0] @ inside.tanh() + layer.vector.bias[0]).item()
            energies.append(layer.scaling * energy)
        shares = [1 / (1 + math.exp(-e)) if layer.smoothed else math.exp(e) for e in energies]
        if layer.window is not None:
            near = range(median - layer.window, median + layer.window)
            shares = [share if j in near else 0.0 for j, share in enumerate(shares)]
        before = [share / sum(shares) for share in shares]
        rows.append(before)
        contexts.append(sum(w * h for w, h in zip(before, context, strict=True)))
    return torch.stack(contexts), torch.tensor(rows, dtype=torch.float64)


OPTIONS = [
    {"channels": 3, "radius": 2},
    {"context_dim": 4, "hidden_dim": 5, "channels": 2, "radius": 12, "scaling": 1.0},
    {"channels": 2, "radius": 0, "smoothed": True},
    {"channels": 2, "radius": 3, "window": 2},
    {"channels": 2, "radius": 3, "window": 3, "smoothed": True, "scaling": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_matches_the_equations(options):
    layer = drawn(6, **options)
    x, context = random(2, 4, 6), random(2, 9, layer.context_dim)
    real = torch.arange(9) < torch.tensor([[9], [5]])
    found = layer(x, context.masked_fill(~real[..., None], math.nan), key_mask=real)
    for number, frames in enumerate((9, 5)):
        expected, weights = equations(layer, x[number], context[number, :frames])
        assert_close(found[number], expected, rtol=0, atol=1e-12)
        shares = layer.all_weights(x, context.masked_fill(~real[..., None], 0.0), real)[number]
        assert_close(shares[:, :frames], weights, rtol=0, atol=1e-12)
        assert not shares[:, frames:].any(), "padding has weight 0"


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_steps_are_the_whole(options):
    layer = drawn(6, **options)
    x, context = random(3, 5, 6), random(3, 8, layer.context_dim)
    real = torch.arange(8) >= torch.tensor([[0], [3], [7]])
    context = context.masked_fill(~real[..., None], 0.0)
    keys = layer.key_proj(context)
    weights, heard = layer.start(keys, real), []
    assert_close(weights.sum(-1), torch.ones(3, dtype=torch.float64))
    assert not weights[~real].any()
    for state in x.unbind(1):
        seen, weights = layer.step(state, context, keys, weights, key_mask=real)
        heard.append(seen)
    assert_close(torch.stack(heard, 1), layer(x, context, key_mask=real), rtol=0, atol=1e-12)
    assert weights[2].tolist() == [0.0] * 7 + [1.0], "a single frame has all the weight"


def test_a_masked_query_is_no_step():
    layer, x, context = drawn(6, channels=2, radius=2), random(1, 4, 6), random(1, 7, 6)
    keep = torch.tensor([[True, False, True, True]])
    found = layer(x.masked_fill(~keep[..., None], math.nan), context, query_mask=keep)
    assert_close(found[keep], layer(x[:, keep[0]], context)[0], rtol=0, atol=1e-12)


def test_without_frames_nothing_is_heard():
    for options in OPTIONS:
        layer = drawn(6, **options)
        context = random(1, 3, layer.context_dim)
        assert not layer(random(1, 2, 6), context, key_mask=torch.zeros(1, 3, dtype=torch.bool)).any()
        assert not layer(random(1, 2, 6), context[:, :0]).any(), "nor from an empty batch of frames"


def test_the_window_moves_with_the_median_over_real_frames():
    weights = torch.tensor([[0.0, 0.4, 0.0, 0.3, 0.3], [0.0, 0.0, 0.0, 0.0, 0.0]])
    real = torch.tensor([[True, True, False, True, True], [False] * 5])
    assert window(weights, 1, real).tolist() == [[False, True, False, True, False], [False] * 5]


def test_large_energies_do_not_overflow():
    for smoothed in (False, True):
        layer = drawn(4, channels=1, radius=1, scaling=1e4, smoothed=smoothed)
        y = layer(random(1, 3, 4), random(1, 6, 4))
        assert y.isfinite().all()


def test_the_names_of_ctc_are_all_there():
    assert {"ctc_loss", "align", "prefix_beam_search", "greedy_labels", "CTCPrefixScorer"} <= set(ctc.__all__)
    assert all(hasattr(ctc, name) for name in ctc.__all__)


def test_refusals():
    with pytest.raises(ValueError, match="causal"):
        regard.create("ctc", dim=8, causal=True)
    for options in ({"channels": 0}, {"radius": -1}, {"scaling": 0.0}, {"window": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}={next(iter(options.values()))}"):
            LocationAware(8, **options)
    with pytest.raises(ValueError, match=r"context has shape \(1, 3, 8\), expected \(batch, length, 5\)"):
        LocationAware(8, 5)(torch.randn(1, 2, 8), torch.randn(1, 3, 8))
