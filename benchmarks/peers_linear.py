"""Pairs for ``peers.py``: features instead of pairs, and maps of low rank."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from typing import Any

import torch

import regard
from costs import COSTS, DIM, HEADS, WIDTH, pairs, products, projections
from peers_pair import FromSelf, Pair, copy_each, copy_fused


def performer(length: int, causal: bool) -> Pair:
    """The package's layer with its default number of features; causal without fast-transformers' CUDA code."""
    from performer_pytorch import SelfAttention

    with redirect_stdout(sys.stderr):  # it says that CUDA code is missing
        peer: Any = SelfAttention(DIM, heads=HEADS, causal=causal)
    options: dict[str, Any] = {"causal": causal, "num_features": 266, "qkv_bias": False}
    ours: Any = regard.create("performer", dim=DIM, num_heads=HEADS, **options)
    ours.core.projection.copy_(peer.fast_attention.projection_matrix[None])
    copy_each(ours, q_proj=peer.to_q, k_proj=peer.to_k, v_proj=peer.to_v, out_proj=peer.to_out)
    setting = f"{'causal, ' if causal else ''}266 features (default)"
    differs = "1e-4 is added to each of its features"
    return Pair(peer, ours, projections(length) + products(length, 2 * 266) + pairs(length, 266), setting, differs)


def linformer(length: int) -> Pair:
    """The package's layer."""
    from linformer import LinformerSelfAttention

    peer = LinformerSelfAttention(DIM, length, k=256, heads=HEADS)
    options: dict[str, Any] = {"max_length": length, "rank": 256, "share": "heads", "qkv_bias": False}
    ours: Any = regard.create("linformer", dim=DIM, num_heads=HEADS, **options)
    copy_each(ours, q_proj=peer.to_q, k_proj=peer.to_k, v_proj=peer.to_v, out_proj=peer.to_out)
    ours.core.e.data.copy_(peer.proj_k.T[None])
    ours.core.f.data.copy_(peer.proj_v.T[None])
    setting = "k=256 (default), seq_len=N, one table for all heads"
    return Pair(peer, ours, COSTS["linformer"].cost(length), setting)


def nystrom(length: int) -> Pair:
    """The package's layer with its defaults."""
    from nystrom_attention import NystromAttention

    peer: Any = NystromAttention(DIM, heads=HEADS)
    options: dict[str, Any] = {"num_landmarks": 256, "iterations": 6, "conv_kernel": 33, "qkv_bias": False}
    ours: Any = regard.create("nystrom", dim=DIM, num_heads=HEADS, **options)
    copy_fused(ours, peer.to_qkv, peer.to_out[0])
    ours.core.conv.data.copy_(peer.res_conv.weight)
    differs = "its inverse starts from the largest norm of all heads"
    setting = "256 landmarks, 6 iterations, convolution of 33 (defaults)"
    return Pair(peer, ours, COSTS["nystrom"].cost(length), setting, differs)


def fast_transformers(length: int, causal: bool) -> Pair:
    """The package's linear attention, in its layer."""
    from fast_transformers.attention import AttentionLayer, CausalLinearAttention, LinearAttention
    from fast_transformers.masking import FullMask, LengthMask, TriangularCausalMask

    layer: Any = AttentionLayer((CausalLinearAttention if causal else LinearAttention)(WIDTH), DIM, HEADS)
    lengths = LengthMask(torch.tensor([length]))
    masks = (TriangularCausalMask(length) if causal else FullMask(length), lengths, lengths)
    ours: Any = regard.create("linear_transformer", dim=DIM, num_heads=HEADS, causal=causal)
    copy_each(ours, q_proj=layer.query_projection, k_proj=layer.key_projection, v_proj=layer.value_projection)
    copy_each(ours, out_proj=layer.out_projection)
    setting = f"{'causal, ' if causal else ''}elu + 1 (default)"
    return Pair(FromSelf(layer, masks), ours, COSTS["linear_transformer"].cost(length), setting)


def linear_attention_transformer(length: int, causal: bool) -> Pair:
    """The package's layer, beside the mechanism of ours whose cost is the same."""
    from linear_attention_transformer.linear_attention_transformer import SelfAttention

    peer = SelfAttention(DIM, HEADS, causal=causal)
    ours: Any = regard.create("linear_transformer", dim=DIM, num_heads=HEADS, causal=causal, qkv_bias=False)
    copy_each(ours, q_proj=peer.to_q, k_proj=peer.to_k, v_proj=peer.to_v, out_proj=peer.to_out)
    setting = f"{'causal, ' if causal else ''}ours elu + 1"
    differs = "other features: theirs are exponentials" + ("" if causal else ", keys normalised over the tokens")
    return Pair(peer, ours, COSTS["linear_transformer"].cost(length), setting, differs)


LINEAR: dict[str, Callable[[int], Pair]] = {
    "performer-pytorch": partial(performer, causal=False),
    "performer-pytorch, causal": partial(performer, causal=True),
    "linformer": linformer,
    "nystrom-attention": nystrom,
    "fast-transformers linear": partial(fast_transformers, causal=False),
    "fast-transformers linear, causal": partial(fast_transformers, causal=True),
    "linear-attention-transformer": partial(linear_attention_transformer, causal=False),
    "linear-attention-transformer, causal": partial(linear_attention_transformer, causal=True),
}
