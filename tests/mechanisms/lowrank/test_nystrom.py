import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import regard
from regard.mechanisms.lowrank.nystrom import Nystrom, column_norm, nystrom_attention, pseudo_inverse_times
from regard.ops.landmarks import segment_means
from regard.registry import UnsupportedError
from tests.samples import heads_first


def pseudo_inverse(a, iterations=6, norm=None):
    """The paper's algorithm 1 on one matrix."""
    one = torch.eye(len(a), dtype=a.dtype)
    z = a.T / (a.abs().sum(0).max() * a.abs().sum(1).max() if norm is None else norm)
    for _ in range(iterations):
        z = z @ (13 * one - a @ z @ (15 * one - a @ z @ (7 * one - a @ z))) / 4
    return z


def equations(q, k, v, landmarks, key_mask, query_mask, iterations=6, weight=None):
    """Eq. 13 to 15, of the real tokens alone and of the segments that hold some."""
    out = q.new_zeros(*q.shape[:-1], v.shape[-1])
    q_marks, q_count = segment_means(q, landmarks, query_mask)
    k_marks, k_count = segment_means(k, landmarks, key_mask)
    for b, h in torch.cartesian_prod(*map(torch.arange, q.shape[:2])).tolist():
        seen = key_mask[b].nonzero().flatten()
        keys, values = k[b, h, seen], v[b, h, seen]
        q_near, k_near = q_marks[b, h, q_count[b] > 0], k_marks[b, h, k_count[b] > 0]
        f1, a, f3 = (torch.softmax(x @ y.T / q.shape[-1] ** 0.5, -1) for x, y in
                     ((q[b, h], k_near), (q_near, k_near), (q_near, keys)))  # fmt: skip
        empty = (0, 0, 0, len(k_near) - len(q_near))  # fewer queries than landmarks: rows of zeros make A square
        if len(seen) <= landmarks:
            out[b, h] = torch.softmax(q[b, h] @ keys.T / q.shape[-1] ** 0.5, -1) @ values
        else:
            out[b, h] = f1 @ pseudo_inverse(F.pad(a, empty), iterations) @ F.pad(f3, empty) @ values
        for place, token in enumerate(seen if weight is not None else ()):
            for t, factor in enumerate(weight[h]):
                source = place + t - len(weight[h]) // 2
                if 0 <= source < len(seen):
                    out[b, h, token] += factor * values[source]
    return out


SIZES = [(24, 24, 1.0), (23, 23, 1.0), (30, 41, 0.7), (41, 30, 0.7), (3, 30, 0.9), (30, 4, 1.0), (9, 9, 0.6)]


@pytest.mark.parametrize(("n", "m", "keep"), SIZES)
@pytest.mark.parametrize("iterations", [1, 6])
def test_matches_the_equations(n, m, keep, iterations):
    q, k, v, key_mask = heads_first(n, m, keep=keep, value_dim=6)
    query_mask = torch.rand(2, n, generator=torch.Generator().manual_seed(1)) < keep
    query_mask[:, 0] = True
    options = {"key_mask": key_mask, "query_mask": query_mask}
    out = Nystrom(5, iterations)(q, k, v, **options)
    assert_close(out, equations(q, k, v, 5, **options, iterations=iterations), rtol=0, atol=1e-11)
    if keep == 1:
        assert_close(Nystrom(5, iterations)(q, k, v), out, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("n", "keep"), [(24, 1.0), (41, 0.7)])
