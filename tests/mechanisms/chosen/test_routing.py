import copy
import io
import itertools

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import regard
from regard.mechanisms.chosen.routing import Routing, normalised
from regard.ops.cluster_window import ClusterWindow, cluster_window_attention, continue_clusters
from regard.ops.online_kmeans import OnlineKMeans, nearest
from regard.ops.routed import meet, top_tokens
from regard.registry import UnsupportedError
from tests.samples import heads_first


def equations(q, k, v, means, window, query_mask, key_mask, causal):
    """Of normalised q and k, one centroid at a time."""
    out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    for b, h in itertools.product(range(len(q)), range(q.shape[1])):
        asks, asked = query_mask[b].nonzero().flatten(), key_mask[b].nonzero().flatten()
        found = {i: [] for i in range(q.shape[2])}
        for mean in means[h]:
            i = asks[(q[b, h, asks] @ mean).topk(min(window, len(asks))).indices].tolist()
            j = asked[(k[b, h, asked] @ mean).topk(min(window, len(asked))).indices]
            for token in i:
                seen = j[j <= token] if causal else j
                weights = (k[b, h, seen] @ q[b, h, token] / q.shape[-1] ** 0.5).softmax(-1)
                found[token].append(weights @ v[b, h, seen])
        for token, rows in found.items():
            if rows:
                out[b, h, token] = torch.stack(rows).mean(0)
    return out


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [1, 4, 30])
@pytest.mark.parametrize(("n", "m", "keep"), [(12, 12, 1.0), (12, 12, 0.6), (9, 15, 0.5)])
def test_matches_the_equations(n, m, keep, window, causal):
    q, k, v, key_mask = heads_first(n, m, keep=keep, value_dim=3)
    q, k, query_mask = normalised(q), normalised(k), torch.rand(2, n) < keep
    kmeans = OnlineKMeans(3, 4, 4, dtype=torch.float64)
    asking, asked = (top_tokens(kmeans.affinity(x), window, mask) for x, mask in ((q, query_mask), (k, key_mask)))
    out = meet(q, k, v, asking, asked, causal=causal, key_mask=key_mask)
    expected = equations(q, k, v, kmeans.means, window, query_mask, key_mask, causal)
    assert_close(
        out[query_mask[:, None].expand(2, 3, n)], expected[query_mask[:, None].expand(2, 3, n)], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("causal", [True, False])
def test_the_layer_is_local_heads_beside_routing_heads(causal):
    options = {"local_heads": 1, "clusters": 3, "window": 5, "local_window": 2, "causal": causal}
    layer = Routing(12, 3, **options, dtype=torch.float64).eval()
    x = torch.randn(2, 11, 12, dtype=torch.float64)
    q, v = (F.linear(x, p.weight).view(2, 11, 3, 4).transpose(1, 2) for p in (layer.q_proj, layer.v_proj))
    k = F.linear(x, layer.k_proj.weight).view(2, 11, -1, 4).transpose(1, 2)
    assert k.shape[1] == (1 if causal else 3)
    distance = torch.arange(11)[:, None] - torch.arange(11)
    seen = (distance.abs() <= 2) & ((distance >= 0) | (not causal))
    scores = (q[:, :1] @ k[:, :1].mT / 2).masked_fill(~seen, -torch.inf)
    here = normalised(q[:, 1:])
    there = here if causal else normalised(k[:, 1:])
    everyone = torch.ones(2, 11, dtype=torch.bool)
    far = equations(here, there, v[:, 1:], layer.kmeans.means, 5, everyone, everyone, causal)
    out = torch.cat((scores.softmax(-1) @ v[:, :1], far), 1).transpose(1, 2).flatten(2)
    assert_close(layer(x), out @ layer.out_proj.weight.T, rtol=0, atol=1e-12)


# strictly causal


@pytest.mark.parametrize("window", [1, 3, 8, 50])
@pytest.mark.parametrize("keep", [1.0, 0.6])
def test_the_last_tokens_of_ones_own_cluster(window, keep):
    q, k, v, mask = heads_first(33, keep=keep, value_dim=3)
    groups = torch.randint(4, (2, 3, 33)).masked_fill(~mask[:, None], 4)
    out = cluster_window_attention(q, k, v, groups, 4, window, scale=0.7)
    for b, h, i in itertools.product(range(2), range(3), range(33)):
        seen = (groups[b, h, : i + 1] == groups[b, h, i]).nonzero().flatten()[-window:]
        expected = (0.7 * k[b, h, seen] @ q[b, h, i]).softmax(-1) @ v[b, h, seen]
        assert_close(out[b, h, i], expected * mask[b, i], rtol=0, atol=1e-12)


@pytest.mark.parametrize("pieces", [[33], [1] * 33, [5, 1, 1, 20, 1, 5]], ids=str)
def test_clusters_in_pieces(pieces):
    q, k, v, _ = heads_first(33, value_dim=3)
    groups = torch.randint(4, (2, 3, 33))
    memory = ClusterWindow.start(2, 3, 4, 6, 4, 3, dtype=torch.float64)
    whole, outs = cluster_window_attention(q, k, v, groups, 4, 6), []
    for part in zip(*(t.split(pieces, 2) for t in (q, k, v, groups)), strict=True):
        out, memory = continue_clusters(*part, memory)
        outs.append(out)
    assert_close(torch.cat(outs, 2), whole, rtol=0, atol=1e-12)
    last = [(groups[0, 0] == c).nonzero().flatten()[-6:] for c in range(4)]
    assert memory.length[0, 0].tolist() == [len(place) for place in last]
    for c, place in enumerate(last):
        assert_close(memory.key[0, 0, c, 6 - len(place) :], k[0, 0, place], rtol=0, atol=0)


def test_causal_is_a_selection_and_strict_is_not():
    """A later token takes the place of an earlier one; with strict=True it does not."""
    x = torch.randn(1, 40, 8)
    changed = [torch.cat((x[:, :20], torch.randn(1, 20, 8)), 1) for _ in range(5)]
    for strict in (False, True):
        layer = regard.create("routing", dim=8, num_heads=2, clusters=4, window=8, causal=True, strict=strict).eval()
        same = [torch.allclose(layer(x)[:, :20], layer(other)[:, :20], atol=1e-6) for other in changed]
        assert all(same) if strict else not any(same)
        assert layer.card.causal == ("strict" if strict else "selection")


# centroids


def hot_sums(x, groups, clusters):
    hot = F.one_hot(groups, clusters + 1)[..., :-1].to(x.dtype)
    return torch.einsum("bhnk,bhnd->hkd", hot, x), hot.sum((0, 2))


def test_centroids_follow_the_averages():
    kmeans = OnlineKMeans(2, 3, 4, decay=0.9, dtype=torch.float64)
    sums, counts = kmeans.means.clone(), torch.ones(2, 3, dtype=torch.float64)
    for step in range(4):
        x, mask = torch.randn(2, 2, 20, 4, dtype=torch.float64), torch.rand(2, 20) < 0.8
        groups = nearest(kmeans.affinity(x), mask)
        assert (groups[mask[:, None].expand_as(groups)] < 3).all()
        kmeans.move()
        kmeans.add(x, groups)
        new, number = hot_sums(x, groups, 3)
        total = counts.sum(-1, keepdim=True)
        expected = sums / ((counts + 1e-5) / (total + 3e-5) * total)[..., None]
        assert_close(kmeans.means, expected, rtol=0, atol=1e-12)
        sums, counts = 0.9 * sums + 0.1 * new, 0.9 * counts + 0.1 * number
        assert_close((kmeans.sums, kmeans.counts), (sums, counts), rtol=0, atol=1e-12)
        assert step or not torch.allclose(sums, kmeans.means)


def test_tokens_without_a_cluster_have_no_distance():
    kmeans, x = OnlineKMeans(1, 2, 4), torch.randn(1, 1, 3, 4)
    gaps = [(x[0, 0, i] - kmeans.means[0, i]).square().mean() for i in range(2)]
    assert_close(kmeans.distance(x, torch.tensor([[[0, 1, 2]]])), sum(gaps) / 2)
    assert kmeans.distance(x, torch.full((1, 1, 3), 2)) == 0


def test_centroids_find_the_clusters():
    """Tokens around three directions: after some steps each has a centroid of its own."""
    centres = normalised(torch.randn(1, 1, 3, 16))
    kmeans = OnlineKMeans(1, 3, 16, decay=0.5)
    kmeans.means.copy_(centres[0] + 1.2 * torch.randn(1, 3, 16))
    kmeans.sums.copy_(kmeans.means)
    for _ in range(30):
        x = normalised(centres[:, :, torch.randint(3, (60,))] + 0.1 * torch.randn(1, 1, 60, 16))
        kmeans.move()
        kmeans.add(x, nearest(kmeans.affinity(x), None))
    near = (kmeans.means[0] @ centres[0, 0].mT / 16).amax(0)
    assert (near > 0.95).all()


def test_the_loss_draws_real_tokens_to_their_centroid():
    layer = Routing(8, 2, local_heads=0, clusters=3, window=4, commitment=0.5, dtype=torch.float64).eval()
    x, mask = torch.randn(2, 9, 8, dtype=torch.float64), torch.arange(9) < torch.tensor([[9], [5]])
    _, aux = layer(x, key_mask=mask, return_aux=True)
    total = 0
    for linear in (layer.q_proj, layer.k_proj):
        t = normalised(F.linear(x, linear.weight.detach()).view(2, 9, 2, 4).transpose(1, 2))
        gaps = [
            (t[b, h, i] - max(layer.kmeans.means[h], key=lambda mean: (mean @ t[b, h, i]).item())).square().mean()
            for b, h, i in itertools.product(range(2), range(2), range(9))
            if mask[b, i]
        ]
        total = total + 0.5 * torch.stack(gaps).mean()
    assert aux["loss/commitment"].requires_grad
    assert_close(aux["loss/commitment"].detach(), total, rtol=0, atol=1e-12)
    shared = Routing(8, 2, local_heads=0, clusters=3, window=4, commitment=0.5, share_qk=True, dtype=torch.float64)
    shared.load_state_dict(layer.state_dict() | {"k_proj.weight": layer.q_proj.weight}, strict=False)
    layer.k_proj.weight.data.copy_(layer.q_proj.weight)
    assert_close(shared.eval()(x, return_aux=True)[1], layer(x, return_aux=True)[1])


def learning(**options):
    return Routing(8, 2, clusters=3, window=4, decay=0.9, **options)


def test_centroids_learn_in_training_only_and_survive_the_state_dict():
    layer, x = learning(), torch.randn(2, 12, 8)
    saved = copy.deepcopy(layer.kmeans.state_dict())
    layer.eval()(x)
    layer.train().weigh(x, torch.randn(2, 2, 12, 3))
    assert_close(dict(layer.kmeans.state_dict()), dict(saved), rtol=0, atol=0)
    for _ in range(3):
        layer(x)
    assert not torch.allclose(layer.kmeans.means, saved["means"])
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = learning()
    other.load_state_dict(torch.load(file))
    for module in (layer, other):
        module(x)
    assert_close(other.kmeans.means, layer.kmeans.means, rtol=0, atol=0)
    assert_close(other.eval()(x), layer.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("strict", [True, False])
def test_a_repeated_forward_pass_meets_the_same_and_teaches_nothing(strict, reentrant):
    options = {"causal": True, "strict": strict}
    layer = learning(**options)
    other, x = copy.deepcopy(layer), torch.randn(2, 12, 8, requires_grad=True)
    for _ in range(3):
        slopes = [backward(run, x) for run in (layer, lambda x: checkpoint(other, x, use_reentrant=reentrant))]
        assert_close(*slopes, rtol=0, atol=0)
    assert_close(dict(other.kmeans.state_dict()), dict(layer.kmeans.state_dict()), rtol=0, atol=0)


def backward(run, x):
    x.grad = None
    run(x).square().sum().backward()
    return x.grad


def learn_in_parallel(rank, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}.meeting", rank=rank, world_size=2)
    layer, x = torch.load(path, weights_only=False)
    for _ in range(3):
        layer(x[rank::2])
    torch.save(layer.kmeans.state_dict(), f"{path}.{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_learn_the_centroids_of_one(tmp_path):
    layer, x, path = learning(), torch.randn(4, 12, 8), str(tmp_path / "layer")
    torch.save((layer, x), path)
    mp.spawn(learn_in_parallel, (path,), nprocs=2)
    for _ in range(3):
        layer(x)
    for rank in range(2):
        assert_close(torch.load(f"{path}.{rank}"), dict(layer.kmeans.state_dict()), rtol=0, atol=1e-5)


def test_buffers_are_no_shorter_than_float32():
    layer = Routing(8, 2, clusters=3, window=4, dtype=torch.bfloat16)
    assert {buffer.dtype for buffer in layer.buffers()} == {torch.float32}
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.bfloat16}


def test_refusals():
    make = {"dim": 8, "num_heads": 2}
    x = torch.randn(1, 4, 8)
    with pytest.raises(UnsupportedError, match="takes no context: its local heads know neighbours only"):
        Routing(**make)(x, x)
    with pytest.raises(UnsupportedError, match="takes no context: it needs one order"):
        Routing(**make, local_heads=0, causal=True)(x, x)
    with pytest.raises(UnsupportedError, match="segments divide one sequence"):
        Routing(**make, local_heads=0)(x, x, segments=torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="hold 1 and 2 sequences"):
        Routing(**make, local_heads=0)(x, torch.randn(2, 4, 8))
    with pytest.raises(UnsupportedError, match="streams only with strict=True"):
        Routing(**make, causal=True).memory(1)
    for options in ({}, {"causal": True, "share_qk": False}):
        with pytest.raises(ValueError, match="strict=True needs causal=True"):
            Routing(**make, strict=True, **options)
    for wrong in ({"clusters": 0}, {"window": 0}, {"local_window": 0}, {"local_heads": 3}):
        with pytest.raises(ValueError, match="=".join(map(str, *wrong.items()))):
            Routing(**make, **wrong)
