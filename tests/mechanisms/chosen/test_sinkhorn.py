"""Sinkhorn attention against its equations, token by token, and what only sorted blocks can get wrong."""

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.chosen.sinkhorn import Sinkhorn, sort_blocks
from regard.ops.balancing import balance
from regard.registry import UnsupportedError


def make(**options):
    layer = Sinkhorn(6, 2, max_length=20, block_length=4, **options).double().eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def sorted_block(t, s, i, blocks, length, causal):
    """The tokens of the sorted block i of t (M, D) that have a source."""
    found = []
    for place in range(length):
        sources = [j for j in range(i if causal else len(blocks)) if place < len(blocks[j])]
        if sources:
            found.append(sum(s[i, j] * t[blocks[j][place]] for j in sources))
    return found


def equations(layer, x, source):
    """One sequence, without padding and without noise."""
    length, width, n, m = layer.block_length, layer.head_dim, len(x), len(source)
    blocks = [list(range(start, min(start + length, m))) for start in range(0, m, length)]
    pooled = [source[: block[0] + 1].sum(0) if layer.causal else source[block].sum(0) for block in blocks]
    rows = layer.sort_scores(layer.sort_hidden(torch.stack(pooled)).relu())
    q, k, v = layer.q_proj(x), layer.k_proj(source), layer.v_proj(source)
    out = torch.zeros(n, layer.num_heads * width, dtype=x.dtype)
    for h in range(layer.num_heads):
        mine = slice(h * width, (h + 1) * width)
        logits = rows[:, h * layer.max_blocks :][:, : len(blocks)] / layer.temperature
        below = torch.ones(len(blocks), len(blocks), dtype=torch.bool).tril(-1)
        s = balance(logits, layer.iterations, below if layer.causal else None, causal=layer.causal)

        cut = blocks, length, layer.causal
        mixed_k, mixed_v = ([sorted_block(t[:, mine], s, i, *cut) for i in range(len(blocks))] for t in (k, v))
        for t in range(n):
            own = t // length
            if layer.sortcut is not None:
                first = range(min(layer.sortcut, len(blocks)))
                keys = [row for i in first for row in mixed_k[i]]
                values = [row for i in first for row in mixed_v[i]]
            else:
                near = [j for j in blocks[own] if not layer.causal or j <= t]
                keys = mixed_k[own] + [k[j, mine] for j in near]
                values = mixed_v[own] + [v[j, mine] for j in near]
            weights = (torch.stack(keys) @ q[t, mine] / width**0.5).softmax(0)
            out[t, mine] = weights @ torch.stack(values)
    return layer.out_proj(out)


@pytest.mark.parametrize("form", [{}, {"causal": True}, {"sortcut": 2}], ids=str)
@pytest.mark.parametrize("n", [1, 3, 8, 11, 20])
def test_matches_the_equations(form, n):
    layer = make(**form, qkv_bias=True)
    x = torch.randn(2, n, 6, dtype=torch.float64)
    assert_close(layer(x), torch.stack([equations(layer, row, row) for row in x]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", [{}, {"causal": True}, {"sortcut": 2}], ids=str)
def test_blocks_count_real_tokens_only(form):
    layer = make(**form, qkv_bias=True)
    x = torch.randn(2, 14, 6, dtype=torch.float64)
    keep = torch.rand(2, 14) < 0.6
    y = layer(x, key_mask=keep)
    for row in range(2):
        real = x[row, keep[row]]
        assert_close(y[row, keep[row]], equations(layer, real, real), rtol=0, atol=1e-12)


def test_sortcut_asks_another_sequence():
    layer = make(sortcut=2)
    x, context = torch.randn(2, 5, 6, dtype=torch.float64), torch.randn(2, 13, 6, dtype=torch.float64)
    keep = torch.rand(2, 13) < 0.7
    y = layer(x, context, key_mask=keep)
    for row in range(2):
        assert_close(y[row], equations(layer, x[row], context[row, keep[row]]), rtol=0, atol=1e-12)


def test_values_are_sorted_like_keys():
    """A hard order moves whole blocks, values by their own."""
    x = torch.arange(6.0).reshape(1, 1, 6, 1)
    order = torch.eye(3)[torch.tensor([1, 2, 0])][None, None]
    assert sort_blocks(order, x, 2).flatten().tolist() == [2.0, 3.0, 4.0, 5.0, 0.0, 1.0]
    layer = make()
    x = torch.randn(1, 8, 6, dtype=torch.float64)
    changed = {name: t.clone() for name, t in layer.state_dict().items()}
    changed["v_proj.weight"].zero_()
    y = torch.func.functional_call(layer, changed, (x,))
    assert_close(y, layer.out_proj.bias.expand_as(y), rtol=0, atol=1e-12)


def test_noise_is_drawn_in_training_only():
    layer = make()
    x = torch.randn(1, 12, 6, dtype=torch.float64)
    assert_close(layer(x), layer(x, generator=torch.Generator().manual_seed(1)), rtol=0, atol=0)
    layer.train()
    first, second, third = (layer(x, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert_close(first, second, rtol=0, atol=0)
    assert not torch.allclose(first, third)


def test_the_noise_is_gumbels():
    """Its mean is Euler's constant and its variance pi^2 / 6, divided by the temperature."""
    layer = Sinkhorn(6, 50, max_length=400, block_length=4, head_dim=1, temperature=2.0).train()
    seen = []

    def spy(logits, *rest, **options):
        seen.append(logits)
        return balance(logits, *rest, **options)

    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr("regard.mechanisms.chosen.sinkhorn.balance", spy)
        layer._order(torch.zeros(1, 50, 100, 100))
    assert float(seen[0].mean()) == pytest.approx(0.5772 / 2, abs=0.01)
    assert float(seen[0].var()) == pytest.approx(1.645 / 4, abs=0.01)


def test_the_sorted_block_is_kept_while_its_block_lasts(monkeypatch):
    """Only the first token of a block pays for the sorting."""
    layer, calls = make(causal=True), []

    def spy(*arguments, **options):
        calls.append(1)
        return balance(*arguments, **options)

    monkeypatch.setattr("regard.mechanisms.chosen.sinkhorn.balance", spy)
    x = torch.randn(1, 16, 6, dtype=torch.float64)
    memory, outs = layer.memory(1), []
    for token in x.split(1, 1):
        y, memory = layer.stream(token, memory)
        outs.append(y)
    assert len(calls) == 4
    assert_close(torch.cat(outs, 1), layer(x), rtol=0, atol=1e-12)


def test_longer_sequences_are_refused_at_the_door():
    layer = make(causal=True)
    x = torch.randn(1, 21, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"21 tokens.*max_length=20"):
        layer(x)
    _, memory = layer.stream(x[:, :20], layer.memory(1))
    with pytest.raises(ValueError, match=r"21 tokens.*max_length=20"):
        layer.stream(x[:, 20:], memory)
    with pytest.raises(ValueError, match=r"static=21.*max_length=20"):
        layer.memory(1, static=21)


def test_refusals():
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    with pytest.raises(UnsupportedError, match="cannot be causal with sortcut=2"):
        regard.create("sinkhorn", dim=6, num_heads=2, max_length=20, causal=True, sortcut=2)
    with pytest.raises(UnsupportedError, match="only with sortcut="):
        make()(x, x)
    with pytest.raises(ValueError, match="2 and 1 sequences"):
        make(sortcut=1)(x, x[:1])
    with pytest.raises(UnsupportedError, match="streams only with causal=True"):
        make().memory(2)
    for wrong in ({"sortcut": 0}, {"iterations": 0}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match="must be positive"):
            make(**wrong)
