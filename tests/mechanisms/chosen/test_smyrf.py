import itertools

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.chosen.smyrf import Smyrf
from regard.ops.balanced_clusters import asymmetric_hashes
from regard.registry import UnsupportedError
from tests.samples import heads_first


def lifted(q, k):
    """q~ and k~ of one head, real tokens only."""
    most = q.norm(dim=-1).max() ** 2 + k.norm(dim=-1).max() ** 2
    rest = [(most - x.square().sum(-1)).clamp(min=0).sqrt()[:, None] for x in (q, k)]
    return torch.cat((q, 0 * rest[0], rest[0]), -1), torch.cat((k, rest[1], 0 * rest[1]), -1)


def parts(order, count):
    """A list in ``count`` pieces of ceil(n / count)."""
    width = max(1, -(-len(order) // count))
    return [order[c * width : (c + 1) * width] for c in range(count)]


def equations(q, k, v, directions, query_mask, key_mask, q_size, k_size, scale):
    out = q.new_zeros(*q.shape[:-1], v.shape[-1])
    for b, h in itertools.product(range(len(q)), range(q.shape[1])):
        asks, asked = query_mask[b].nonzero().flatten(), key_mask[b].nonzero().flatten()
        count = max(1, -(-len(asks) // q_size), -(-len(asked) // k_size))
        met = {i: [] for i in asks.tolist()}
        for direction in directions.T:
            hashes = (x @ direction for x in lifted(q[b, h, asks], k[b, h, asked]))
            lists = [parts(side[x.argsort()], count) for side, x in zip((asks, asked), hashes, strict=True)]
            for here, there in zip(*lists, strict=True):
                for i in here.tolist():
                    met[i].append(there)
        for i, keys in met.items():
            seen = torch.cat(keys)  # a key met twice counts twice
            if len(seen):
                out[b, h, i] = (scale * k[b, h, seen] @ q[b, h, i]).softmax(-1) @ v[b, h, seen]
    return out


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize(("q_size", "k_size"), [(4, 4), (3, 5), (50, 2), (1, 1)])
@pytest.mark.parametrize(("n", "m", "keep"), [(16, 16, 1.0), (13, 13, 0.7), (9, 21, 0.6), (14, 3, 0.5)])
def test_matches_the_equations(n, m, keep, q_size, k_size, rounds):
    core = Smyrf(4, rounds, k_size, q_size, scale=0.7, dtype=torch.float64).eval()
    q, k, v, key_mask = heads_first(n, m, keep=keep, value_dim=3)
    query_mask = torch.rand(2, n) < keep
    out = core(q, k, v, key_mask=key_mask, query_mask=query_mask)
    expected = equations(q, k, v, core.directions, query_mask, key_mask, q_size, k_size, 0.7)
    assert_close(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rounds", [1, 3])
def test_one_cluster_is_softmax_attention(rounds):
    core = Smyrf(4, rounds, cluster_size=40, dtype=torch.float64).eval()
    q, k, v, mask = heads_first(9, 30, keep=0.6)
    assert_close(core(q, k, v, key_mask=mask), regard.attend(q, k, v, key_mask=mask), rtol=0, atol=1e-12)


def test_the_gradient():
    core = Smyrf(4, 2, cluster_size=3, dtype=torch.float64).eval()
    q, k, v, mask = heads_first(7, 8, keep=0.8)

    def run(q, k, v):
        return core(q, k, v, key_mask=mask)

    assert torch.autograd.gradcheck(run, [t.requires_grad_() for t in (q, k, v)], fast_mode=True)


def test_lifted_vectors_have_one_length_and_a_distance_that_falls_with_the_product():
    q, k, _, _ = heads_first(6, 9, heads=1, batch=1)
    hashes = asymmetric_hashes(q, k, torch.eye(6, dtype=torch.float64))  # the lifted vectors themselves
    up, down = (h[0, 0].T for h in hashes)
    lengths = torch.cat((up, down)).norm(dim=-1)
    assert_close(lengths, lengths[:1].expand(15), rtol=0, atol=1e-12)
    distance = torch.cdist(up, down).square()
    assert_close(distance, 2 * lengths[0] ** 2 - 2 * q[0, 0] @ k[0, 0].T, rtol=0, atol=1e-12)


def test_the_longest_query_alone_has_no_rest():
    """Rounding must not take the root of a number below 0."""
    q, k = 1e3 * torch.randn(1, 1, 50, 7), torch.zeros(1, 1, 50, 7)
    assert all(h.isfinite().all() for h in asymmetric_hashes(q, k, torch.randn(9, 2)))


def test_more_rounds_are_nearer_to_softmax():
    q, k, v, _ = heads_first(128, dim=8)
    q, k = 2 * q, 2 * k
    exact, gaps = regard.attend(q, k, v), []
    for rounds in (1, 4, 16):
        core = Smyrf(8, rounds, cluster_size=16, dtype=torch.float64).eval()
        gaps.append((core(q, k, v) - exact).norm())
    assert gaps[0] > gaps[1] > gaps[2]


def test_dropout_keeps_the_mean():
    core = Smyrf(4, 1, cluster_size=128, attn_drop=0.25)
    q, k, v = torch.zeros(1, 1, 128, 4), torch.zeros(1, 1, 128, 4), torch.ones(1, 1, 128, 1)
    out = core(q, k, v, generator=seeded(0)).flatten()
    assert_close(out.mean(), torch.ones(()), rtol=0, atol=0.02)
    assert_close(out.std(), torch.tensor((0.25 / 0.75 / 128) ** 0.5), rtol=0.3, atol=0)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_directions_are_drawn_in_training_and_by_a_generator_and_saved_otherwise():
    core = Smyrf(8, 2, cluster_size=4)
    q, k, v, _ = heads_first(40, dim=8, dtype=torch.float32)
    saved = core.directions.clone()
    core.eval()
    assert_close(core(q, k, v), core(q, k, v), rtol=0, atol=0)
    first, again, other = (core(q, k, v, generator=seeded(s)) for s in (1, 1, 2))
    assert_close(first, again, rtol=0, atol=0)
    assert not torch.allclose(first, other)
    core.train()
    assert not torch.allclose(core(q, k, v), core(q, k, v))
    assert_close(core.directions, saved, rtol=0, atol=0)


def test_memory_is_linear_in_the_length():
    """N x N would be 16 million numbers."""
    n, width, sizes = 4096, 16, []
    q, k, v = torch.randn(3, 1, 1, n, width, requires_grad=True).unbind(0)

    def keep(tensor):
        sizes.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        Smyrf(width, 2, cluster_size=32)(q, k, v)
    assert 0 < max(sizes) <= 2 * n * max(width, 32) * 4


def test_refusals():
    with pytest.raises(UnsupportedError, match="smyrf cannot be causal: a cluster mixes tokens of all times"):
        regard.create("smyrf", dim=12, num_heads=3, causal=True)
    for wrong in ("num_hashes", "cluster_size", "query_cluster_size"):
        with pytest.raises(ValueError, match=f"{wrong}=0"):
            Smyrf(4, **{wrong: 0})
