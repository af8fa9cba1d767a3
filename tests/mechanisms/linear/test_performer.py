import math

import pytest
import torch
from torch.func import jvp, vmap
from torch.testing import assert_close

import regard
from regard.mechanisms.linear.performer import Performer, performer_attention
from regard.ops.features import features, orthogonal_rows
from regard.registry import UnsupportedError
from tests.samples import heads_first

KINDS = ("softmax", "symmetric", "relu")


def phi(x, w, kind):
    """Lemma 1 and the generalised kernel of the paper, for one vector."""
    x = x / len(x) ** 0.25
    u = w @ x
    if kind == "relu":
        return u.clamp(min=0) + 1e-3
    u = torch.cat((u, -u)) if kind == "symmetric" else u
    return torch.exp(u - x @ x / 2) / len(u) ** 0.5


def equations(q, k, v, w, kind="softmax", causal=False, mask=None):
    """Pair by pair; the last query stands at the last key."""
    n, m = q.shape[-2], k.shape[-2]
    rows = []
    for b, h, i in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        seen = torch.arange(m) if mask is None else mask[b].nonzero().flatten()
        seen = seen[seen <= i + m - n] if causal else seen
        query = phi(q[b, h, i], w[h % len(w)], kind)
        weights = [phi(k[b, h, j], w[h % len(w)], kind) @ query for j in seen.tolist()]
        total = sum(weight * v[b, h, j] for weight, j in zip(weights, seen.tolist(), strict=True))
        rows.append(total / sum(weights) if weights else torch.zeros_like(v[b, h, 0]))
    return torch.stack(rows).view(*q.shape[:-1], v.shape[-1])


def rows(heads=3, count=6, dim=4):
    return torch.randn(heads, count, dim, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n", "m", "keep"), [(7, 7, 1.0), (7, 7, 0.5), (1, 5, 0.6), (5, 9, 0.6)])
@pytest.mark.parametrize("heads", [1, 3])
def test_matches_the_equations(kind, causal, n, m, keep, heads):
    q, k, v, mask = heads_first(n, m, keep=keep, value_dim=6)
    mask[0, 0] = False
    w = rows(heads)
    out = performer_attention(q, k, v, w, features=kind, causal=causal, key_mask=mask)[0]
    assert_close(out, equations(q, k, v, w, kind, causal, mask), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "m", "causal"), [(131, 131, True), (70, 405, True), (350, 340, False)])
