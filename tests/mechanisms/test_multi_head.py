import pytest
import torch
from torch import nn
from torch.testing import assert_close

import regard
from regard.mechanisms.multi_head import ScaledDotProduct
from tests.samples import heads_first


def equations(q, k, v, mask, causal, scale):
    """Eq. 1 of the paper, row by row; the last query stands at the last key, query head h reads key head h // rep."""
    n, m, rep = q.shape[-2], k.shape[-2], q.shape[1] // k.shape[1]
    out = q.new_zeros(*q.shape[:-1], v.shape[-1])
    for b, h, i in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        seen = mask[b].nonzero().flatten()
        seen = seen[seen <= i + m - n] if causal else seen
        if len(seen):
            weights = torch.softmax(scale * k[b, h // rep, seen] @ q[b, h, i], -1)
            out[b, h, i] = weights @ v[b, h // rep, seen]
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize(("n", "m", "keep"), [(7, 7, 1.0), (7, 7, 0.5), (1, 5, 0.6), (5, 9, 0.6), (9, 5, 1.0)])
def test_matches_the_equations(n, m, keep, causal, scale):
    q, k, v, mask = heads_first(n, m, keep=keep, heads=4, kv_heads=2, value_dim=6)
    out = ScaledDotProduct(causal, scale=scale)(q, k, v, key_mask=None if keep == 1 else mask)
    assert_close(out, equations(q, k, v, mask, causal, scale or 0.5), rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_documents_do_not_see_each_other(causal):
    q, k, v, _ = heads_first(8)
    segments = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2], [4, 4, 4, 4, 4, 4, 4, 9]])
    core = ScaledDotProduct(causal)
    out = core(q, k, v, segments=segments)
    for row in range(2):
        for document in segments[row].unique():
            own = segments[row] == document
            alone = core(*(t[row : row + 1, :, own] for t in (q, k, v)))
            assert_close(out[row, :, own], alone[0])


def test_agrees_with_torch():
    theirs = nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    ours = regard.create("multi_head", dim=12, num_heads=3, dtype=torch.float64)
    with torch.no_grad():
        for linear, weight, bias in zip(
            (ours.q_proj, ours.k_proj, ours.v_proj), theirs.in_proj_weight.chunk(3), torch.randn(3, 12), strict=True
        ):
            linear.weight.copy_(weight), linear.bias.copy_(bias)
        theirs.in_proj_bias.copy_(torch.cat([linear.bias for linear in (ours.q_proj, ours.k_proj, ours.v_proj)]))
        ours.out_proj.load_state_dict(theirs.out_proj.state_dict())
    x, context = torch.randn(2, 5, 12).double(), torch.randn(2, 7, 12).double()
    ignored = torch.rand(2, 7) < 0.4
    expected, _ = theirs(x, context, context, key_padding_mask=ignored, need_weights=True)
    assert_close(ours(x, context, key_mask=regard.layers.from_key_padding_mask(ignored)), expected)


def test_weights_are_dropped_in_training_only():
    q, k, _, _ = heads_first(40)
    v = torch.eye(40).double().expand(2, 3, -1, -1)  # the output is the matrix of weights
    core = ScaledDotProduct(attn_drop=0.25)
    dropped = core(q, k, v, generator=torch.Generator().manual_seed(3))
    kept = dropped != 0
    assert 0.7 < kept.double().mean() < 0.8
    assert_close(dropped[kept], core.eval()(q, k, v)[kept] / 0.75)
    again = core.train()(q, k, v, generator=torch.Generator().manual_seed(3))
    assert_close(again, dropped, rtol=0, atol=0)


def test_a_static_memory_serves_sequences_of_different_lengths():
    q, k, v, _ = heads_first(7)
    core = ScaledDotProduct(causal=True)
    memory = core.memory(2, 3, 4, 4, dtype=torch.float64, static=10)
    starts = torch.tensor([1, 4])
    for row, start in enumerate(starts):  # row by row, a prompt of its own length
        memory.key[row, :, :start], memory.value[row, :, :start] = k[row, :, :start], v[row, :, :start]
    memory = memory._replace(length=starts)
    rows = torch.stack([torch.arange(start, start + 3) for start in starts])[:, None, :, None].expand(-1, 3, -1, 4)
    out, memory = core.stream(*(t.gather(2, rows) for t in (q, k, v)), memory)
    assert_close(out, core(q, k, v).gather(2, rows))
    assert memory.length.tolist() == [4, 7]
