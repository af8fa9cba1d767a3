"""Synthesizer against the paper's equations, token by token, and what only tables of positions can get wrong."""

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.lowrank.synthesizer import Synthesizer, synthesized_attention
from regard.registry import UnsupportedError
from tests.samples import heads_first

SINGLE = ["dense", "random", "fixed_random", "factorised_dense", "factorised_random", "dot"]
MIXED = [("random", "dot"), ("dense", "factorised_random", "factorised_dense")]


def make(parts, **options):
    layer = Synthesizer(6, 3, max_length=11, parts=parts, rank=2, **options).double().eval()
    for tensor in layer.state_dict().values():
        torch.nn.init.normal_(tensor, std=0.7)
    return layer


def logit(layer, name, x, h, i, j):
    """E_ij of one part and head; x (N, C) of one sequence."""

    def head(linear, row):
        width = len(linear.weight) // layer.num_heads
        mine = slice(h * width, (h + 1) * width)
        return linear.weight[mine] @ row + (0 if linear.bias is None else linear.bias[mine])

    if name == "dot":
        q, k = head(layer.q_proj, x[i]), head(layer.k_proj, x[j])
        return q @ k / len(q) ** 0.5
    part = layer.parts[name]
    if name == "dense":
        return part.table[h, j] @ head(part.hidden, x[i]).clamp(min=0) + part.bias[h, j]
    if name == "factorised_dense":
        a, b = head(part.first, x[i]), head(part.second, x[i])
        return a[j // len(b)] * b[j % len(b)]
    if name == "factorised_random":
        return part.left[h, i] @ part.right[h, j]
    return part.table[h, i, j]


def equations(layer, x):
    n, width = len(x), layer.head_dim
    v = layer.v_proj(x)
    shares = torch.ones(1) if layer.mix is None else layer.mix.exp() / layer.mix.exp().sum()
    rows = []
    for i in range(n):
        row = []
        for h in range(layer.num_heads):
            seen = range(i + 1 if layer.causal else n)
            parts = list(zip(shares, layer.names, strict=True))
            scores = torch.stack([sum(share * logit(layer, p, x, h, i, j) for share, p in parts) for j in seen])
            row.append(scores.softmax(0) @ v[: len(seen), h * width : (h + 1) * width])
        rows.append(torch.cat(row))
    return layer.out_proj(torch.stack(rows))


@pytest.mark.parametrize("parts", [*SINGLE, *MIXED], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_matches_the_equations(parts, causal):
    layer = make(parts, causal=causal, qkv_bias=True)
    for n in (1, 6, 11):
        x = torch.randn(2, n, 6, dtype=torch.float64)
        assert_close(layer(x), torch.stack([equations(layer, row) for row in x]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("parts", [*SINGLE, *MIXED], ids=str)
def test_positions_count_real_tokens_only(parts):
    layer = make(parts)
    x = torch.randn(1, 9, 6, dtype=torch.float64)
    keep = torch.tensor([[0, 0, 1, 1, 0, 1, 0, 1, 0]]).bool()
    assert_close(layer(x, key_mask=keep)[keep], equations(layer, x[keep]), rtol=0, atol=1e-12)


def test_every_pair_of_factors_stands_for_a_column():
    """Repeated in step, as in a port, factors of 4 and 4 would give 4 different columns instead of 16."""
    part = Synthesizer(6, 1, max_length=16, parts="factorised_dense").parts["factorised_dense"]
    assert (part.first.out_features, part.second.out_features) == (4, 4)
    row = part(torch.randn(1, 1, 6), slice(1), 16)
    assert len(row.flatten().unique()) == 16


@pytest.mark.parametrize("length", range(1, 40))
def test_the_factors_reach_the_whole_table(length):
    part = Synthesizer(2, 1, max_length=length, parts="factorised_dense").parts["factorised_dense"]
    assert part(torch.randn(1, 1, 2), slice(1), length).shape[-1] == length


def test_fixed_random_is_not_trained_but_saved():
    layer = make("fixed_random")
    assert "parts.fixed_random.table" in layer.state_dict()
    assert "parts.fixed_random.table" not in dict(layer.named_parameters())


@pytest.mark.parametrize("causal", [False, True])
def test_one_map_for_all_sequences(causal):
    """As with a copy of the map for each of them, forward and backward."""
    _, _, v, _ = heads_first(5, 7, batch=3)
    logits = torch.randn(1, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    shared = synthesized_attention(logits, v, causal=causal)
    copied = synthesized_attention(logits.expand(3, -1, -1, -1), v, causal=causal)
    hidden = ~torch.ones(5, 7, dtype=torch.bool).tril(2) & causal
    assert_close(shared, logits.masked_fill(hidden, -torch.inf).softmax(-1) @ v, rtol=0, atol=1e-12)
    assert_close(shared, copied, rtol=0, atol=1e-12)
    slopes = [torch.autograd.grad(out.square().sum(), logits)[0] for out in (shared, copied)]
    assert_close(*slopes, rtol=0, atol=1e-11)


def test_dropout_is_drawn_for_each_sequence():
    drop = {"attn_drop": 0.5, "generator": torch.Generator().manual_seed(0)}
    weights = synthesized_attention(torch.zeros(1, 1, 3, 8), torch.eye(8).expand(2, 1, 8, 8), **drop)
    assert not torch.equal(weights[0], weights[1])
    assert set(weights.unique().tolist()) == {0.0, 0.25}


def test_longer_sequences_are_refused_at_the_door():
    layer = make("random", causal=True)
    x = torch.randn(1, 12, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"12 tokens.*max_length=11"):
        layer(x)
    _, memory = layer.stream(x[:, :11], layer.memory(1))
    with pytest.raises(ValueError, match=r"12 tokens.*max_length=11"):
        layer.stream(x[:, 11:], memory)
    with pytest.raises(ValueError, match=r"static=12.*max_length=11"):
        layer.memory(1, static=12)


def test_refusals():
    with pytest.raises(ValueError, match="pass one or several of dense, random"):
        Synthesizer(6, 3, max_length=5, parts="lstm")
    with pytest.raises(ValueError, match="each once"):
        Synthesizer(6, 3, max_length=5, parts=("dot", "dot"))
    with pytest.raises(ValueError, match="rank=0"):
        Synthesizer(6, 3, max_length=5, rank=0)
    with pytest.raises(TypeError, match="max_length"):
        regard.create("synthesizer", dim=6, num_heads=3)
    with pytest.raises(UnsupportedError, match="streams only with causal=True"):
        Synthesizer(6, 3, max_length=5).memory(1)
