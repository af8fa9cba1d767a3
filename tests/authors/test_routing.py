"""Both sources of routing attention against loops, in configurations beyond the recorded cases."""

import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors import load
from regard.authors.replay import replay
from regard.registry import UnsupportedError

GOOGLE = "google-research/google-research@0c1bbe5:routing_transformer/utils.py:clustered_local_attention_helper"
PORT = "lucidrains/routing-transformer@3f6c461:routing_transformer/routing_transformer.py:KmeansAttention"


def scattered(rows, n, eps):
    """rows: (token, what it found) of all clusters."""
    out, count = (torch.zeros(n, width, dtype=torch.float64) for width in (rows[0][1].shape[-1], 1))
    for token, row in rows:
        out[token] = out[token] + row
        count[token] += 1
    return out / (count + eps)


def google(q, k, v, means, config):
    q, k = (F.layer_norm(t, t.shape[-1:], eps=1e-6) for t in (q, q if config["share_qk"] else k))
    out, w = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype), config["window"]
    loss = 0
    for b, h in itertools.product(range(len(q)), range(q.shape[1])):
        rows = []
        for mean in means[h]:
            i, j = ((x[b, h] @ mean).topk(w).indices.sort().values for x in (q, k))
            scores = q[b, h, i] @ k[b, h, j].T
            if config["masked"]:
                scores = scores.masked_fill(torch.ones(w, w).triu(1) > 0, -1e9)
            scores = scores.masked_fill((v[b, h, j] == 0).all(-1), -1e9)
            rows += list(zip(i.tolist(), scores.softmax(-1) @ v[b, h, j], strict=True))
        out[b, h] = scattered(rows, q.shape[2], 0.01)
    for x in (q, k):
        chosen = torch.stack([means[h][(x[:, h] @ means[h].T).argmax(-1)] for h in range(len(means))], 1)
        loss = loss + config["beta"] * (x - chosen.detach()).square().mean()
        if not config["ema"]:
            loss = loss + (x.detach() - chosen).square().mean()
    return out, loss


def port(q, k, v, state, config, query_mask, key_mask):
    means, (mem_k, mem_v) = state["kmeans.means"], (state["mem_key"], state["mem_value"])
    shared, context = config.get("shared_qk", False), config.get("receives_context", False)
    key_mask = query_mask if key_mask is None and not context else key_mask
    w = min(config["window_size"], q.shape[2])
    u = min(config.get("context_window_size") or w, k.shape[2]) if context else w
    out, slots, routed = torch.zeros_like(q), mem_k.shape[2], [F.normalize(x, dim=-1) for x in (q, k)]
    for b, h in itertools.product(range(len(q)), range(q.shape[1])):
        rows = []
        for c, mean in enumerate(means[h]):
            i = (routed[0][b, h] @ mean).topk(w).indices
            j = i if shared and not context else (routed[1][b, h] @ mean).topk(u).indices
            keys = routed[1] if shared and not context else k
            keys, values = torch.cat((mem_k[h, c], keys[b, h, j])), torch.cat((mem_v[h, c], v[b, h, j]))
            scores = q[b, h, i] @ keys.T * q.shape[-1] ** -0.5
            for a, x in enumerate(i.tolist()):
                for e, y in enumerate(j.tolist()):
                    apart = config.get("causal", False) and x < y
                    apart |= query_mask is not None and not query_mask[b, x]
                    apart |= key_mask is not None and not key_mask[b, y]
                    if apart or (shared and x == y):
                        far = -5e4 if shared and x == y else torch.finfo(scores.dtype).min
                        scores = scores.index_put(
                            (torch.tensor(a), torch.tensor(slots + e)), torch.tensor(far, dtype=q.dtype)
                        )
            rows += list(zip(i.tolist(), scores.softmax(-1) @ values, strict=True))
        out[b, h] = scattered(rows, q.shape[2], 1e-5)
    x = routed[0] if shared and not context else torch.cat(routed, 2)
    chosen = torch.stack([means[h][(x[:, h] @ means[h].T).argmax(-1)] for h in range(len(means))], 1)
    return out, config["commitment"] * (x - chosen).square().mean()


