import math

import pytest
import torch
import torch.nn.functional as F
from torch.func import jvp, vmap
from torch.testing import assert_close

from regard.mechanisms.linear.linear_transformer import LinearTransformer, linear_attention
from tests.samples import heads_first


def equations(q, k, v, mask, causal, eps=1e-6):
    """Eq. 4 and 8 of the paper, pair by pair; the last query stands at the last key."""
    phi = lambda x: torch.where(x > 0, x + 1, x.exp())  # noqa: E731
    n, m = q.shape[-2], k.shape[-2]
    out = q.new_zeros(*q.shape[:-1], v.shape[-1])
    for b, h, i in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        seen = mask[b].nonzero().flatten()
        seen = seen[seen <= i + m - n] if causal else seen
        weights = phi(k[b, h, seen]) @ phi(q[b, h, i])
        out[b, h, i] = weights @ v[b, h, seen] / (weights.sum() + eps)
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n", "m", "keep"), [(7, 7, 1.0), (7, 7, 0.5), (1, 5, 0.6), (5, 9, 0.6), (130, 130, 0.9)])
def test_matches_the_equations(n, m, keep, causal):
    q, k, v, mask = heads_first(n, m, keep=keep, value_dim=6)
    mask[0, 0] = False
    out = LinearTransformer(causal)(q, k, v, key_mask=mask)
    assert_close(out, equations(q, k, v, mask, causal), rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_a_row_without_keys_is_zero(causal):
    q, k, v, _ = heads_first(4)
    mask = torch.tensor([[False] * 4, [False, False, True, True]])
    out = LinearTransformer(causal)(q, k, v, key_mask=mask)
    assert (out[0] == 0).all()
    assert (out[1, :, :2] == 0).all() == causal


@pytest.mark.parametrize("causal", [False, True])
def test_padding_may_hold_anything(causal):
    q, k, v, mask = heads_first(7, keep=0.6)
    hidden = ~mask[:, None, :, None]
    nan = float("nan")
    out = linear_attention(q, k.masked_fill(hidden, nan), v.masked_fill(hidden, nan), causal=causal, key_mask=mask)[0]
    assert_close(out, linear_attention(q, k, v, causal=causal, key_mask=mask)[0], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_half_inputs_are_summed_in_float32(causal, dtype):
    q, k, v, _ = heads_first(200, dtype=dtype)
    q, k = q - 6, k - 6  # elu + 1 in half precision would be off by a fifth
    out = LinearTransformer(causal)(q, k, v)
    exact = LinearTransformer(causal)(q.double(), k.double(), v.double())
    assert out.dtype == dtype
    assert_close(out.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_autocast_leaves_the_sums_alone(causal):
    q, k, v, _ = heads_first(100, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = LinearTransformer(causal)(q, k, v)
    assert_close(inside, LinearTransformer(causal)(q, k, v), rtol=0, atol=0)


def test_memory_goes_on_where_it_stopped():
    q, k, v, _ = heads_first(9, value_dim=6)
    core = LinearTransformer(causal=True)
    memory = core.memory(2, 3, 4, 6, dtype=torch.float64)
    assert {t.shape for t in memory} == {torch.Size((2, 3, 4, 6)), torch.Size((2, 3, 4))}
    parts = []
    for piece in range(0, 9, 3):
        rows = slice(piece, piece + 3)
        out, memory = core.stream(q[:, :, rows], k[:, :, rows], v[:, :, rows], memory)
        parts.append(out)
    assert_close(torch.cat(parts, 2), core(q, k, v))


def test_causal_needs_a_key_for_every_query():
    q, k, v, _ = heads_first(5, 4)
    with pytest.raises(ValueError, match="5 queries needs at least as many keys, got 4"):
        LinearTransformer(causal=True)(q, k, v)


def all_pairs(q, k, v, mask, causal, eps=1e-6):
    """The same as one matrix, for autograd; elu itself, whose slope differs nowhere."""
    phi_q, phi_k = F.elu(q) + 1, F.elu(k) + 1
    weights = phi_q @ phi_k.mT * mask[:, None, None]
    weights = weights.tril(k.shape[-2] - q.shape[-2]) if causal else weights
    return weights @ v / (weights.sum(-1, keepdim=True) + eps)


@pytest.mark.parametrize(("n", "m", "causal"), [(131, 131, True), (70, 405, True), (350, 340, False)])
def test_gradients_match_those_of_all_pairs_over_many_chunks(n, m, causal):
    """The backward pass is written by hand, chunk by chunk."""
    q, k, v, mask = heads_first(n, m, keep=0.8, value_dim=6)
    mask[0, :40] = False  # the first queries see no key at all
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    out, expected = linear_attention(q, k, v, causal=causal, key_mask=mask)[0], all_pairs(q, k, v, mask, causal)
    assert_close(out, expected, rtol=0, atol=1e-12)
    cotangent = torch.randn_like(out)
    found, wanted = (torch.autograd.grad(y, inputs, cotangent) for y in (out, expected))
    assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    assert (found[1] * ~mask[:, None, :, None] == 0).all()


@pytest.mark.parametrize("causal", [False, True])
def test_earlier_sums_may_precede_keys_that_all_queries_see(causal):
    q, k, v, _ = heads_first(150, 200, value_dim=6)
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    before = linear_attention(q, k[:, :, :30], v[:, :, :30])[1]
    found = linear_attention(q, k[:, :, 30:], v[:, :, 30:], causal=causal, before=before)
    whole = linear_attention(q, k, v, causal=causal)
    assert_close(found, whole)
    weights = [torch.randn_like(tensor) for tensor in (whole[0], *whole[1])]
    slopes = (
        torch.autograd.grad(sum((t * w).sum() for t, w in zip((out, *sums), weights, strict=True)), inputs)
        for out, sums in (found, whole)
    )
    assert_close(*slopes)


def test_no_query_sees_a_later_key():
    q, k, v, _ = heads_first(150, dtype=torch.float32)
    before = linear_attention(q, k, v, causal=True)[0]
    for place in (149, 70, 20):
        k[:, :, place] *= 100
        v[:, :, place] *= 100
        after = linear_attention(q, k, v, causal=True)[0]
        assert_close(after[:, :, :place], before[:, :, :place], rtol=0, atol=0)
        assert (after[:, :, place] != before[:, :, place]).any()


def test_small_features_keep_their_digits():
    """elu(x) + 1 in float32 has none left at x = -17."""
    q, k, v, _ = heads_first(5, dtype=torch.float32)
    k = k - 17
    out = linear_attention(q, k, v, eps=0.0)[0]
    exact = equations(*(t.double() for t in (q, k, v)), torch.ones(2, 5, dtype=torch.bool), False, eps=0.0)
    assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch's own forward-mode rules use it
def test_transforms_and_gradients_of_gradients(causal):
    """The operator alone would give zero tangents, without a word."""
    q, k, v, mask = heads_first(5)
    mask[:] = True
    core = LinearTransformer(causal)
    tangents = tuple(torch.randn_like(t) for t in (q, k, v))

    def pairs(q, k, v):
        return all_pairs(q, k, v, mask, causal)

    assert_close(jvp(core, (q, k, v), tangents), jvp(pairs, (q, k, v), tangents))
    several = torch.stack((v, 2 * v))
    assert_close(vmap(core, (None, None, 0))(q, k, several), torch.stack([core(q, k, each) for each in several]))
    assert torch.autograd.gradgradcheck(core, [t.requires_grad_() for t in (q, k, v)], fast_mode=True)


def test_compiled_it_takes_gradients_at_every_length():
    core = LinearTransformer(causal=True)
    compiled = torch.compile(core, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (130, 70, 200):
        inputs = [t.requires_grad_() for t in heads_first(n, dtype=torch.float32)[:3]]
        found, expected = (torch.autograd.grad(run(*inputs).square().sum(), inputs) for run in (compiled, core))
        assert_close(found, expected)


def test_a_compiled_step_is_compiled_once():
    core = LinearTransformer(causal=True)
    memory = core.memory(2, 3, 4, 4)
    torch._dynamo.reset()
    step = torch.compile(core.stream, fullgraph=True, backend="aot_eager")
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            _, memory = step(*heads_first(1, dtype=torch.float32)[:3], memory)


def test_nothing_but_inputs_and_outputs_is_kept():
    n, width = 2048, 32
    q, k, v = (torch.randn(1, 1, n, width, requires_grad=True) for _ in range(3))
    sizes = []

    def keep(tensor):
        sizes.append(tensor.untyped_storage().nbytes() // tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        linear_attention(q, k, v, causal=True)
    assert max(sizes) == n * width
    assert math.fsum(sizes) < 4.5 * n * width
