"""Additive scores: the paper's formula, and no hidden layer of all pairs in memory."""

import pytest
import torch
from torch.testing import assert_close

from regard.ops import row_runs
from regard.ops.additive_scores import additive_scores


def inputs(batch=2, n=7, m=5, width=4):
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, n, width), (batch, m, width), (width,))
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


def both(function, given):
    out = function(*given)
    return out, torch.autograd.grad(out.sin().sum(), given)


def test_matches_the_equation():
    query, key, v = inputs()
    found = additive_scores(query, key, v)
    for b, i, j in torch.cartesian_prod(*map(torch.arange, found.shape)).tolist():
        assert_close(found[b, i, j], v @ torch.tanh(query[b, i] + key[b, j]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("at_once", [1, 20, 41])  # one query of every sequence at a time, one, two
def test_runs_of_queries_change_nothing(at_once, monkeypatch):
    expected = both(additive_scores, inputs())
    monkeypatch.setattr(row_runs, "NUMBERS_AT_ONCE", at_once)
    assert_close(both(additive_scores, inputs()), expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        assert_close(additive_scores(*inputs()), expected[0], rtol=0, atol=1e-12)


def test_no_hidden_layer_is_kept_for_the_gradient(monkeypatch):
    monkeypatch.setattr(row_runs, "NUMBERS_AT_ONCE", 1000)
    sizes = []

    def keep(tensor):
        sizes.append(tensor.numel())
        return tensor

    given = inputs(batch=2, n=32, m=32, width=32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        additive_scores(*given).sum()
    assert max(sizes, default=0) <= 2 * 32 * 32, "nothing of the size of batch x queries x keys x features"


def test_compiled_is_the_same():
    given = inputs()
    run = torch.compile(additive_scores, backend="aot_eager", fullgraph=True, dynamic=True)
    assert_close(both(run, given), both(additive_scores, given), rtol=0, atol=1e-12)
