import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.linear.slim_performer import SlimPerformer, kernel_features, slim_attention, sums_before
from regard.registry import UnsupportedError
from tests.samples import heads_first

KINDS = ("elu", "relu", "square", "softmax")


def f(x, kind, w):
    """Section 2 of the paper, for one vector."""
    if kind == "softmax":
        x = x / len(x) ** 0.25
        return torch.exp(w @ x - x @ x / 2)
    return {"elu": torch.where(x > 0, x + 1, x.exp()), "relu": x.clamp(min=0), "square": x * x}[kind]


def equations(q, k, v, w, kind, mask=None):
    """Eq. 3 to 6, token by token."""
    out = torch.zeros_like(v)
    for b, h in torch.cartesian_prod(*map(torch.arange, q.shape[:2])).tolist():
        sums, total = 0.0, 0.0
        for n in range(q.shape[2]):
            if mask is None or mask[b, n]:
                key = f(k[b, h, n], kind, w[h])
                sums, total = sums + torch.outer(key, v[b, h, n]), total + key
            if torch.is_tensor(total):
                query = f(q[b, h, n], kind, w[h])
                out[b, h, n] = query @ sums / (query @ total + 1e-16)
    return out


def rows(kind):
    return torch.randn(3, 7, 4, dtype=torch.float64) if kind == "softmax" else None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "keep"), [(1, 1.0), (9, 1.0), (70, 0.6)])
def test_matches_the_equations(kind, n, keep):
    q, k, v, mask = heads_first(n, keep=keep, value_dim=6)
    mask[0, 0] = n == 1
    w = rows(kind)
    out = slim_attention(q, k, v, w, features=kind, key_mask=mask)[0]
    assert_close(out, equations(q, k, v, w if kind == "softmax" else [None] * 3, kind, mask), rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_sums_are_taken_back(kind):
    q, k, v, _ = heads_first(90, value_dim=6)
    w = rows(kind)
    before = slim_attention(q[:, :, :40], k[:, :, :40], v[:, :, :40], w, features=kind)[1]
    after = slim_attention(q[:, :, 40:], k[:, :, 40:], v[:, :, 40:], w, features=kind, before=before)[1]
    assert before.state.abs().max() > 1
    found = sums_before(k[:, :, 40:], v[:, :, 40:], after, w, features=kind)
    assert_close(found, before, rtol=0, atol=1e-11)


def test_a_query_that_meets_only_zeros_gives_zero():
    q, k, v, _ = heads_first(6)
    out = slim_attention(-q.abs(), k, v, features="relu")[0]
    assert not out.any()


def test_random_rows_estimate_softmax():
    q, k, v, _ = heads_first(20, dim=8, dtype=torch.float32)
    core = SlimPerformer(3, 8, "softmax", 16000)
    core.redraw(torch.Generator().manual_seed(0))
    assert_close(core.projection.square().sum(-1), torch.full((3, 16000), 8.0))
    q, k = q / 2, k / 2
    exact = regard.attend(q, k, v, is_causal=True)
    assert float((core(q, k, v) - exact).norm() / exact.norm()) < 0.05


def test_memory_goes_on_where_it_stopped_at_constant_size():
    core = SlimPerformer(3, 4, "softmax", 6).double()
    q, k, v, _ = heads_first(150, value_dim=6)
    memory, outs, start = core.memory(2, 3, 4, 6, dtype=torch.float64), [], 0
    sizes = [t.shape for t in memory]
    for length in (70, 1, 79):
        out, memory = core.stream(*(t[:, :, start : start + length] for t in (q, k, v)), memory)
        outs.append(out)
        start += length
    assert [t.shape for t in memory] == sizes == [(2, 3, 6, 6), (2, 3, 6)]
    assert_close(torch.cat(outs, 2), core(q, k, v), rtol=0, atol=1e-12)


def test_what_does_not_fit_is_refused():
    q, k, v, _ = heads_first(5, 4)
    with pytest.raises(ValueError, match="5 queries and 4 keys"):
        slim_attention(q, k, v)
    with pytest.raises(ValueError, match="softmax features without a projection"):
        kernel_features(q, "softmax")
    with pytest.raises(ValueError, match="relu features with a projection"):
        kernel_features(q, "relu", torch.zeros(1, 3, 4))
    with pytest.raises(ValueError, match="'cosine' is none of"):
        SlimPerformer(3, 4, "cosine")
    with pytest.raises(ValueError, match="num_features=9: elu has as many"):
        SlimPerformer(3, 4, num_features=9)
    with pytest.raises(UnsupportedError, match="slim_performer is always causal"):
        regard.create("slim_performer", dim=12, num_heads=3, causal=False)
