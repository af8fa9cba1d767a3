import math

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.linear.random_feature import RandomFeature, random_feature_attention, random_features
from regard.registry import UnsupportedError
from tests.samples import heads_first

KINDS = ("gaussian", "arccos")


def phi(x, w, kind):
    """Section 3.1 and appendix A.2 of the paper, for one vector."""
    u = w @ (x / x.norm())
    return torch.cat((u.sin(), u.cos()) if kind == "gaussian" else (u.clamp(min=0),)) / len(w) ** 0.5


def equations(q, k, v, w, gate=None, kind="gaussian", causal=False, mask=None, eps=1e-3):
    """Key by key, with the sums of eq. 5 to 8; the last query stands at the last key."""
    n, m = q.shape[-2], k.shape[-2]
    out = q.new_zeros(*q.shape[:-1], v.shape[-1])
    for b, h, i in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        s, z = 0.0, 0.0
        for j in range(m):
            if (mask is None or mask[b, j]) and (not causal or j <= i + m - n):
                g = 0.5 if gate is None else torch.sigmoid(gate[b, h, j])
                key = phi(k[b, h, j], w[h % len(w)], kind)
                keep, take = (1, 1) if gate is None else (g, 1 - g)
                s, z = keep * s + take * key[:, None] * v[b, h, j], keep * z + take * key
        if torch.is_tensor(z):
            query = phi(q[b, h, i], w[h % len(w)], kind)
            weight = query @ z
            out[b, h, i] = query @ s / (weight if causal else weight.abs()).clamp(min=eps)
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("causal", "gated"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("n", "m", "keep"), [(7, 7, 1.0), (7, 7, 0.5), (1, 5, 0.6), (5, 9, 0.6)])
def test_matches_the_equations(kind, causal, gated, n, m, keep):
    q, k, v, mask = heads_first(n, m, keep=keep, value_dim=6)
    mask[0, 0] = False
    w = torch.randn(3, 16, 4, dtype=torch.float64)
    gate = torch.randn(2, 3, m, dtype=torch.float64) if gated else None
    options = {"causal": causal, "eps": 0.05}
    out = random_feature_attention(q, k, v, w, gate, features=kind, key_mask=mask, **options)[0]
    assert_close(out, equations(q, k, v, w, gate, kind, mask=mask, **options), rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_sums_of_waves_may_be_negative(causal):
    """phi(q) . phi(k) = cos(w . (q^ - k^)) = cos(pi) = -1: the floor of the causal case, |-1| otherwise."""
    q, k, v = (torch.tensor([[[[x, 0.0]]]], dtype=torch.float64) for x in (1.0, -2.0, 3.0))
    w = torch.tensor([[[torch.pi / 2, 0.0]]], dtype=torch.float64)
    out = random_feature_attention(q, k, v, w, causal=causal, eps=0.5)[0]
    assert_close(out[0, 0, 0, 0].item(), -3 / 0.5 if causal else -3.0)


def test_the_layer_scales_the_rows_by_widths_and_temperature():
    layer = RandomFeature(12, 3, num_rows=8, temperature=0.7, qkv_bias=False, causal=True, gate=True).double()
    torch.nn.init.normal_(layer.sigma)
    x = torch.randn(2, 6, 12, dtype=torch.float64)
    q, k, v = (linear(x).unflatten(-1, (3, 4)).transpose(1, 2) for linear in (layer.q_proj, layer.k_proj, layer.v_proj))
    w = layer.sigma[:, None] * layer.projection / 0.7
    out = equations(q, k, v, w, layer.gate_proj(x).transpose(1, 2), causal=True)
    assert_close(layer.eval()(x), layer.out_proj(out.transpose(1, 2).flatten(2)), rtol=0, atol=1e-11)


def test_the_kernel_is_that_of_the_paper():
    """E[phi(q) . phi(k)] = exp(-s^2 |q^ - k^|^2 / 2): softmax of cosines but for a constant."""
    x = torch.randn(1, 1, 6, 4, dtype=torch.float64)
    w = 1.3 * torch.randn(1, 200_000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    waves = random_features(x, w)
    unit = x / x.norm(dim=-1, keepdim=True)
    expected = torch.exp(1.3**2 * (unit @ unit.mT - 1))
    assert_close(waves @ waves.mT, expected, rtol=0, atol=0.01)
    bends = random_features(x, w / 1.3, "arccos")
    angle = (unit @ unit.mT).clamp(-1, 1).arccos()
    expected = (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi)
    assert_close(bends @ bends.mT, expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("gated", [False, True])
def test_a_later_token_moves_nothing_before_it(gated):
    layer = RandomFeature(12, 3, causal=True, gate=gated).eval()
    x = torch.randn(1, 100, 12)
    before = layer(x)
    x[:, 70] *= 100
    after = layer(x)
    assert_close(after[:, :70], before[:, :70], rtol=0, atol=0)
    assert (after[:, 70:] != before[:, 70:]).any()


def test_a_masked_token_closes_no_gate():
    layer = RandomFeature(12, 3, causal=True, gate=True).eval()
    x, keep = torch.randn(1, 9, 12), torch.tensor([[True, True, False, True, False, False, True, True, True]])
    assert_close(layer(x, key_mask=keep)[:, keep[0]], layer(x[:, keep[0]]))


def test_memory_goes_on_where_it_stopped_at_constant_size():
    layer = RandomFeature(12, 3, causal=True, gate=True).eval()
    x, memory, outs = torch.randn(2, 200, 12), layer.memory(2), []
    sizes = [t.shape for t in memory]
    for piece in x.split([70, 1, 1, 128], 1):
        y, memory = layer.stream(piece, memory)
        outs.append(y)
    assert [t.shape for t in memory] == sizes == [(2, 3, 128, 4), (2, 3, 128)]
    assert_close(torch.cat(outs, 1), layer(x), rtol=1e-5, atol=1e-5)


def test_rows_are_drawn_in_training_and_saved_for_evaluation():
    layer, x = RandomFeature(12, 3).train(), torch.randn(2, 5, 12)
    saved = layer.projection.clone()
    assert not torch.equal(layer(x), layer(x))
    seeded = [layer(x, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[1], seeded[2])
    assert torch.equal(layer.eval()(x), layer(x))
    assert torch.equal(layer.projection, saved)
    layer.redraw(torch.Generator().manual_seed(3))
    assert not torch.equal(layer.state_dict()["projection"], saved)


def test_orthogonal_rows():
    w = RandomFeature(12, 3, num_rows=8, orthogonal=True).projection
    angles = w[:, :4] @ w[:, :4].mT
    assert_close(angles, torch.diag_embed(angles.diagonal(dim1=1, dim2=2)), rtol=0, atol=1e-5)
    assert not torch.equal(w[0], w[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_half_inputs_are_summed_in_float32(causal, dtype):
    q, k, v, _ = heads_first(200, dtype=dtype)
    w = torch.randn(3, 64, 4)
    out, sums = random_feature_attention(q, k, v, w, causal=causal)
    assert (out.dtype, sums.state.dtype) == (dtype, torch.float32)
    exact = random_feature_attention(q.double(), k.double(), v.double(), w.double(), causal=causal)[0]
    assert_close(out.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-4)


def test_a_vector_of_length_zero_has_finite_numbers():
    q, k, v, _ = heads_first(4)
    q, k = (torch.zeros_like(q).requires_grad_(), torch.zeros_like(k).requires_grad_())
    out = random_feature_attention(q, k, v, torch.randn(3, 16, 4, dtype=torch.float64))[0]
    assert_close(out, v.mean(2, keepdim=True).expand_as(v))
    assert all(slope.isfinite().all() for slope in torch.autograd.grad(out.sum(), (q, k)))


def test_learned_widths_can_be_left_out():
    layer = RandomFeature(12, 3, learn_widths=False)
    assert "sigma" not in layer.state_dict()
    other = RandomFeature(12, 3)
    other.load_state_dict(layer.state_dict() | {"sigma": torch.ones(3, 4)})
    x = torch.randn(2, 5, 12)
    assert torch.equal(other.eval()(x), layer.eval()(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "cosine"}, "'cosine' is neither"),
        ({"num_rows": 0}, "num_rows=0"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"gate": True}, "needs causal=True"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RandomFeature(12, 3, **options)


def test_wrong_inputs_are_refused():
    q, k, v, _ = heads_first(5, 4)
    w = torch.randn(3, 8, 4).double()
    with pytest.raises(ValueError, match="5 queries need at least as many keys, got 4"):
        random_feature_attention(q, k, v, w, causal=True)
    with pytest.raises(ValueError, match="needs causal=True"):
        random_feature_attention(q, k, v, w, torch.zeros(2, 3, 4))
    layer, x = RandomFeature(12, 3), torch.randn(2, 5, 12)
    with pytest.raises(UnsupportedError, match="streams only with causal=True"):
        layer.memory(1)
    with pytest.raises(ValueError, match="2 and 1 sequences"):
        layer(x, x[:1])
    with pytest.raises(UnsupportedError, match="without context"):
        layer(x, x, segments=torch.zeros(2, 5, dtype=torch.long))
    with pytest.raises(UnsupportedError, match="never forms weights"):
        regard.create("random_feature", dim=12, num_heads=3, attn_drop=0.1)
