import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.patterned import bpt
from regard.mechanisms.patterned.bpt import BPT, bpt_attention
from regard.registry import UnsupportedError
from tests import trees
from tests.samples import heads_first


def equations(q, k, v, mask, step, clip, causal, table=None, authors_graph=False):
    """Token by token, of texts without padding in the midst; masked tokens are no part of a span's mean."""
    out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=v.dtype)
    n, sizes = q.shape[2], trees.sizes_of(q.shape[2])
    spans = [slice(p << j, min(n, (p + 1) << j)) for j, size in enumerate(sizes) for p in range(size)]
    edges = trees.edges(n, step, clip, causal) + (trees.stray_edges(n, step, clip) if authors_graph else [])
    for b, h, i in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        logits, values = [], []
        for token, node, label in edges:
            seen = mask[b, spans[node]]
            if token == i and seen.any():
                key, value = (t[b, h, spans[node]][seen].mean(0) for t in (k, v))
                key = key if table is None else key + table[label]
                logits.append(q[b, h, i] @ key / q.shape[-1] ** 0.5)
                values.append(value)
        if logits:
            out[b, h, i] = torch.stack(logits).softmax(0) @ torch.stack(values)
    return out


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("step", "clip"), [(1, 0), (2, 1), (3, 5)])
@pytest.mark.parametrize("n", [1, 2, 7, 12, 23])
def test_tokens_read_near_tokens_and_far_spans(n, step, clip, causal):
    q, k, v, mask = heads_first(n, keep=0.7, value_dim=5)
    table = torch.randn((2 * step + 1) * (clip + 1), 4, dtype=torch.float64)
    everyone = torch.ones_like(mask)
    out = bpt_attention(q, k, v, step, table=table, causal=causal, key_mask=mask, query_mask=everyone)
    assert_close(out, equations(q, k, v, mask, step, clip, causal, table), rtol=0, atol=1e-12)
    out = bpt_attention(q, k, v, step, causal=causal)
    assert_close(out, equations(q, k, v, everyone, step, 0, causal), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [5, 8, 13])
def test_the_authors_graph_reads_the_beginning_where_a_text_ends_within_a_span(n):
    q, k, v, _ = heads_first(n, batch=1)
    core, everyone = BPT(4, 2, 1, authors_graph=True).double(), torch.ones(1, n, dtype=torch.bool)
    expected = equations(q, k, v, everyone, 2, 1, False, core.table, authors_graph=True)
    assert_close(core(q, k, v), expected, rtol=0, atol=1e-12)
    exact = bpt_attention(q, k, v, 2, table=core.table)
    assert torch.allclose(exact, expected) == (n == 8)
    padded = [torch.cat((torch.randn(1, 3, 6, 4, dtype=torch.float64), t), 2) for t in (q, k, v)]
    mask = torch.arange(n + 6)[None] >= 6
    assert_close(core(*padded, key_mask=mask)[:, :, 6:], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pieces", [[1] * 21, [20, 1, 16], [37]])
@pytest.mark.parametrize("step", [1, 3])
def test_a_stream_is_the_whole_and_its_memory_does_not_grow(step, pieces, monkeypatch):
    monkeypatch.setattr(bpt, "RUN", 16)
    q, k, v, _ = heads_first(sum(pieces))
    core = BPT(4, step, 2, causal=True).double()
    memory, outs = core.memory(2, 3, 4, 4, dtype=torch.float64), []
    shape = memory.key.shape
    for run in zip(*(t.split(pieces, 2) for t in (q, k, v)), strict=True):
        out, memory = core.stream(*run, memory)
        outs.append(out)
        assert memory.key.shape == shape
    assert_close(torch.cat(outs, 2), core(q, k, v), rtol=0, atol=1e-12)


def test_dropout_keeps_the_mean_and_its_gradient_is_that_of_what_was_drawn():
    q, k, v, _ = heads_first(5, batch=1)
    drawn = [bpt_attention(q, k, v, 2, attn_drop=0.3, generator=torch.Generator().manual_seed(s)) for s in range(100)]
    drawn = torch.stack(drawn)
    assert_close(drawn.mean(0), bpt_attention(q, k, v, 2), rtol=0, atol=float(5 * drawn.std(0).max() / 100**0.5))
    inputs = [t.requires_grad_() for t in (q, k, v)]

    def run(*inputs):
        return bpt_attention(*inputs, 2, attn_drop=0.3, generator=torch.Generator().manual_seed(1))

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_refusals(monkeypatch):
    with pytest.raises(ValueError, match="step=0"):
        BPT(4, 0)
    with pytest.raises(UnsupportedError, match="leave it out"):
        regard.create("bpt", dim=8, num_heads=2, causal=True, authors_graph=True)
    with pytest.raises(UnsupportedError, match="streams only with causal=True"):
        BPT(4).memory(1, 1, 4, 4)
    core = BPT(4, 2, causal=True)
    with pytest.raises(ValueError, match="at most 1048576 tokens"):
        core.memory(1, 1, 4, 4, static=2**20 + 1)
    monkeypatch.setattr(bpt, "MOST_TOKENS", 8)
    memory = core.memory(1, 3, 4, 4)
    with pytest.raises(ValueError, match="9 tokens are more than 8"):
        core.stream(*(t.float() for t in heads_first(9, batch=1)[:3]), memory)
