import pytest
import torch
from torch.testing import assert_close

from regard.ops import relative_attention as module
from regard.ops.relative_attention import distance_sinusoids, relative_attention
from tests.samples import heads_first


def equations(q, k, v, p, r, scale, mask):
    out = q.new_zeros(*q.shape[:3], v.shape[-1])
    n, length = q.shape[2], k.shape[2]
    for b, h, i in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        g, t = h // (q.shape[1] // k.shape[1]), h if len(r) > 1 else 0
        seen = [j for j in range(i + length - n + 1) if mask[b, j]]
        if seen:
            scores = [q[b, h, i] @ k[b, g, j] + p[b, h, i] @ r[t, j + n - 1 - i] for j in seen]
            out[b, h, i] = (scale * torch.stack(scores)).softmax(0) @ v[b, g, seen]
    return out


def case(n, length, kv_heads=4, tables=4):
    q, k, v, mask = heads_first(n, length, keep=0.6, batch=3, heads=4, kv_heads=kv_heads, value_dim=5)
    p, r = torch.randn(3, 4, n, 6, dtype=torch.float64), torch.randn(tables, length, 6, dtype=torch.float64)
    mask[0, :length] = torch.arange(length) >= length - 2  # the first queries see nothing
    return q, k, v, p, r, mask


@pytest.mark.parametrize(("kv_heads", "tables"), [(4, 4), (1, 1), (2, 4)])
@pytest.mark.parametrize(("n", "length"), [(5, 5), (4, 9), (1, 6)])
def test_matches_the_equations_whole_and_in_runs(n, length, kv_heads, tables, monkeypatch):
    q, k, v, p, r, mask = case(n, length, kv_heads, tables)
    expected = equations(q, k, v, p, r, 0.3, mask)
    tensors = [t.requires_grad_() for t in (q, k, v, p, r)]
    whole = relative_attention(*tensors, scale=0.3, key_mask=mask)
    assert_close(whole, expected, rtol=0, atol=1e-12)
    slopes = torch.autograd.grad(whole.square().sum(), tensors)
    monkeypatch.setattr(module, "SCORES_AT_ONCE", 2 * 4 * n * length)  # two sequences, then one
    for kept in (0, 2**26):
        monkeypatch.setattr(module, "SCORES_KEPT", kept)
        runs = relative_attention(*tensors, scale=0.3, key_mask=mask)
        assert_close(runs, whole, rtol=0, atol=1e-14)
        for mine, other in zip(torch.autograd.grad(runs.square().sum(), tensors), slopes, strict=True):
            assert mine.isfinite().all()
            assert_close(mine, other, rtol=0, atol=1e-12)


def test_runs_keep_no_scores(monkeypatch):
    q, k, v, p, r, _ = case(16, 64)
    for limit in ("SCORES_AT_ONCE", "SCORES_KEPT"):
        monkeypatch.setattr(module, limit, 1)
    sizes = []

    def keep(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        relative_attention(q.requires_grad_(), k, v, p, r, scale=0.3)
    assert sizes
    assert max(sizes) < 4 * 16 * 64


def test_dropout_drops_single_weights_and_keeps_their_mean(monkeypatch):
    q, v = torch.zeros(1, 2, 256, 4), torch.ones(1, 2, 256, 1)
    for at_once in (2**26, 1):
        monkeypatch.setattr(module, "SCORES_AT_ONCE", at_once)
        options = {"scale": 1.0, "attn_drop": 0.25, "generator": torch.Generator().manual_seed(0)}
        out = relative_attention(q[:, :, -4:], q, v, **options).flatten()
        assert_close(out.mean(), torch.ones(()), rtol=0, atol=0.05)
        assert out.std() > 0


def test_half_inputs_are_weighed_in_float32():
    q, k, v, p, r, _ = (t.bfloat16() for t in case(8, 40))
    out = relative_attention(q, k, v, p, r, scale=0.3)
    assert out.dtype == torch.bfloat16
    exact = relative_attention(*(t.double() for t in (q, k, v, p, r)), scale=0.3)
    assert_close(out.double(), exact, rtol=0, atol=0.03)


def test_sinusoids_stand_side_by_side_and_the_nearest_distance_is_last():
    table = distance_sinusoids(5, 6, torch.zeros(1, dtype=torch.float64))
    for place, i in ((0, 0), (2, 1), (4, 2)):
        angle = torch.tensor((4 - place) * 10000 ** (-2 * i / 6), dtype=torch.float64)
        assert_close(table[place, [i, 3 + i]], torch.stack((angle.sin(), angle.cos())), rtol=0, atol=1e-14)
