"""Talking heads against the paper's equations, and what only it can get wrong."""

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.layers import MultiHead
from regard.mechanisms.multi_head import ScaledDotProduct
from regard.mechanisms.talking_heads import TalkingHeads, talking_heads
from regard.ops.weights import visible
from regard.registry import UnsupportedError
from tests.samples import heads_first


def equations(q, k, v, logit_mix, weight_mix, allowed):
    """Pair by pair: b, then a softmax head for each column of P_l, then a head of values for each column of P_w."""
    batch, heads, n, width = q.shape
    out = q.new_zeros(batch, v.shape[1], n, v.shape[-1])
    for b in range(batch):
        for i in range(n):
            seen = allowed[b, i].nonzero().flatten().tolist()
            if not seen:
                continue
            logits = torch.stack([torch.stack([q[b, h, i] @ k[b, h, j] for j in seen]) for h in range(heads)])
            mixed = [
                sum(logit_mix[h, s] * logits[h] for h in range(heads)) / width**0.5 for s in range(len(weight_mix))
            ]
            weights = [(row - row.max()).exp() / (row - row.max()).exp().sum() for row in mixed]
            for g in range(v.shape[1]):
                heard = sum(weight_mix[s, g] * weights[s] for s in range(len(weights)))
                out[b, g, i] = heard @ v[b, g, seen]
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "softmax_heads", "value_heads"), [(3, 3, 3), (3, 5, 2), (2, 1, 4)])
@pytest.mark.parametrize(("n", "m", "keep"), [(6, 6, 1.0), (3, 7, 0.5), (7, 3, 0.5)])
def test_matches_the_equations(causal, heads, softmax_heads, value_heads, n, m, keep):
    q, k, v, mask = heads_first(n, m, keep=keep, heads=heads)
    v = torch.randn(2, value_heads, m, 5, dtype=torch.float64)
    logit_mix = torch.randn(heads, softmax_heads, dtype=torch.float64)
    weight_mix = torch.randn(softmax_heads, value_heads, dtype=torch.float64)
    allowed = visible(n, m, mask, causal=causal, device=q.device).expand(2, 1, n, m)
    if causal:
        later = [[j - (m - n) > i for j in range(m)] for i in range(n)]
        assert not allowed[:, 0][:, torch.tensor(later)].any()
    out = talking_heads(q, k, v, logit_mix, weight_mix, allowed=allowed)
    assert_close(out, equations(q, k, v, logit_mix, weight_mix, allowed[:, 0]), rtol=0, atol=1e-12)


def test_heads_that_do_not_talk_are_multi_head_attention():
    layer = regard.create("talking_heads", dim=12, num_heads=3, causal=True)
    with torch.no_grad():
        for table in layer.core.parameters():
            table.copy_(torch.eye(3))
    plain = MultiHead(12, 3, ScaledDotProduct(causal=True))
    plain.load_state_dict({name: t for name, t in layer.state_dict().items() if not name.startswith("core.")})
    x = torch.randn(2, 9, 12)
    assert_close(layer(x), plain(x))


def test_a_mask_acts_after_the_logits_are_mixed():
    """Before it, a table with a 0 or with both signs would make NaN of -inf."""
    q, k, v, mask = heads_first(6, keep=0.5)
    core = TalkingHeads(3).double()
    with torch.no_grad():
        core.logit_mix.copy_(torch.tensor([[1.0, 0.0, -1.0], [-2.0, 0.0, 1.0], [0.0, 0.0, 1.0]]))
    assert core(q, k, v, key_mask=mask).isfinite().all()


def test_dropout_acts_before_the_weights_are_mixed():
    """A dropped weight of the only softmax head is missing in every head of the values."""
    q, k, _, _ = heads_first(6)
    core = TalkingHeads(3, softmax_heads=1, attn_drop=0.5).double().train()
    with torch.no_grad():
        core.weight_mix.fill_(1.0)
    u = core(q, k, torch.eye(6, dtype=torch.float64).expand(2, 3, 6, 6), generator=torch.Generator().manual_seed(0))
    assert (u == 0).any()
    assert_close(u, u[:, :1].expand_as(u), rtol=0, atol=0)
    whole = core.eval()(q, k, torch.eye(6, dtype=torch.float64).expand(2, 3, 6, 6))
    assert_close(u[u != 0], 2 * whole[u != 0])


def test_refusals():
    q, k, v, _ = heads_first(5, heads=2)
    with pytest.raises(ValueError, match=r"2, 2 and 2 heads.*num_heads=3"):
        TalkingHeads(3).double()(q, k, v)
    with pytest.raises(ValueError, match="softmax_heads=0"):
        TalkingHeads(3, softmax_heads=0)
    with pytest.raises(UnsupportedError, match="only with causal=True"):
        TalkingHeads(3).memory(1, 3, 4, 4)
