"""The network of scores as loops over queries and words, in float64; its start, memory, refusals."""

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.pairs.bahdanau import Bahdanau, additive_weights
from regard.ops import row_runs
from regard.ops.sparsemax import sparsemax_where


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def drawn(*arguments, **options):
    """A layer whose weights are large enough to tell everything apart."""
    layer = Bahdanau(*arguments, **options).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return layer


@torch.no_grad()
def equations(layer, x, context, real):
    rows = []
    for b, queries in enumerate(x):
        words = context[b, real[b]]
        for s in queries:
            v = layer.vector.weight[0]
            if layer.gain is not None:
                v = layer.gain * v / v.square().sum().sqrt()
            bias = 0.0 if layer.query_proj.bias is None else layer.query_proj.bias
            asks = layer.query_proj.weight @ s + bias
            powers = [torch.exp(v @ torch.tanh(asks + layer.key_proj.weight @ h)) for h in words]
            c = sum((p * h / sum(powers) for p, h in zip(powers, words, strict=True)), s.new_zeros(context.shape[-1]))
            if layer.out_proj is not None:
                c = layer.out_proj.weight @ torch.cat((c, s)) + layer.out_proj.bias
            rows.append(c)
    return torch.stack(rows).unflatten(0, x.shape[:2])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"context_dim": 4, "hidden_dim": 5},
        {"context_dim": 4, "normalised": True},
        {"query_bias": True, "joined": True},
    ],
    ids=str,
)
def test_matches_the_equations(options):
    layer = drawn(6, **options)
    x, context = random(3, 5, 6), random(3, 9, layer.context_dim)
    assert_close(layer(x, context), equations(layer, x, context, torch.ones(3, 9).bool()), rtol=0, atol=1e-12)
    real = torch.rand(3, 9) < 0.6
    real[1] = False
    found = layer(x, context.masked_fill(~real[..., None], torch.nan), key_mask=real)
    assert_close(found, equations(layer, x, context, real), rtol=0, atol=1e-12)


def test_without_any_word_nothing_is_seen():
    layer, x, context = drawn(6), random(1, 2, 6), random(1, 3, 6)
    assert not layer(x, context, key_mask=torch.zeros(1, 3, dtype=torch.bool)).any()


def test_starts_uniform_and_learns_only_v_in_the_first_step():
    layer, x, context = Bahdanau(6).double(), random(2, 3, 6), random(2, 4, 6)
    y = layer(x, context)
    assert_close(y, context.mean(1, keepdim=True).expand(-1, 3, -1), rtol=0, atol=1e-12)
    y.square().sum().backward()
    assert layer.vector.weight.grad.any()
    assert not layer.query_proj.weight.grad.any()
    assert not layer.key_proj.weight.grad.any()
    assert abs(Bahdanau(300).key_proj.weight.std().item() / 0.001 - 1) < 0.1


def test_a_normalised_layer_starts_with_a_direction():
    layer = Bahdanau(16, normalised=True)
    assert layer.gain.item() == 0.25
    assert layer.vector.weight.any()
    assert not layer.query_proj.bias.any()


def test_large_energies_do_not_overflow():
    key = torch.tensor([[[20.0], [-20.0]]])
    weights = additive_weights(torch.zeros(1, 1, 1), key, torch.tensor([200.0]))
    assert weights.tolist() == [[[1.0, 0.0]]]


def test_rows_are_computed_in_runs_with_the_same_gradients(monkeypatch):
    layer, x, context = drawn(6, hidden_dim=5), random(2, 7, 6), random(2, 9, 6)
    expected = torch.autograd.grad(layer(x, context).square().sum(), [*layer.parameters()])
    monkeypatch.setattr(row_runs, "NUMBERS_AT_ONCE", 2 * 9 * 5)
    found = torch.autograd.grad(layer(x, context).square().sum(), [*layer.parameters()])
    for slope, other in zip(found, expected, strict=True):
        assert_close(slope, other, rtol=0, atol=1e-12)


def test_sparse_weights():
    layer, x, context = drawn(6, sparse=True), random(1, 3, 6), random(1, 5, 6)
    keys = layer.key_proj(context)
    scores = (layer.query_proj(x)[:, :, None] + keys[:, None]).tanh() @ layer.vector.weight[0]
    assert_close(layer.weights(x, keys), sparsemax_where(scores), rtol=0, atol=1e-12)


def test_refusals():
    with pytest.raises(ValueError, match="causal"):
        regard.create("bahdanau", dim=8, causal=True)
    with pytest.raises(ValueError, match=r"context has shape \(1, 3, 8\), expected \(batch, length, 5\)"):
        Bahdanau(8, 5)(torch.randn(1, 2, 8), torch.randn(1, 3, 8))
