"""CoDA against the paper's equations, and what only it can get wrong."""

import math

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.pairs.coda import CoDA, CompositionalAlignment, compositional_attention, compositional_weights
from regard.ops import row_runs
from regard.ops.weights import visible
from regard.registry import UnsupportedError
from tests.samples import heads_first

GATES = ["scaled", "plain", "centered"]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def equations(similar, apart, alpha, beta, gate, center_scores, allowed):
    """M of one pair of sequences, entry by entry; what is not allowed does not exist."""
    n, m = allowed.shape
    pairs = [(i, j) for i in range(n) for j in range(m) if allowed[i, j]]
    e = {(i, j): alpha * sum(float(x * y) for x, y in zip(similar[0][i], similar[1][j], strict=True)) for i, j in pairs}
    d = {
        (i, j): -beta * sum(abs(float(x - y)) for x, y in zip(apart[0][i], apart[1][j], strict=True)) for i, j in pairs
    }
    mean_e = sum(e.values()) / max(1, len(pairs)) if center_scores else 0.0
    mean_d = sum(d.values()) / max(1, len(pairs)) if gate == "centered" else 0.0
    weights = torch.zeros(n, m, dtype=torch.float64)
    for pair in pairs:
        factor = 2 if gate == "scaled" else 1
        weights[pair] = math.tanh(e[pair] - mean_e) * factor * sigmoid(d[pair] - mean_d)
    return weights


