import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.linear.delta_rule import DeltaRule, fast_weights, key_features
from regard.memory import LinearState
from regard.registry import UnsupportedError
from tests.samples import heads_first

KINDS = ("dpfp", "elu", "silu")


def phi(x, kind, nu):
    """Section 5 of the paper, for one vector."""
    if kind == "silu":
        y = x / (1 + torch.exp(-x))
        return y / y.norm()
    if kind == "elu":
        y = torch.where(x > 0, x + 1, x.exp())
    else:
        u = torch.cat((x.clamp(min=0), (-x).clamp(min=0)))
        y = torch.stack([u[i] * u[i - r] for r in range(1, nu + 1) for i in range(len(u))])
    return y / y.sum()


def equations(q, k, v, beta, kind="dpfp", nu=2, normalise=False, mask=None, before=None):
    """Eq. 24 and 25, token by token."""
    out = torch.zeros_like(v)
    for b, h in torch.cartesian_prod(*map(torch.arange, q.shape[:2])).tolist():
        width = len(phi(q[b, h, 0], kind, nu))
        s, z = q.new_zeros(width, v.shape[-1]), q.new_zeros(width)
        if before is not None:
            s, z = before.state[b, h], before.normaliser[b, h]
        for i in range(q.shape[2]):
            if mask is None or mask[b, i]:
                key = phi(k[b, h, i], kind, nu)
                s = s + torch.outer(key, beta[b, h, i] * (v[b, h, i] - s.T @ key))
                z = z + key
            query = phi(q[b, h, i], kind, nu)
            out[b, h, i] = s.T @ query / q.shape[-1] ** 0.5 / (query @ z + 1e-5 if normalise else 1.0)
    return out


@pytest.mark.parametrize(
    ("kind", "nu", "normalise"),
    [("dpfp", 1, False), ("dpfp", 3, True), ("elu", 2, False), ("elu", 2, True), ("silu", 2, False)],
)
@pytest.mark.parametrize(("n", "keep"), [(1, 1.0), (9, 1.0), (70, 0.6)])
def test_matches_the_equations(kind, nu, normalise, n, keep):
    q, k, v, mask = heads_first(n, keep=keep, value_dim=6)
    beta = torch.rand(2, 3, n, dtype=torch.float64)
    out = fast_weights(q, k, v, beta, features=kind, nu=nu, normalise=normalise, key_mask=mask)[0]
    assert_close(out, equations(q, k, v, beta, kind, nu, normalise, mask), rtol=0, atol=1e-11)


def test_gradients_match_those_of_the_equations():
    q, k, v, mask = heads_first(70, keep=0.8, batch=1, heads=1)
    beta = torch.rand(1, 1, 70, dtype=torch.float64)
    before = LinearState(torch.randn(1, 1, 16, 4).double(), torch.rand(1, 1, 16).double())
    leaves = [t.requires_grad_() for t in (q, k, v, beta, *before)]
    out = fast_weights(q, k, v, beta, normalise=True, key_mask=mask, before=before)[0]
    expected = equations(q, k, v, beta, normalise=True, mask=mask, before=before)
    assert_close(out, expected, rtol=0, atol=1e-11)
    weights = torch.randn_like(out)
    found, wanted = (torch.autograd.grad((y * weights).sum(), leaves) for y in (out, expected))
    assert_close(found, wanted, rtol=1e-8, atol=1e-9)


def test_padding_may_hold_anything():
    q, k, v, mask = heads_first(9, keep=0.5)
    beta, hidden, nan = torch.rand(2, 3, 9, dtype=torch.float64), ~mask[:, None, :, None], float("nan")
    expected = fast_weights(q, k, v, beta, key_mask=mask)[0]
    k, v, beta = (t.masked_fill(h, nan) for t, h in ((k, hidden), (v, hidden), (beta, hidden[..., 0])))
    assert_close(fast_weights(q, k, v, beta, key_mask=mask)[0], expected, rtol=0, atol=0)


