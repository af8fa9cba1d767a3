"""Quasi-attention against the paper's equations, and what only it can get wrong."""

import math

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.pairs.quasi_attention import QuasiAttention, quasi_attention, quasi_weights
from regard.ops import row_runs
from regard.ops.weights import visible
from regard.registry import UnsupportedError
from tests.samples import heads_first


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def dot(a, b):
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def said(linears, *vectors):
    """sigmoid of the sum of what some maps to one number say."""
    total = sum(dot(linear.weight[0], v) for linear, v in zip(linears, vectors, strict=True))
    return sigmoid(total + sum(float(linear.bias) for linear in linears if linear.bias is not None))


def softmax(scores):
    top = max(scores)
    return [math.exp(s - top) / sum(math.exp(t - top) for t in scores) for s in scores]


def equations(layer, x, context, real):
    """One sequence, pair by pair; a masked token is nobody's key."""
    n, d = len(x), layer.head_dim
    out = torch.zeros(n, layer.dim, dtype=torch.float64)
    q, k, v = layer.q_proj(x), layer.k_proj(x), layer.v_proj(x)
    for h in range(layer.num_heads):
        part = slice(h * d, (h + 1) * d)
        if layer.kind == "quasi":
            cq, ck = layer.context_q(context)[:, part], layer.context_k(context)[:, part]
        else:
            width = layer.context_dim // layer.num_heads
            own = context[:, h * width : (h + 1) * width]
            cq, ck = layer.context_q(own), layer.context_k(own)
        lq = [said((layer.gate_cq, layer.gate_q), cq[i], q[i, part]) for i in range(n)]
        lk = [said((layer.gate_ck, layer.gate_k), ck[i], k[i, part]) for i in range(n)]
        for i in range(n):
            seen = [j for j in range(n) if real[j] and (j <= i or not layer.causal)]
            if layer.kind == "mixed":
                query = (1 - lq[i]) * q[i, part] + lq[i] * cq[i]
                keys = [(1 - lk[j]) * k[j, part] + lk[j] * ck[j] for j in seen]
                weights = softmax([dot(query, key) / d**0.5 for key in keys])
            else:
                weights = softmax([dot(q[i, part], k[j, part]) / d**0.5 for j in seen])
                for place, j in enumerate(seen):
                    gate = 1 - lq[i] - (lk[i] if layer.gate == "row" else lk[j])
                    weights[place] += gate * sigmoid(dot(cq[i], ck[j]) / d**0.5)
            out[i, part] = sum(w * v[j, part] for w, j in zip(weights, seen, strict=True))
    return layer.out_proj(out)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True},
        {"gate": "outer"},
        {"gate": "outer", "causal": True},
        {"kind": "mixed"},
        {"kind": "mixed", "causal": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("context_dim", [6, 4])
def test_matches_the_equations(options, context_dim):
    torch.manual_seed(0)
    layer = QuasiAttention(6, 2, context_dim, **options).double().requires_grad_(False)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x, context = torch.randn(2, 5, 6, dtype=torch.float64), torch.randn(2, 5, context_dim, dtype=torch.float64)
    real = torch.tensor([[True] * 5, [True, True, False, True, False]])
    y = layer(x, context, key_mask=real, query_mask=torch.ones_like(real))
    for b in range(2):
        assert_close(y[b], equations(layer, x[b], context[b], real[b]), rtol=0, atol=1e-12)


def test_weights_add_and_subtract():
    q, k, cq, ck = (heads_first(6)[0] for _ in range(4))
    allowed = visible(6, 6, torch.arange(6)[None] < 4, causal=True, device=q.device)
    for gate in (1.0, -1.0):
        usual, composed = quasi_weights(q, k, cq, ck, q.new_full((2, 3, 6, 1), gate), allowed=allowed)
        assert_close(usual.sum(-1), torch.ones(2, 3, 6, dtype=torch.float64))
        assert (composed.sign() == gate * allowed).all(), "exactly 0 where hidden"
        assert composed.abs().max() < 1


def test_starts_as_plain_attention_but_for_a_little():
    layer = QuasiAttention(64, 2)
    torch.manual_seed(0)
    x, context = torch.randn(2, 1, 9, 64)
    q, k, cq, ck = layer.project(x, context)
    lq, lk = layer.gates(q, k, cq, ck)
    assert (1 - lq - lk).abs().max() < 0.2


@pytest.mark.parametrize("gate", ["row", "outer"])
def test_runs_of_queries_change_nothing(gate, monkeypatch):
    q, k, v, mask = heads_first(9, keep=0.5)
    cq, ck, *_ = heads_first(9, seed=1)
    lq, lk = torch.rand(2, 2, 3, 9, 1, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (q, k, v, cq, ck, lq, lk)]
    allowed = visible(9, 9, mask, causal=True, device=q.device)

    def run():
        out = quasi_attention(*leaves, gate=gate, allowed=allowed)
        return out, torch.autograd.grad(out.sum(), leaves)

    whole = run()
    monkeypatch.setattr(row_runs, "NUMBERS_AT_ONCE", 60)
    assert_close(run(), whole)


def test_the_gradients_of_runs_belong_to_their_dropout(monkeypatch):
    """y is linear in v, so the sum of y is the sum of v times its gradient: with other draws it would not be."""
    monkeypatch.setattr(row_runs, "NUMBERS_AT_ONCE", 60)
    q, k, v, _ = heads_first(9)
    cq, ck, *_ = heads_first(9, seed=1)
    v.requires_grad_()
    half = q.new_full((2, 3, 9, 1), 0.2)
    drawn = {"attn_drop": 0.5, "generator": torch.Generator().manual_seed(0)}
    total = quasi_attention(q, k, v, cq, ck, half, half, **drawn).sum()
    total.backward()
    assert_close((v.grad * v).sum(), total)


@pytest.mark.parametrize("kind", ["quasi", "mixed"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_tokens_and_contexts_changes_nothing(kind, side):
    layer = QuasiAttention(12, 3, kind=kind)
    x, context = torch.randn(2, 2, 5, 12)
    real = torch.arange(8) < 5 if side == "right" else torch.arange(8) >= 3
    padded = [torch.full((2, 8, 12), torch.nan) for _ in range(2)]
    for filled, tokens in zip(padded, (x, context), strict=True):
        filled[:, real] = tokens
    y = layer(*padded, key_mask=real.expand(2, -1))
    assert_close(y[:, real], layer(x, context), rtol=0, atol=1e-6)
    assert not y[:, ~real].any()
    y.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("kind", ["quasi", "mixed"])
def test_nobody_to_look_at_gives_the_bias(kind):
    layer = QuasiAttention(12, 3, kind=kind)
    torch.nn.init.normal_(layer.out_proj.bias)
    x, context = torch.randn(2, 2, 5, 12).requires_grad_()
    nobody, everyone = torch.zeros(2, 5, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool)
    y = layer(x, context, key_mask=nobody, query_mask=everyone)
    assert_close(y, layer.out_proj.bias.expand_as(y))
    y.sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("options", [{}, {"gate": "outer"}, {"kind": "mixed"}], ids=str)
def test_its_map_is_exact(options):
    layer = QuasiAttention(12, 3, **options).double()
    x, context = torch.randn(2, 2, 5, 12, dtype=torch.float64)
    found = regard.inspect.attention_map(layer, x, context)
    assert found.kind == "exact"
    v = layer.v_proj(x).unflatten(-1, (3, -1)).transpose(1, 2)
    y = layer.out_proj((found.tensor @ v).transpose(1, 2).flatten(2))
    assert_close(y, layer(x, context), rtol=0, atol=1e-12)


def test_where_dropout_acts():
    """On A, and on cq and ck, which move lambda and the second map but not the softmax."""
    layer = QuasiAttention(12, 3, attn_drop=0.5).double().train()
    x, context = torch.randn(2, 1, 6, 12, dtype=torch.float64)
    one_each = torch.eye(6, dtype=torch.float64)[None, None]

    def weights():
        return layer.weigh(x, one_each, context, generator=torch.Generator().manual_seed(0))

    dropped = weights()
    assert 0 < (dropped == 0).sum() < dropped.numel()
    whole = layer.eval().weigh(x, one_each, context)
    kept = dropped != 0
    assert not torch.allclose(dropped[kept], 2 * whole[kept]), "cq and ck were dropped as well"
    layer = QuasiAttention(12, 3, kind="mixed", attn_drop=0.5).double().train()
    dropped = weights()
    kept = dropped != 0
    assert_close(dropped[kept], 2 * layer.eval().weigh(x, one_each, context)[kept])


def test_refusals():
    x, context = torch.randn(2, 2, 5, 12)
    layer = QuasiAttention(12, 3)
    with pytest.raises(ValueError, match="pass one of"):
        layer(x)
    with pytest.raises(ValueError, match=r"context is of \(2, 4\) tokens and x of \(2, 5\)"):
        layer(x, context[:, :4])
    with pytest.raises(ValueError, match="context has shape"):
        layer(x, context[..., :8])
    with pytest.raises(UnsupportedError, match="segments"):
        layer(x, context, segments=torch.zeros(2, 5, dtype=torch.long))
    with pytest.raises(UnsupportedError, match="mixed"):
        QuasiAttention(12, 3, kind="mixed", gate="outer")
    with pytest.raises(ValueError, match="kind='soft'"):
        QuasiAttention(12, 3, kind="soft")
    with pytest.raises(ValueError, match="dim=8 is no multiple of num_heads=3"):
        QuasiAttention(12, 3, 8, kind="mixed")