def test_the_convolution_sees_real_tokens_only(n, keep):
    q, k, v, mask = heads_first(n, keep=keep)
    core = Nystrom(5, conv_kernel=3, num_heads=3).double()
    assert core.conv.shape == (3, 1, 3, 1)
    expected = equations(q, k, v, 5, mask, mask, weight=core.conv.flatten(1))
    assert_close(core(q, k, v, key_mask=mask, query_mask=mask), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("iterations", [1, 3, 6])
def test_the_pseudo_inverse_is_the_papers(iterations):
    a = (3 * torch.randn(2, 3, 8, 8, dtype=torch.float64)).softmax(-1)
    a[1, :, 5] = 0
    y = torch.eye(8, dtype=a.dtype).expand(2, 3, 8, 8)
    for norm in (None, torch.tensor(2.5, dtype=a.dtype).expand(1, 1, 1, 1)):
        found = pseudo_inverse_times(a, y, iterations, norm)
        for b, h in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
            expected = pseudo_inverse(a[b, h], iterations, norm if norm is None else norm.squeeze())
            assert_close(found[b, h], expected, rtol=1e-11, atol=1e-11)
    assert not found[1, :, :, 5].any()


def test_the_pseudo_inverse_converges():
    a = (4 * torch.eye(16, dtype=torch.float64) + torch.randn(16, 16, dtype=torch.float64)).softmax(-1)[None, None]
    found = pseudo_inverse_times(a, torch.eye(16, dtype=a.dtype)[None, None], iterations=8)
    assert_close(found[0, 0], torch.linalg.pinv(a[0, 0]), rtol=0, atol=1e-8)


def test_a_matrix_of_zeros_has_norm_1():
    assert column_norm(torch.zeros(1, 1, 3, 3)).item() == 1


@pytest.mark.parametrize(("n", "m"), [(7, 7), (90, 12)])
def test_as_many_landmarks_as_keys_are_softmax_attention(n, m):
    q, k, v, _ = heads_first(n, m)
    for landmarks in (m, m + 1, 64):
        out = nystrom_attention(q, k, v, num_landmarks=landmarks)
        assert_close(out, F.scaled_dot_product_attention(q, k, v), rtol=0, atol=1e-12)
    assert (nystrom_attention(q, k, v, num_landmarks=m - 1) - out).abs().max() > 1e-4


def test_every_sequence_has_a_start_of_its_own():
    """One peaky batch mate would change all results from a start over the whole batch, as the authors have it."""
    q, k, v, _ = heads_first(40)
    q[1] *= 20
    k[1] *= 20
    whole = nystrom_attention(q, k, v, num_landmarks=5, iterations=2)
    assert_close(whole[:1], nystrom_attention(q[:1], k[:1], v[:1], num_landmarks=5, iterations=2), rtol=0, atol=1e-13)


@pytest.mark.parametrize("real", [0, 1, 3, 5, 6, 20])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_gradients_whatever_is_real(real, side):
    q, k, v, mask = heads_first(20)
    mask[1] = torch.arange(20) >= 20 - real if side == "left" else torch.arange(20) < real
    mask[0] = True
    core = Nystrom(5, conv_kernel=3, num_heads=3).double()
    leaves = [t.requires_grad_() for t in (q, k, v)]
    out = core(*leaves, key_mask=mask, query_mask=mask)[1]
    alone = core(*(t[1:, :, mask[1]] for t in leaves))[0] if real else out[:, :0]
    assert_close(out[:, mask[1]], alone, rtol=0, atol=1e-12)
    slopes = torch.autograd.grad(out.square().sum(), leaves)
    for slope in slopes:
        assert slope.isfinite().all()
        assert not slope[0].any()
    for slope in slopes[1:]:
        assert not slope[1][:, ~mask[1]].any()


def test_no_real_query_leaves_nothing_to_ask_with():
    q, k, v, _ = heads_first(20)
    none = torch.zeros(2, 20, dtype=torch.bool)
    assert not nystrom_attention(q, k, v, num_landmarks=5, query_mask=none).any()
    assert not nystrom_attention(q, k, v, num_landmarks=5, key_mask=none).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats_are_computed_in_float32(dtype):
    q, k, v, _ = heads_first(60, dtype=dtype)
    expected = nystrom_attention(q.float(), k.float(), v.float(), num_landmarks=8).to(dtype)
    assert_close(nystrom_attention(q, k, v, num_landmarks=8), expected, rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(nystrom_attention(q, k, v, num_landmarks=8), expected, rtol=0, atol=0)


def test_memory_is_linear_in_the_length():
    """No tensor of the backward graph is larger than the inputs: F1 and F3 would be four times that."""
    n, width = 2048, 16
    q, k, v = (torch.randn(1, 2, n, width, requires_grad=True) for _ in range(3))
    sizes = []

    def keep(tensor):
        sizes.append(tensor.untyped_storage().nbytes() // tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        nystrom_attention(q, k, v, num_landmarks=64)
    assert max(sizes) == q.numel()


def test_refusals():
    with pytest.raises(UnsupportedError, match="nystrom cannot be causal: landmarks average over the future"):
        regard.create("nystrom", dim=12, num_heads=3, causal=True)
    with pytest.raises(UnsupportedError, match="a product of three matrices"):
        regard.create("nystrom", dim=12, num_heads=3, attn_drop=0.1)
    with pytest.raises(ValueError, match="conv_kernel=4: only an odd filter"):
        Nystrom(conv_kernel=4, num_heads=3)
    with pytest.raises(ValueError, match="pass num_heads"):
        Nystrom(conv_kernel=3)
    with pytest.raises(ValueError, match=r"num_landmarks=0 and iterations=6 must be positive"):
        Nystrom(0)
    q, k, v, _ = heads_first(5, 9)
    with pytest.raises(ValueError, match=r"5 queries, 9 keys.*needs one for each"):
        nystrom_attention(q, k, v, conv=torch.ones(3, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"3 heads, but .* num_heads=2"):
        Nystrom(conv_kernel=3, num_heads=2)(q, q, q)
    x = torch.randn(1, 9, 12)
    with pytest.raises(UnsupportedError, match="takes no context"):
        regard.create("nystrom", dim=12, num_heads=3, conv_kernel=3)(x, x)