def test_a_key_is_overwritten():
    """What sums cannot do: the second value of a key replaces the first, and other keys keep theirs."""
    x = torch.eye(4)[None, None, [0, 1, 0, 0, 1]].double()
    v = torch.randn(1, 1, 5, 3).double()
    out = fast_weights(x, x, v, torch.ones(1, 1, 5).double(), features="silu")[0] * 2
    assert_close(out[0, 0, 2:], v[0, 0, [2, 3, 4]])
    keep = torch.tensor([[True, True, True, False, False]])
    out = fast_weights(x, x, v, torch.ones(1, 1, 5).double(), features="silu", key_mask=keep)[0] * 2
    assert_close(out[0, 0, 3:], v[0, 0, [2, 1]])


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_stays_bounded(kind):
    """|k| <= 1 and beta <= 2, whatever the projections are."""
    q, k, v, _ = heads_first(2000, batch=1)
    memory = fast_weights(q, 30 * k, v, torch.full((1, 3, 2000), 1.9).double(), features=kind)[1]
    assert memory.state.abs().max() < 100


@pytest.mark.parametrize("kind", KINDS)
def test_features_that_are_all_zero_give_zero(kind):
    x = torch.tensor([[[[-200.0, -200.0], [0.0, 0.0]]]], requires_grad=True)
    found = key_features(x if kind == "elu" else x[:, :, 1:], kind, 1)
    slope = torch.autograd.grad(found.square().sum(), x)[0]
    assert found.isfinite().all()
    assert slope.isfinite().all()
    assert not found[0, 0, 0].any()


def test_the_layer_is_the_equations_between_its_projections():
    layer = DeltaRule(12, 3, qkv_bias=True, normalise=True, max_beta=1.5, nu=3).double()
    x = torch.randn(2, 6, 12, dtype=torch.float64)
    q, k, v = (linear(x).unflatten(-1, (3, 4)).transpose(1, 2) for linear in (layer.q_proj, layer.k_proj, layer.v_proj))
    out = equations(q, k, v, 1.5 * layer.beta_proj(x).mT.sigmoid(), nu=3, normalise=True)
    assert_close(layer(x), layer.out_proj(out.transpose(1, 2).flatten(2)), rtol=0, atol=1e-11)


@pytest.mark.parametrize("normalise", [False, True])
def test_memory_goes_on_where_it_stopped_at_constant_size(normalise):
    layer = DeltaRule(12, 3, normalise=normalise).eval()
    x, memory, outs = torch.randn(2, 200, 12), layer.memory(2), []
    sizes = [t.shape for t in memory]
    for piece in x.split([70, 1, 1, 128], 1):
        y, memory = layer.stream(piece, memory)
        outs.append(y)
    assert [t.shape for t in memory] == sizes == [(2, 3, 16, 4), (2, 3, 16)]
    assert_close(torch.cat(outs, 1), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_are_summed_in_float32(dtype):
    q, k, v, _ = heads_first(200, dtype=dtype)
    beta = torch.rand(2, 3, 200)
    out, memory = fast_weights(q, k, v, beta, normalise=True)
    assert (out.dtype, memory.state.dtype) == (dtype, torch.float32)
    exact = fast_weights(q.double(), k.double(), v.double(), beta.double(), normalise=True)[0]
    assert_close(out.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "cosine"}, "'cosine' is none of"),
        ({"nu": 8}, "nu=8: dpfp rolls 8 numbers by 1 to 7"),
        ({"nu": 0}, "nu=0"),
        ({"features": "silu", "normalise": True}, "may be 0 or negative"),
        ({"max_beta": 2.5}, "max_beta=2.5"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DeltaRule(12, 3, **options)


def test_what_it_cannot_be_is_refused():
    with pytest.raises(UnsupportedError, match="delta_rule is always causal"):
        regard.create("delta_rule", dim=12, num_heads=3, causal=False)
    with pytest.raises(UnsupportedError, match="a memory of its own"):
        regard.create("delta_rule", dim=12, num_heads=4, num_kv_heads=2)
    x = torch.randn(2, 5, 12)
    with pytest.raises(UnsupportedError, match="takes no context"):
        DeltaRule(12, 3)(x, x)
