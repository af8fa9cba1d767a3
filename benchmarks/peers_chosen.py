"""Pairs for ``peers.py``: keys that are chosen by content, and rows of a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import regard
from costs import COSTS, DIM, HEADS, WIDTH, hashed, product_key_memory, routes
from peers_pair import AllOf, First, Pair, copy_each

ROUNDS = 8
"""Of hashing, as the paper of Reformer advises and reformer-pytorch does; Hugging Face's default is 1."""


def reformer(length: int) -> Pair:
    """Hugging Face's layer; it finds the number of buckets itself and draws with its own seed at every call."""
    from transformers import ReformerConfig, logging
    from transformers.models.reformer.modeling_reformer import LSHSelfAttention

    sizes: dict[str, Any] = {"hidden_size": DIM, "num_attention_heads": HEADS, "attention_head_size": WIDTH}
    attention = LSHSelfAttention(ReformerConfig(**sizes, num_hashes=ROUNDS, hash_seed=0))
    out = nn.Linear(DIM, DIM, bias=False)
    logging.set_verbosity_error()  # it tells the number as a warning
    attention._set_num_buckets(length)
    ours: Any = hashing(attention.num_buckets)
    torch.manual_seed(0)
    ours.rotations.normal_()
    copy_each(ours, qk_proj=attention.query_key, v_proj=attention.value, out_proj=out)
    setting = f"chunks of 64, num_hashes={ROUNDS}, about 2 N / 64 buckets"
    buckets = attention.num_buckets
    columns = sum(buckets) if isinstance(buckets, list) else buckets
    return Pair(AllOf(attention, out), ours, hashed(length, columns), setting)


def reformer_pytorch(length: int) -> Pair:
    """The package's layer; its heads share one rotation, and it divides scores by sqrt(D), which the paper does not."""
    from reformer_pytorch import LSHSelfAttention

    peer = LSHSelfAttention(DIM, heads=HEADS, bucket_size=64, n_hashes=ROUNDS)
    ours: Any = hashing(length // 64)
    torch.manual_seed(0)
    ours.rotations.copy_(torch.randn(1, *ours.rotations.shape[1:]))
    nn.init.zeros_(peer.to_out.bias)  # ours has none, as in the paper's code
    copy_each(ours, qk_proj=peer.toqk, v_proj=peer.tov, out_proj=peer.to_out)
    peer.toqk.weight.data *= WIDTH**0.5
    setting = f"bucket_size=64, n_hashes={ROUNDS} (default), N / 64 buckets"
    return Pair(peer, ours, hashed(length, length // 64), setting)


def hashing(buckets: Any) -> nn.Module:
    """Our layer for both."""
    options: dict[str, Any] = {"chunk_length": 64, "num_hashes": ROUNDS, "num_buckets": buckets}
    return regard.create("reformer", dim=DIM, num_heads=HEADS, **options)


class NormalisedHeads(nn.Module):
    """A layer norm over the features of each head, without scale and bias."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return F.layer_norm(x.unflatten(-1, (HEADS, WIDTH)), (WIDTH,), eps=1e-6).flatten(2)


def routing_transformer(length: int) -> Pair:
    """The package's layer with queries and keys normalised, as the paper has it: the package leaves that out."""
    from routing_transformer.routing_transformer import SelfAttention

    clusters, window = routes(length)
    sizes: dict[str, Any] = {"heads": HEADS, "local_attn_heads": 0, "window_size": window}
    peer: Any = SelfAttention(DIM, 1, length, **sizes)
    options: dict[str, Any] = {"local_heads": 0, "clusters": clusters, "window": window}
    ours: Any = regard.create("routing", dim=DIM, num_heads=HEADS, **options)
    copy_each(ours, q_proj=peer.to_q, k_proj=peer.to_k, v_proj=peer.to_v, out_proj=peer.to_out)
    peer.to_q, peer.to_k = (nn.Sequential(linear, NormalisedHeads()) for linear in (peer.to_q, peer.to_k))
    kmeans = peer.global_attn.kmeans
    kmeans.means.copy_(ours.kmeans.means)
    kmeans.initted.fill_(True)
    cost = COSTS["routing, no local heads"].cost(length)
    return Pair(First(peer), ours, cost, "sqrt(N) clusters of sqrt(N), all heads route; q and k normalised")


def product_key(length: int) -> Pair:
    """The package's layer and ours without a norm of the queries, for which each has its own kind."""
    from product_key_memory import PKM

    heads, keys, half = 4, 512, 128
    peer: Any = PKM(DIM, heads=heads, num_keys=keys, topk=32, dim_head=half)
    peer.norm = nn.Identity()
    options: dict[str, Any] = {"num_heads": heads, "num_keys": keys, "key_dim": 2 * half, "topk": 32}
    ours: Any = regard.create("product_key_memory", dim=DIM, norm=None, **options)
    with torch.no_grad():
        queries = peer.to_queries.weight.view(2, heads, half, DIM).transpose(0, 1)
        ours.query_proj.weight.copy_(queries.reshape(-1, DIM))
        ours.query_proj.bias.zero_()
        ours.keys.copy_(peer.keys.transpose(1, 2))
        ours.values.copy_(peer.values.weight)
    setting = "4 heads, 512 x 512 slots, topk=32, queries of 256 without a norm"
    return Pair(peer, ours, product_key_memory(length), setting)


def sinkhorn_transformer(length: int) -> Pair:
    """The package's layer with its balancing, beside ours."""
    from sinkhorn_transformer.sinkhorn_transformer import SinkhornSelfAttention

    options: dict[str, Any] = {"non_permutative": False, "sinkhorn_iter": 5, "temperature": 0.75}
    peer = SinkhornSelfAttention(DIM, 64, length, heads=HEADS, **options)
    ours: Any = regard.create("sinkhorn", dim=DIM, num_heads=HEADS, max_length=length)
    copy_each(ours, q_proj=peer.to_q, out_proj=peer.to_out)
    with torch.no_grad():
        for target, source in zip((ours.k_proj, ours.v_proj), peer.to_kv.weight.chunk(2), strict=True):
            target.weight.copy_(source)
    setting = "blocks of 64, 5 iterations, temperature 0.75 (defaults)"
    differs = "it orders blocks by means of q and k, with noise always, and its sorted values are the sorted keys"
    return Pair(peer, ours, COSTS["sinkhorn"].cost(length), setting, differs)


CHOSEN: dict[str, Callable[[int], Pair]] = {
    "transformers Reformer": reformer,
    "reformer-pytorch": reformer_pytorch,
    "routing-transformer": routing_transformer,
    "sinkhorn-transformer": sinkhorn_transformer,
    "product-key-memory": product_key,
}
