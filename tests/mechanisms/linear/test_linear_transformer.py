import math

import pytest
import torch
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


def test_memory_is_linear_in_the_length():
    """The largest tensor of the backward graph; N x N would be 4 million numbers, a state a position 2 million."""
    n, width = 2048, 32
    q, k, v = (torch.randn(1, 1, n, width, requires_grad=True) for _ in range(3))
    sizes = []

    def keep(tensor):
        sizes.append(tensor.untyped_storage().nbytes() // tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        linear_attention(q, k, v, causal=True)
    assert 0 < max(sizes) <= 2 * n * 64
    assert math.fsum(sizes) < 20 * n * 64
