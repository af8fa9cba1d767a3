import pytest
import torch
from torch.testing import assert_close

from regard.memory import LinearState
from regard.ops.fading_sums import fading_products
from regard.ops.scan import causal_products
from tests.samples import heads_first


def step_by_step(q, k, v, log_gate, before):
    state, total, outs, totals = before.state, before.normaliser, [], []
    for i in range(q.shape[2]):
        gate = log_gate[:, :, i].exp()
        state = gate[..., None, None] * state + k[:, :, i, :, None] * v[:, :, i, None]
        total = gate[..., None] * total + k[:, :, i]
        outs.append((q[:, :, i, None] @ state).squeeze(2))
        totals.append((q[:, :, i] * total).sum(-1))
    return torch.stack(outs, 2), torch.stack(totals, 2), LinearState(state, total)


def inputs(n, spread=3.0):
    q, k, v, _ = heads_first(n, value_dim=6)
    log_gate = torch.nn.functional.logsigmoid(spread * torch.randn(2, 3, n, dtype=torch.float64))
    return q, k, v, log_gate, LinearState(torch.randn(2, 3, 4, 6).double(), torch.randn(2, 3, 4).double())


@pytest.mark.parametrize("n", [1, 7, 64, 150])
@pytest.mark.parametrize("chunk", [5, 64])
def test_matches_the_recurrence(n, chunk):
    given = inputs(n)
    found, expected = fading_products(*given, chunk=chunk), step_by_step(*given)
    assert_close(found, expected, rtol=0, atol=1e-12)


def test_many_runs_of_chunks():
    given = inputs(150, spread=1.0)
    assert_close(fading_products(*given, chunk=2), step_by_step(*given), rtol=0, atol=1e-12)  # 75 chunks


def test_gradients_match_those_of_the_recurrence():
    q, k, v, log_gate, before = inputs(70)
    leaves = [t.requires_grad_() for t in (q, k, v, log_gate, *before)]
    slopes = []
    for run in (fading_products, step_by_step):
        out, total, after = run(q, k, v, log_gate, before)
        slopes.append(torch.autograd.grad((out.square().sum() + total.sin().sum() + after.state.sum()), leaves))
    assert_close(*slopes, rtol=1e-9, atol=1e-10)


def test_open_gates_are_plain_sums():
    q, k, v, log_gate, before = inputs(70)
    assert_close(fading_products(q, k, v, 0 * log_gate, before), causal_products(q, k, v, before), rtol=0, atol=1e-12)


@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_gates_that_are_shut_or_open_for_good(logit):
    """exp(-G) would overflow where exp(G_i - G_j) does not."""
    q, k, v, _, _ = (t.float() for t in (*inputs(200)[:3], torch.zeros(1), torch.zeros(1)))
    log_gate = torch.nn.functional.logsigmoid(torch.full((2, 3, 200), logit)).requires_grad_()
    out, total, _ = fading_products(q, k, v, log_gate, LinearState.start(2, 3, 4, 6))
    if logit < 0:
        assert_close(out, (q * k).sum(-1, keepdim=True) * v)
    else:
        assert_close(total, (q * k.cumsum(2)).sum(-1), rtol=1e-4, atol=1e-4)
    assert torch.autograd.grad(out.sum(), log_gate)[0].isfinite().all()


@pytest.mark.parametrize("n", [1, 7, 64, 150])
def test_the_graph_for_every_length_computes_the_same(n, monkeypatch):
    """Compiled, chunks are padded and carried by one product; that it compiles is in the contract."""
    given = inputs(n)
    expected = fading_products(*given)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert_close(fading_products(*given), expected, rtol=0, atol=1e-12)
