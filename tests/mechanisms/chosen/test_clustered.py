import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.chosen import clustered
from regard.mechanisms.chosen.clustered import Clustered, clustered_attention
from regard.ops import hamming
from regard.ops.clusters import cluster_chunks
from regard.ops.hamming import hamming_kmeans, sign_codes, spread_evenly
from regard.registry import UnsupportedError
from tests.samples import heads_first


def equations(q, k, v, groups, clusters, mask, topk, scale):
    out = q.new_zeros(*q.shape[:-1], v.shape[-1])
    for b, h, c in torch.cartesian_prod(*map(torch.arange, (*q.shape[:2], clusters))).tolist():
        members, seen = (groups[b, h] == c).nonzero().flatten(), mask[b].nonzero().flatten()
        if not len(members):
            continue
        scores = scale * (k[b, h, seen] @ q[b, h, members].mean(0))
        weights = scores.softmax(-1)
        top = scores.topk(min(topk or 0, len(seen))).indices
        for i in members.tolist():
            w = weights.clone()
            if topk:
                w[top] = weights[top].sum() * (scale * k[b, h, seen[top]] @ q[b, h, i]).softmax(-1)
            out[b, h, i] = w @ v[b, h, seen]
    return out


@pytest.mark.parametrize("chunk", [1, 2, 16])
@pytest.mark.parametrize("scale", [None, 0.9])
@pytest.mark.parametrize("topk", [None, 1, 4, 50])
@pytest.mark.parametrize(("n", "m", "keep"), [(13, 13, 1.0), (9, 14, 0.6), (1, 7, 0.4)])
def test_matches_the_equations(topk, scale, n, m, keep, chunk, monkeypatch):
    monkeypatch.setattr(clustered, "CHUNK", chunk)
    q, k, v, mask = heads_first(n, m, keep=keep, value_dim=3)
    groups = torch.randint(5, (2, 3, n))
    groups[groups == 3] = 2  # an empty one; 4 is none
    out = clustered_attention(q, k, v, groups, 4, topk=topk, scale=scale, key_mask=mask)
    assert_close(out, equations(q, k, v, groups, 4, mask, topk, scale or 0.5), rtol=0, atol=1e-12)


@pytest.mark.parametrize("topk", [None, 3])
def test_the_whole_gradient(topk):
    q, k, v, mask = heads_first(7, 8, keep=0.8)
    groups = torch.randint(3, (2, 3, 7))
    inputs = [t.requires_grad_() for t in (q, k, v)]

    def run(*qkv):
        return clustered_attention(*qkv, groups, 3, topk=topk, key_mask=mask)

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("topk", [None, 3])
def test_a_cluster_for_each_query_is_softmax_attention(topk):
    core = Clustered(head_dim=4, clusters=20, topk=topk).double().eval()
    q, k, v, _ = heads_first(9, 12)
    assert len(core.groups(q, core.planes, None).unique()) == 9
    assert_close(core(q, k, v), regard.attend(q, k, v), rtol=0, atol=1e-12)


def test_dropout_keeps_the_mean():
    """All scores equal and values 1: each row sums what is left of its weights, shared or its own."""
    q, k, v = torch.zeros(1, 1, 64, 4), torch.zeros(1, 1, 128, 4), torch.ones(1, 1, 128, 1)
    groups = torch.arange(64)[None, None]
    for topk in (None, 32, 128):
        out = clustered_attention(q, k, v, groups, 64, topk=topk, attn_drop=0.25, generator=seeded(0)).flatten()
        assert_close(out.mean(), torch.ones(()), rtol=0, atol=0.02)
        assert_close(out.std(), torch.tensor((0.25 / 0.75 / 128) ** 0.5), rtol=0.3, atol=0)
        again = clustered_attention(q, k, v, groups, 64, topk=topk, attn_drop=0.25, generator=seeded(0)).flatten()
        assert_close(out, again, rtol=0, atol=0)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_planes_are_drawn_in_training_and_by_a_generator_and_saved_otherwise():
    core = Clustered(head_dim=8, clusters=3, topk=None)
    q, k, v, _ = heads_first(40, dim=8, dtype=torch.float32)
    saved = core.planes.clone()
    core.eval()
    assert_close(core(q, k, v), core(q, k, v), rtol=0, atol=0)
    first, again, other = (core(q, k, v, generator=seeded(s)) for s in (1, 1, 2))
    assert_close(first, again, rtol=0, atol=0)
    assert not torch.allclose(first, other)
    core.train()
    assert not torch.allclose(core(q, k, v), core(q, k, v))
    assert_close(core.planes, saved, rtol=0, atol=0)


