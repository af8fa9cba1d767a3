"""fast-transformers' clustered attention against loops, in configurations beyond the recorded cases."""

import json

import pytest
import torch
from torch.testing import assert_close

from regard.authors import load
from regard.authors.replay import replay
from regard.registry import UnsupportedError

PATH = "idiap/fast-transformers@2ad36b9:fast_transformers/attention"
PLAIN = f"{PATH}/clustered_attention.py:ClusteredAttention"
IMPROVED = f"{PATH}/improved_clustered_attention.py:ImprovedClusteredAttention"


def theirs(q, k, v, groups, lengths, clusters, topk, temperature):
    """(B, N, H, D): their order of operations, one cluster at a time."""
    out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    for b in range(len(q)):
        for h in range(q.shape[2]):
            for c in range(clusters):
                members = (groups[b, h] == c).nonzero().flatten()
                if not len(members):
                    continue
                keys, values = k[b, : lengths[b], h], v[b, : lengths[b], h]
                scores = q[b, members, h].mean(0) @ keys.T
                weights = torch.softmax(temperature * scores, -1)
                top = scores.topk(min(topk, len(keys))).indices
                rest = weights.index_fill(0, top, 0.0)
                fine = torch.softmax(temperature * q[b, members, h] @ keys[top].T, -1) * (1 - rest.sum())
                out[b, members, h] = rest @ values + (fine @ values[top] if topk else 0)
    return out


@pytest.mark.parametrize(("source", "topk"), [(PLAIN, 0), (IMPROVED, 3), (IMPROVED, 30)])
@pytest.mark.parametrize("temperature", [None, 0.7])
def test_padded_and_cross(source, topk, temperature):
    q, k, v = (torch.randn(2, n, 3, width, dtype=torch.float64) for n, width in ((12, 4), (17, 4), (17, 5)))
    lengths = torch.tensor([17, 11])
    groups = torch.randint(4, (2, 3, 12), dtype=torch.int32)
    groups[1, :, 9:] = 5  # theirs for padded queries: clusters + 1
    config = {"clusters": 4, "softmax_temp": temperature} | ({"topk": topk} if topk else {})
    meta = {"mechanism": "clustered", "source": source, "config": json.dumps(config), "main_output": "out"}
    tensors = {"in/queries": q, "in/keys": k, "in/values": v, "in/groups": groups, "in/key_lengths": lengths}
    found = replay(tensors | {"in/query_lengths": torch.tensor([12, 9])}, meta)
    expected = theirs(q, k, v, groups, lengths, 4, topk, temperature or 0.5)
    assert_close(found["out/out"], expected, rtol=0, atol=1e-12)
    assert (found["out/counts"].sum(-1) == torch.tensor([[12], [9]])).all()


@pytest.mark.parametrize("hash_bias", [True, False])
def test_planes_and_first_queries_give_the_clusters(hash_bias):
    """One round: every query joins the nearest of the codes that the recorded positions have."""
    q = torch.randn(1, 20, 2, 4)
    planes, start = torch.randn(10, 5), torch.tensor([3, 11, 7])
    config = {"clusters": 3, "iterations": 1, "bits": 10, "hash_bias": hash_bias}
    meta = {"mechanism": "clustered", "source": PLAIN, "config": json.dumps(config), "main_output": "out"}
    tensors = {"in/queries": q, "in/keys": q, "in/values": q, "in/planes": planes, "in/init_index": start}
    found = replay(tensors, meta)
    bits = torch.einsum("nhd,pd->hnp", q[0], planes[:, :-1]) > planes[:, -1] * hash_bias
    assert (found["out/hashes"][0] == (bits.long() * 2 ** torch.arange(10)).sum(-1)).all()
    groups = (bits[:, :, None] != bits[:, None, start]).sum(-1).argmin(-1)
    assert_close(found["out/out"], theirs(q, q, q, groups[None], torch.tensor([20]), 3, 0, 0.5))


def test_a_loaded_module_is_one_of_ours():
    core = load("clustered", IMPROVED, {"clusters": 4, "bits": 12, "attention_dropout": 0.2}, {}).eval()
    assert (core.clusters, core.topk, core.attn_drop, len(core.planes)) == (4, 32, 0.2, 12)
    q = torch.randn(2, 3, 11, 6)
    assert_close(core(q, q, q), core(q, q, q), rtol=0, atol=0)


def test_their_causal_class_is_refused():
    source = f"{PATH}/improved_clustered_causal_attention.py:ImprovedClusteredCausalAttention"
    with pytest.raises(UnsupportedError, match="clustered cannot load"):
        load("clustered", source, {"clusters": 4}, {})