@pytest.mark.parametrize("center_scores", [False, True])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(("n", "m", "keep"), [(5, 5, 1.0), (3, 6, 0.5), (6, 1, 1.0)])
def test_heads_match_the_equations(gate, center_scores, n, m, keep):
    q, k, v, mask = heads_first(n, m, keep=keep, heads=2)
    core = CoDA(gate, center_scores, alpha=1.5, beta=0.5)
    asking = torch.arange(n) < torch.tensor([[n], [max(1, n - 2)]])
    out = core(q, k, v, key_mask=mask, query_mask=asking)
    for b in range(2):
        for h in range(2):
            allowed = asking[b][:, None] & mask[b]
            weights = equations((q[b, h], k[b, h]), (q[b, h], k[b, h]), 0.75, 0.25, gate, center_scores, allowed)
            assert_close(out[b, h][asking[b]], (weights @ v[b, h])[asking[b]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("gate", "center_scores"), [("scaled", False), ("plain", True), ("centered", True)])
def test_alignment_answers_both_sides(gate, center_scores, shared):
    torch.manual_seed(0)
    layer = (
        CompositionalAlignment(4, 6, shared, gate, center_scores, alpha=1.5, beta=0.5).double().requires_grad_(False)
    )
    a, b = torch.randn(2, 5, 4, dtype=torch.float64), torch.randn(2, 7, 4, dtype=torch.float64)
    real_a, real_b = torch.arange(5) >= torch.tensor([[0], [2]]), torch.arange(7) < torch.tensor([[4], [7]])
    a_new, b_new = layer(a, b, key_mask=real_b, query_mask=real_a)
    mapped = layer.similar if shared else layer.apart
    for i in range(2):
        similar, apart = (layer.similar(a[i]), layer.similar(b[i])), (mapped(a[i]), mapped(b[i]))
        allowed = real_a[i][:, None] & real_b[i]
        weights = equations(similar, apart, 1.5, 0.5, gate, center_scores, allowed)
        assert_close(a_new[i], weights @ b[i], rtol=0, atol=1e-12)
        assert_close(b_new[i], weights.T @ a[i], rtol=0, atol=1e-12)


def test_causal_is_the_lower_triangle_without_a_new_normaliser():
    q, k, v, _ = heads_first(4, 6)
    whole = CoDA()(q, k, torch.eye(6, dtype=torch.float64).expand(2, 3, 6, 6))
    causal = CoDA(causal=True)(q, k, v)
    assert_close(causal, whole.tril(2) @ v, rtol=0, atol=1e-12)


def test_runs_of_queries_change_nothing(monkeypatch):
    q, k, v, mask = heads_first(9, keep=0.5)
    q.requires_grad_()
    allowed = visible(9, 9, mask, causal=True, device=q.device)

    def run():
        out = compositional_attention(q, k, v, allowed=allowed)
        return out, torch.autograd.grad(out.sum(), q)[0]

    whole = run()
    monkeypatch.setattr(row_runs, "NUMBERS_AT_ONCE", 60)
    assert_close(run(), whole)


def test_the_gradients_of_runs_belong_to_their_dropout(monkeypatch):
    """y is linear in v, so the sum of y is the sum of v times its gradient: with other draws it would not be."""
    monkeypatch.setattr(row_runs, "NUMBERS_AT_ONCE", 60)
    q, k, v, _ = heads_first(9)
    v.requires_grad_()
    total = compositional_attention(q, k, v, attn_drop=0.5, generator=torch.Generator().manual_seed(0)).sum()
    total.backward()
    assert_close((v.grad * v).sum(), total)


def test_gates_have_their_ranges():
    """A plain gate never passes more than half; a scaled one all of a token that equals the query."""
    q = 9 * torch.ones(1, 1, 4)
    weights = {gate: compositional_weights((q, q), (q, q), gate=gate).item() for gate in GATES}
    assert weights == pytest.approx({"scaled": 1.0, "plain": 0.5, "centered": 0.5})
    assert compositional_weights((q, -q), (q, q)).item() == pytest.approx(-1.0)


@pytest.mark.parametrize("gate", GATES)
def test_alignment_ignores_padding_and_what_stands_in_it(gate):
    layer = CompositionalAlignment(4, gate=gate, center_scores=True)
    a, b = torch.randn(2, 5, 4), torch.randn(2, 7, 4)
    whole = layer(a, b)
    for front in (0, 2):
        padded, masks = [], []
        for t in (a, b):
            filled = torch.full((2, t.shape[1] + 2, 4), torch.nan)
            filled[:, front : front + t.shape[1]] = t
            padded.append(filled)
            masks.append(~filled.isnan().any(-1))
        for out, expected, real in zip(
            layer(*padded, key_mask=masks[1], query_mask=masks[0]), whole, masks, strict=True
        ):
            assert_close(out[real], expected.flatten(0, 1), rtol=0, atol=1e-5)
            assert not out[~real].any()


def test_alignment_with_nothing_on_one_side():
    layer = CompositionalAlignment(4, gate="centered", center_scores=True)
    a_new, b_new = layer(torch.randn(2, 3, 4), torch.randn(2, 0, 4))
    assert b_new.shape == (2, 0, 4)
    assert not a_new.any()
    hidden = layer(torch.randn(2, 3, 4), torch.randn(2, 5, 4), key_mask=torch.zeros(2, 5, dtype=torch.bool))
    assert not hidden[0].any()
    assert not hidden[1].any()
    hidden[0].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_the_map_of_an_alignment_is_exact():
    layer = CompositionalAlignment(4)
    a, b = torch.randn(2, 5, 4), torch.randn(2, 7, 4)
    found = regard.inspect.attention_map(layer, a, b)
    assert found.kind == "exact"
    assert_close(found.tensor[:, 0], layer.weights(a, b))
    assert (found.tensor < 0).any()


def test_every_parameter_of_an_alignment_learns_and_starts_anew():
    layer = CompositionalAlignment(4, 6, shared=False)
    out = layer(torch.randn(2, 5, 4), torch.randn(2, 7, 4))
    sum(t.square().sum() for t in out).backward()
    assert all(parameter.grad.any() for parameter in layer.parameters())
    before = [parameter.clone() for parameter in layer.parameters()]
    layer.reset_parameters()
    assert not any(torch.equal(old, new) for old, new in zip(before, layer.parameters(), strict=True))


def test_alignment_dropout_acts_on_the_weights():
    layer = CompositionalAlignment(4, attn_drop=0.5).train()
    a, b = torch.randn(1, 5, 4), torch.randn(1, 7, 4)
    one_each = torch.eye(7)[None, None]
    dropped = layer.weigh(a, one_each, b, generator=torch.Generator().manual_seed(0))
    whole = layer.eval().weigh(a, one_each, b)
    kept = dropped != 0
    assert 0 < kept.sum() < 35
    assert_close(dropped[kept], 2 * whole[kept])


def test_refusals():
    for options in ({"gate": "centered"}, {"center_scores": True}):
        with pytest.raises(UnsupportedError, match="the mean over all pairs has seen the future"):
            CoDA(causal=True, **options)
    with pytest.raises(ValueError, match="gate='soft' is none of scaled, plain, centered"):
        CoDA("soft")
    with pytest.raises(ValueError, match=r"alpha=0.*must be positive"):
        CoDA(alpha=0)
    with pytest.raises(ValueError, match=r"beta=-1.*must be positive"):
        CompositionalAlignment(4, beta=-1)
    with pytest.raises(ValueError, match="key_dim=0"):
        CompositionalAlignment(4, 0)
    with pytest.raises(UnsupportedError, match="only with causal=True"):
        CoDA().memory(1, 3, 4, 4)
    with pytest.raises(ValueError, match="pass the other as context"):
        CompositionalAlignment(4)(torch.randn(2, 5, 4))