def test_without_thresholds_only_the_angle_counts():
    core = Clustered(head_dim=8, clusters=4, hash_bias=False).eval()
    q = torch.randn(1, 2, 30, 8)
    assert not core.planes[:, -1].any()
    assert (core.groups(q, core.planes, None) == core.groups(50 * q, core.planes, None)).all()
    core.train()
    assert not core._draw(None)[:, -1].any()


# k-means


def lloyd(codes, centroids, iterations):
    """One head."""
    for step in range(iterations):
        distance = (codes[:, None] != centroids).sum(-1)
        groups = torch.tensor([row.tolist().index(min(row.tolist())) for row in distance])
        if step < iterations - 1:
            for c in groups.unique().tolist():
                ones = (codes[groups == c] > 0).sum(0)
                centroids[c] = torch.where(2 * ones > (groups == c).sum(), 1.0, -1.0)
    return groups


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_kmeans_is_lloyds_in_hamming_distance(iterations, monkeypatch):
    monkeypatch.setattr(hamming, "TOKENS_AT_ONCE", 8)
    codes = torch.randint(2, (2, 3, 30, 5)).float() * 2 - 1  # few bits: many ties
    real = torch.rand(2, 30) < 0.8
    start = codes[:, :, torch.randint(30, (6,))]
    groups = hamming_kmeans(codes, start, iterations, real)
    assert (groups[~real[:, None].expand_as(groups)] == 6).all()
    for b in range(2):
        for h in range(3):
            expected = lloyd(codes[b, h, real[b]], start[b, h].clone(), iterations)
            assert (groups[b, h, real[b]] == expected).all()


def test_codes_are_strict_signs():
    planes = torch.tensor([[1.0, 0.0, 2.0], [0.0, -1.0, 0.0]])
    assert sign_codes(torch.tensor([[2.0, 0.0], [2.5, -1.0]]), planes).tolist() == [[-1, -1], [1, 1]]


def test_the_first_queries_stand_at_equal_distances_among_real_ones():
    real = torch.tensor([[False, True] * 6, [True] * 12, [False] * 12])
    assert spread_evenly(real, 3)[:2].tolist() == [[3, 7, 11], [2, 6, 10]]
    assert spread_evenly(real, 12)[1].tolist() == list(range(12))
    assert set(spread_evenly(real, 30)[0].tolist()) == set(range(1, 12, 2))


@pytest.mark.parametrize("length", [1, 3, 8])
@pytest.mark.parametrize("n", [5, 40])
def test_chunks_hold_one_cluster_only(n, length):
    groups = torch.randint(5, (2, 3, n))
    groups[0, 0] = torch.arange(n) % 5
    chunks = cluster_chunks(groups, 4, length)
    slots = chunks.token.flatten(2)
    assert (slots.gather(-1, chunks.place) == torch.arange(n)).all()
    owner = chunks.cluster.gather(-1, chunks.place // length)
    assert (owner == groups)[groups < 4].all()
    for head in range(3):  # those without a cluster share a chunk with nobody
        chunk = chunks.place[1, head] // length
        assert not set(chunk[groups[1, head] == 4].tolist()) & set(chunk[groups[1, head] < 4].tolist())


def test_memory_is_linear_in_the_length():
    """N x M would be 16 million numbers, the gathered keys of every query 8 million."""
    n, width, sizes = 4096, 64, []
    q, k, v = torch.randn(3, 1, 1, n, width, requires_grad=True).unbind(0)
    groups = torch.randint(16, (1, 1, n))

    def keep(tensor):
        sizes.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        clustered_attention(q, k, v, groups, 16, topk=32)
    assert 0 < max(sizes) < 8 * n * width * 4


def test_refusals():
    with pytest.raises(UnsupportedError, match="clustered cannot be causal: queries of all positions share"):
        regard.create("clustered", dim=12, num_heads=3, causal=True)
    for wrong in ({"clusters": 0}, {"topk": 0}, {"bits": 0}, {"iterations": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}=0"):
            Clustered(4, **wrong)
    with pytest.raises(ValueError, match=r"scale=-1\.0"):
        Clustered(4, scale=-1.0)