def test_gradients_match_those_of_all_pairs_over_many_chunks(kind, n, m, causal):
    """The backward pass is written by hand, chunk by chunk."""
    q, k, v, mask = heads_first(n, m, keep=0.8, value_dim=6)
    w = rows()
    tensors = [tensor.requires_grad_() for tensor in (q, k, v, w)]
    features_q, features_k = (features(x, w, kind) for x in (q, k))
    features_q, features_k = (
        f.value if f.exponent is None else f.value * f.exponent.exp()[..., None] for f in (features_q, features_k)
    )
    weights = features_q @ features_k.mT * mask[:, None, None]
    weights = weights.tril(m - n) if causal else weights
    total = weights.sum(-1, keepdim=True)
    expected = weights @ v / torch.where(total > 0, total, 1.0)
    out = performer_attention(q, k, v, w, features=kind, causal=causal, key_mask=mask)[0]
    assert_close(out, expected, rtol=0, atol=1e-12)
    cotangent = torch.randn_like(out)
    found, wanted = (torch.autograd.grad(y, tensors, cotangent) for y in (out, expected))
    assert_close(found, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("factor", [6.0, 100.0, 0.0, "peak"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_later_key_moves_nothing_before_it(kind, factor):
    """A maximum over all keys would leak from it, and make of earlier rows 0/0."""
    q, k, v, _ = heads_first(100, dtype=torch.float32)
    w = 5 * rows().float()
    before = performer_attention(q, k, v, w, features=kind, causal=True)[0]
    for place in (99, 70, 40):
        # a key along a row of w has the largest feature of all, about e^200
        k[:, :, place] = w[:, 0] * 4**0.25 if factor == "peak" else k[:, :, place] * factor
        after = performer_attention(q, k, v, w, features=kind, causal=True)[0]
        assert_close(after[:, :, :place], before[:, :, :place], rtol=0, atol=0)
        assert after.isfinite().all()
        assert (after[:, :, place] != before[:, :, place]).any()


def test_a_row_that_sees_only_very_long_keys_is_their_value():
    q, k, v, _ = heads_first(90, dtype=torch.float32)
    k[:, :, :2] *= 100  # phi(k) is about e^-5000
    w = rows().float()
    out = performer_attention(q, k, v, w, causal=True)[0]
    exact = performer_attention(*(t.double() for t in (q, k, v, w)), causal=True)[0]
    assert_close(out[:, :, 0], v[:, :, 0])
    assert_close(out.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
def test_a_row_without_keys_is_zero(causal):
    q, k, v, _ = heads_first(4)
    mask = torch.tensor([[False] * 4, [False, False, True, True]])
    out = Performer(4, causal=causal).double()(q, k, v, key_mask=mask)
    assert (out[0] == 0).all()
    assert (out[1, :, :2] == 0).all() == causal
    assert (out[1, :, 2:] != 0).all()


@pytest.mark.parametrize("causal", [False, True])
def test_padding_may_hold_anything(causal):
    q, k, v, mask = heads_first(7, keep=0.6)
    hidden, core = ~mask[:, None, :, None], Performer(4, causal=causal).double()
    nan = float("nan")
    out = core(q, k.masked_fill(hidden, nan), v.masked_fill(hidden, nan), key_mask=mask)
    assert_close(out, core(q, k, v, key_mask=mask), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_half_inputs_are_summed_in_float32(causal, dtype):
    q, k, v, _ = heads_first(200, dtype=dtype)
    q, k, core = 3 * q, 3 * k, Performer(4, 64, causal=causal)
    out = core(q, k, v)
    assert out.dtype == dtype
    exact = core.double()(q.double(), k.double(), v.double())
    assert_close(out.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
def test_autocast_leaves_the_sums_alone(causal):
    q, k, v, _ = heads_first(100, dtype=torch.float32)
    q.requires_grad_()
    core = Performer(4, causal=causal)
    with torch.autocast("cpu", torch.bfloat16):
        inside = core(q, k, v)
        slope = torch.autograd.grad(inside.sum(), q)[0]
    assert_close(inside, core(q, k, v), rtol=0, atol=0)
    assert_close(slope, torch.autograd.grad(core(q, k, v).sum(), q)[0], rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_goes_on_where_it_stopped(kind):
    q, k, v, _ = heads_first(200, value_dim=6, dtype=torch.float32)
    core = Performer(4, 8, kind, causal=True)
    memory = core.memory(2, 3, 4, 6)
    sizes = [t.shape for t in memory]
    parts, start = [], 0
    for length in (70, 1, 1, 128):
        piece = slice(start, start + length)
        out, memory = core.stream(q[:, :, piece], k[:, :, piece], v[:, :, piece], memory)
        parts.append(out)
        start += length
    assert [t.shape for t in memory] == sizes == [(2, 3, 8, 7), (2, 3)]
    assert_close(torch.cat(parts, 2), core(q, k, v), rtol=1e-5, atol=1e-5)


def test_gradients_flow_through_the_memory():
    q, k, v, _ = heads_first(150)
    k[:, :, :80] *= 3  # so that the sums are rescaled when the others come
    for tensor in (q, k, v):
        tensor.requires_grad_()
    core = Performer(4, causal=True).double()
    cut = slice(0, 80), slice(80, 150)
    memory, outs = core.memory(2, 3, 4, 4, dtype=torch.float64), []
    for piece in cut:
        out, memory = core.stream(q[:, :, piece], k[:, :, piece], v[:, :, piece], memory)
        outs.append(out)
    weights = torch.randn_like(q)
    found = torch.autograd.grad((torch.cat(outs, 2) * weights).sum(), (q, k, v))
    assert_close(found, torch.autograd.grad((core(q, k, v) * weights).sum(), (q, k, v)))


@pytest.mark.parametrize("causal", [False, True])
def test_earlier_sums_may_precede_keys_that_all_queries_see(causal):
    q, k, v, _ = heads_first(5, 30)
    k[:, :, :10] *= 3  # so that the sums are rescaled when the others come
    inputs, w = [t.requires_grad_() for t in (q, k, v)], rows()
    before = performer_attention(q, k[:, :, :10], v[:, :, :10], w)[1]
    found = performer_attention(q, k[:, :, 10:], v[:, :, 10:], w, causal=causal, before=before)[0]
    whole, weights = performer_attention(q, k, v, w, causal=causal)[0], torch.randn_like(q)
    assert_close(found, whole)
    slopes = (torch.autograd.grad((out * weights).sum(), inputs) for out in (found, whole))
    assert_close(*slopes)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch's own forward-mode rules use it
def test_transforms_and_gradients_of_gradients(causal):
    """The operator alone would give zero tangents, without a word."""
    q, k, v, _ = heads_first(5)
    core = Performer(4, causal=causal).double()

    def run(q, k, v):
        return equations(q, k, v, core.projection, causal=causal)

    tangents = tuple(torch.randn_like(t) for t in (q, k, v))
    assert_close(jvp(core, (q, k, v), tangents), jvp(run, (q, k, v), tangents))
    several = torch.stack((v, 2 * v))
    assert_close(vmap(core, (None, None, 0))(q, k, several), torch.stack([core(q, k, each) for each in several]))
    inputs = tuple(t.requires_grad_() for t in (q, k, v))
    assert torch.autograd.gradgradcheck(core, inputs, fast_mode=True)


def test_compiled_it_takes_gradients_at_every_length():
    core = Performer(4, causal=True)
    compiled = torch.compile(core, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (130, 70, 200):
        inputs = [t.requires_grad_() for t in heads_first(n, dtype=torch.float32)[:3]]
        found, expected = (torch.autograd.grad(run(*inputs).square().sum(), inputs) for run in (compiled, core))
        assert_close(found, expected)


def test_nothing_as_wide_as_the_features_is_kept():
    n, features = 1000, 64
    q, k, v = (torch.randn(1, 1, n, 4, requires_grad=True) for _ in range(3))
    sizes = []

    def keep(tensor):
        sizes.append(tensor.untyped_storage().nbytes() // tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        Performer(4, features, causal=True)(q, k, v)
    assert n <= max(sizes) <= 4 * n
    assert math.fsum(sizes) < 20 * n


# --- the random rows -------------------------------------------------------------------------------------------------


def test_rows_are_orthogonal_in_blocks_with_the_norms_of_gaussian_vectors():
    w = orthogonal_rows(300, 11, 4, generator=torch.Generator().manual_seed(0)).double()
    block = w[:, 4:8]
    angles = block @ block.mT
    assert_close(angles, torch.diag_embed(angles.diagonal(dim1=1, dim2=2)), rtol=0, atol=1e-5)
    assert w.shape == (300, 11, 4)
    squares = w.square().sum(-1)
    # chi squared of 4 degrees: mean 4, variance 8
    assert abs(float(squares.mean()) - 4) < 4 * (8 / squares.numel()) ** 0.5
    assert 6 < float(squares.var()) < 10
    assert_close(orthogonal_rows(2, 11, 4, norms="sqrt").square().sum(-1), torch.full((2, 11), 4.0))


def kernel_errors(norm, m, seeds=400, dim=16):
    """Mean squared error relative to exp(q . k), of opposite directions, by kind of features and of rows."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(20, dim, generator=generator)
    q = norm * q / q.norm(dim=-1, keepdim=True)
    k = -q.roll(1, -1) * 0.5 - q * 0.75**0.5
    exact = (q * k).sum(-1).exp()
    errors = {}
    for name in ("orthogonal", "iid"):
        if name == "orthogonal":
            w = orthogonal_rows(seeds, m, dim, generator=generator)
        else:
            w = torch.randn(seeds, m, dim, generator=generator)
        phi_q, phi_k = (features(x.expand(1, seeds, -1, -1) * dim**0.25, w, "softmax") for x in (q, k))
        positive = (phi_q.value * phi_k.value).sum(-1) * (phi_q.exponent + phi_k.exponent).exp()
        size = (q.square().sum(-1) + k.square().sum(-1)) / 2
        waves = torch.einsum("nd,smd->snm", q - k, w).cos().mean(-1) * size.exp()
        errors[name] = float(((positive[0] / exact - 1) ** 2).mean())
        errors[f"{name} waves"] = float(((waves / exact - 1) ** 2).mean())
    return errors


def test_positive_orthogonal_features_have_the_smallest_error():
    """Lemma 2 and theorem 2 of the paper, which predicts 0.92 for orthogonal rows here; waves are sines and cosines."""
    small, large = kernel_errors(norm=1.0, m=16), kernel_errors(norm=1.0, m=64)
    assert small["orthogonal"] < 0.96 * small["iid"]
    assert small["orthogonal"] < 0.1 * small["iid waves"]
    assert large["orthogonal"] < 0.1 * large["orthogonal waves"]
    assert 0.15 < large["orthogonal"] / small["orthogonal"] < 0.4  # 1 / m: a quarter


def test_redraw_is_explicit_reproducible_and_saved():
    core = Performer(8, causal=True)
    first = core.projection.clone()
    core.train()(*(t.float() for t in heads_first(5, dim=8)[:3]))
    assert torch.equal(core.projection, first)
    core.redraw(torch.Generator().manual_seed(1))
    again = Performer(8, causal=True)
    again.redraw(torch.Generator().manual_seed(1))
    assert torch.equal(core.projection, again.projection)
    assert not torch.equal(core.projection, first)
    assert torch.equal(core.state_dict()["projection"], core.projection)


def test_the_number_of_features():
    assert Performer(64).projection.shape == (1, 266, 64)
    assert Performer(64, features="symmetric").projection.shape == (1, 133, 64)
    assert Performer(1, features="symmetric").projection.shape == (1, 1, 1)
    assert Performer(4, 9, per_head=True, num_heads=3).projection.shape == (3, 9, 4)


def test_the_estimate_comes_near_softmax():
    q, k, v, _ = heads_first(30, dim=16, dtype=torch.float32)
    q, k = q / 2, k / 2
    exact = regard.attend(q, k, v)
    core = Performer(16, 20000)
    core.redraw(torch.Generator().manual_seed(0))
    assert float((core(q, k, v) - exact).norm() / exact.norm()) < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "cosine"}, "'cosine' is none of"),
        ({"norms": "one"}, "'one' is neither"),
        ({"per_head": True}, "pass num_heads"),
        ({"features": "symmetric", "num_features": 5}, "num_features=5: symmetric features are a positive multiple"),
        ({"num_features": 0}, "num_features=0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Performer(4, **options)


def test_wrong_inputs_are_refused():
    q, k, v, _ = heads_first(5, 4)
    with pytest.raises(ValueError, match="5 queries needs at least as many keys, got 4"):
        Performer(4, causal=True).double()(q, k, v)
    with pytest.raises(ValueError, match=r"\(1, 16, 8\).*width 4"):
        Performer(8).double()(q, k, v)
    with pytest.raises(UnsupportedError, match="streams only with causal=True"):
        Performer(4).memory(1, 1, 4, 4)
