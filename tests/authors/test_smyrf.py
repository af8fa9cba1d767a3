"""SMYRF's code against its order of operations, in configurations beyond the recorded case."""

import json

import pytest
import torch
from torch.testing import assert_close

from regard.authors import load
from regard.authors.replay import replay
from regard.registry import UnsupportedError

SOURCE = "giannisdaras/smyrf@bbbc82e:smyrf/torch/attn.py:SmyrfAttention"


def theirs(q, k, v, alpha, beta, config, norm_factor, mask):
    """One row (N, D): hash, sort, chunk, softmax, undo, combine."""
    most = q.norm(dim=-1).max() ** 2 + k.norm(dim=-1).max() ** 2
    rest = [(most - x.square().sum(-1)).clamp(min=0).sqrt()[:, None] for x in (q, k)]
    up = torch.cat((q, torch.zeros_like(rest[0]), rest[0]), -1) @ alpha + beta
    down = torch.cat((k, rest[1], torch.zeros_like(rest[1])), -1) @ alpha + beta
    if mask is not None:
        up, down = up - mask[:, None], down - mask[:, None]
    outs, sums = [], []
    for r in range(config["n_hashes"]):
        i, j = (
            up[:, r].argsort().view(-1, config["q_cluster_size"]),
            down[:, r].argsort().view(-1, config["k_cluster_size"]),
        )
        scores = q[i] @ k[j].mT / norm_factor + (0 if mask is None else mask[j][:, None])
        out, lse = torch.zeros(len(q), v.shape[-1], dtype=q.dtype), torch.zeros(len(q), dtype=q.dtype)
        outs.append(out.index_put((i.flatten(),), (scores.softmax(-1) @ v[j]).flatten(0, 1)))
        sums.append(lse.index_put((i.flatten(),), scores.logsumexp(-1).flatten()))
    return (torch.stack(sums).softmax(0)[..., None] * torch.stack(outs)).sum(0)


@pytest.mark.parametrize("norm_factor", [1, 2.5])
@pytest.mark.parametrize(("sizes", "masked"), [((4, 4, 24), False), ((4, 4, 24), True), ((3, 6, 48), False)])
def test_shapes_masks_and_scales(sizes, masked, norm_factor):
    q_size, k_size, m = sizes
    config = {"n_hashes": 3, "q_cluster_size": q_size, "k_cluster_size": k_size, "r": 4}
    q, k, v = (torch.randn(2, n, width, dtype=torch.float64) for n, width in ((24, 5), (m, 5), (m, 3)))
    alpha, beta = torch.randn(7, 3, dtype=torch.float64), 4 * torch.rand(1, 3, dtype=torch.float64)
    mask = torch.where(torch.arange(24) < torch.tensor([[24], [17]]), 0.0, -1e4).double() if masked else None
    tensors = {"in/queries": q, "in/keys": k, "in/values": v, "in/alpha": alpha, "in/beta": beta}
    if masked:
        tensors["in/attn_mask"] = mask
    call = {"norm_factor": norm_factor}
    meta = {"mechanism": "smyrf", "source": SOURCE, "config": json.dumps(config), "call": json.dumps(call)}
    found = replay(tensors, meta)["out/out"]
    for b in range(2):
        own = None if mask is None else mask[b]
        real = torch.ones(24, dtype=torch.bool) if own is None else own == 0
        # padding is as long as anything in theirs: the lengths are those of all tokens
        expected = theirs(q[b], k[b], v[b], alpha, beta, config, norm_factor, own)
        assert_close(found[b, real], expected[real], rtol=0, atol=1e-10)


def test_a_loaded_module_is_one_of_ours():
    core = load("smyrf", SOURCE, {"n_hashes": 2, "q_cluster_size": 4, "k_cluster_size": 4, "dropout": 0.2}, {}).eval()
    assert (core.cluster_size, core.attn_drop, core.scale) == (4, 0.2, 1.0)
    q = torch.randn(2, 3, 11, 6)
    assert_close(core(q, q, q), core(q, q, q), rtol=0, atol=0)


def test_what_is_not_computed_is_refused():
    config = {"n_hashes": 2, "q_cluster_size": 4, "k_cluster_size": 4}
    with pytest.raises(UnsupportedError, match="clustering_algo='kmeans_equal'"):
        load("smyrf", SOURCE, config | {"clustering_algo": "kmeans_equal"}, {})
    x = torch.randn(1, 6, 3)
    meta = {"mechanism": "smyrf", "source": SOURCE, "config": json.dumps(config)}
    with pytest.raises(UnsupportedError, match="6 queries do not divide into their clusters of 4"):
        replay({"in/queries": x, "in/keys": x, "in/values": x}, meta)