def agrees(source, config, state, inputs, theirs, buffers=()):
    """Outputs and gradients, by replay, are those of ``theirs(state, inputs)``: (out, loss)."""
    leaves = {name: t.requires_grad_() for name, t in (state | inputs).items() if t.is_floating_point()}
    out, loss = theirs(state, inputs)
    cotangent = torch.randn_like(out)
    total = (out * cotangent).sum() + loss
    slopes = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    tensors = {f"{'buffer' if name in buffers else 'param'}/{name}": t.detach() for name, t in state.items()}
    tensors |= {f"in/{name}": t.detach() for name, t in inputs.items()} | {"in/cotangent": cotangent}
    meta = {"mechanism": "routing", "source": source, "config": json.dumps(config), "call": '{"add_aux": true}'}
    found = replay(tensors, meta)
    assert_close(found["out/out"], out.detach(), rtol=0, atol=1e-10)
    assert_close(found["out/aux_loss"], loss.detach().reshape(1), rtol=0, atol=1e-10)
    for name, slope in zip(leaves, slopes, strict=True):
        if name not in buffers:
            assert_close(found[f"grad/{name}"], slope, rtol=0, atol=1e-9)


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize(("share_qk", "masked"), [(True, True), (True, False), (False, True), (False, False)])
def test_google(share_qk, masked, ema):
    config = {"share_qk": share_qk, "clusters": 3, "window": 6, "masked": masked, "ema": ema, "beta": 0.3}
    q, k, v = torch.randn(3, 2, 2, 14, 4, dtype=torch.float64)
    v[1, :, 11:] = 0
    state = {"means": torch.randn(2, 3, 4, dtype=torch.float64)}
    run = lambda state, inputs: google(inputs["q"], inputs.get("k"), inputs["v"], state["means"], config)  # noqa: E731
    inputs = {"q": q, "v": v} | ({} if share_qk else {"k": k})
    agrees(GOOGLE, config, state, inputs, run, buffers=("means",) if ema else ())


@pytest.mark.parametrize("masks", [(), ("query_mask",), ("query_mask", "key_mask"), ("key_mask",)])
@pytest.mark.parametrize(
    "config",
    [
        {"causal": True, "shared_qk": True, "num_mem_kv": 2},
        {"causal": True},
        {"shared_qk": True, "window_size": 40},
        {"receives_context": True, "context_window_size": 7},
        {"receives_context": True, "shared_qk": True},
    ],
    ids=str,
)
def test_the_port(config, masks):
    config = {"num_clusters": 3, "window_size": 5, "num_heads": 2, "head_dim": 4, "commitment": 0.2} | config
    length = 16 if config.get("receives_context") else 11
    slots = config.get("num_mem_kv", int(config.get("causal", False) and not config.get("shared_qk", False)))
    sizes = {"kmeans.means": (2, 3, 4), "mem_key": (2, 3, slots, 4), "mem_value": (2, 3, slots, 4)}
    state = {name: torch.randn(size, dtype=torch.float64) for name, size in sizes.items()}
    state["kmeans.initted"] = torch.tensor(True)
    shared = config.get("shared_qk") and not config.get("receives_context")
    lengths = {"q": 11, "v": length} | ({} if shared else {"k": length})
    inputs = {name: torch.randn(2, 2, n, 4, dtype=torch.float64) for name, n in lengths.items()}
    n = {"query_mask": 11, "key_mask": length}
    inputs |= {name: torch.arange(n[name]) < torch.tensor([[n[name]], [n[name] - 3]]) for name in masks}

    def run(state, inputs):
        q, v = inputs["q"], inputs["v"]
        return port(q, inputs.get("k", q), v, state, config, inputs.get("query_mask"), inputs.get("key_mask"))

    agrees(PORT, config, state, inputs, run, buffers=("kmeans.means", "kmeans.initted"))


def test_what_is_not_computed_is_refused():
    with pytest.raises(UnsupportedError, match="hash_items=True"):
        load("routing", GOOGLE, {"window": 4, "hash_items": True}, {"means": torch.randn(1, 2, 4)})
