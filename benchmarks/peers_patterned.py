"""Pairs for ``peers.py``: fixed patterns, and talking heads, which mix what all pairs say."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

import regard
from costs import COSTS, DIM, HEADS, WIDTH, sides
from peers_pair import AllOf, OnMaps, Pair, copy_each, copy_fused


def longformer(length: int) -> Pair:
    """Hugging Face's layer, told of masks as their model does."""
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    config = LongformerConfig(hidden_size=DIM, num_attention_heads=HEADS, attention_window=[512])
    attention, out = LongformerSelfAttention(config, 0), nn.Linear(DIM, DIM)
    marks = torch.zeros(1, length)
    marks[:, 0] = 10000.0
    masks: dict[str, Any] = {"attention_mask": marks, "is_index_masked": marks < 0, "is_index_global_attn": marks > 0}
    peer = AllOf(attention, out, **masks, is_global_attn=True)
    ours: Any = regard.create("longformer", dim=DIM, num_heads=HEADS, window=256, num_global=1)
    copy_each(ours, q_proj=attention.query, k_proj=attention.key, v_proj=attention.value, out_proj=out)
    copy_each(ours, q_global=attention.query_global, k_global=attention.key_global, v_global=attention.value_global)
    setting = "attention_window=512, 256 keys to each side; 1 global token"
    return Pair(peer, ours, COSTS["longformer"].cost(length), setting)


def bigbird(length: int) -> Pair:
    """Hugging Face's layer, with our random blocks: in ``eval()`` theirs takes block 0 three times more instead."""
    from transformers import BigBirdConfig
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel

    config = BigBirdConfig(hidden_size=DIM, num_attention_heads=HEADS, max_position_embeddings=length)
    attention, out = BigBirdBlockSparseAttention(config), nn.Linear(DIM, DIM)
    blocked, band, rows, columns = BigBirdModel.create_masks_for_block_sparse_attn(torch.ones(1, length), 64)
    masks: dict[str, Any] = {"from_blocked_mask": blocked, "to_blocked_mask": blocked, "band_mask": band}
    ours: Any = regard.create("bigbird", dim=DIM, num_heads=HEADS, max_length=length, block=64, window=3, random=3)
    blocks = ours.core.rand_blocks.numpy()
    turns = itertools.cycle(blocks)

    def of_next_head(*_: Any, **__: Any) -> Any:
        return next(turns)

    def of_all_heads(*_: Any, **__: Any) -> Any:
        return list(blocks)

    attention._bigbird_block_rand_mask = of_next_head  # for the lengths in the paper
    attention._bigbird_block_rand_mask_with_head = of_all_heads  # for all others
    copy_each(ours, q_proj=attention.query, k_proj=attention.key, v_proj=attention.value, out_proj=out)
    peer = AllOf(attention, out, from_mask=rows, to_mask=columns, **masks)
    setting = "blocks of 64: 3 of the window, 2 global, 3 random; the same random ones"
    return Pair(peer, ours, COSTS["bigbird"].cost(length), setting)


def local_attention(length: int, rotary: bool) -> Pair:
    """The package's layer."""
    from local_attention import LocalMHA

    peer = LocalMHA(dim=DIM, window_size=256, heads=HEADS, causal=True, use_rotary_pos_emb=rotary)
    options: dict[str, Any] = {"rotary": 10000.0 if rotary else None, "qkv_bias": False}
    ours: Any = regard.create("local", dim=DIM, num_heads=HEADS, causal=True, window=256, **options)
    copy_fused(ours, peer.to_qkv, peer.to_out)
    setting = f"causal, window_size=256, exact_windowsize, {'rotary (default)' if rotary else 'no positions'}"
    return Pair(peer, ours, COSTS["local, causal"].cost(length), setting)


def axial_attention(length: int) -> Pair:
    """The package's layer on a map of N pixels."""
    from axial_attention import AxialAttention

    peer = AxialAttention(dim=DIM, dim_index=1, heads=HEADS, num_dimensions=2)
    ours: Any = regard.create("axial", dim=DIM, num_heads=HEADS, qkv_bias=False)
    for axis, permuted in zip(ours.axes, peer.axial_attentions, strict=True):
        theirs = permuted.fn
        key, value = theirs.to_kv.weight.chunk(2)
        copy_each(axis, q_proj=theirs.to_q, out_proj=theirs.to_out)
        axis.k_proj.weight.data.copy_(key)
        axis.v_proj.weight.data.copy_(value)
    height, width = sides(length)
    setting = f"a map of {height} x {width}, sum of both axes (default)"
    cost = COSTS["axial, a map"].cost(length)
    return Pair(OnMaps(peer, height, width), OnMaps(ours, height, width), cost, setting)


def talking_heads(length: int) -> Pair:
    """The package's attention, which adds to the logits what it hears of them."""
    from x_transformers.x_transformers import Attention

    peer: Any = Attention(DIM, dim_head=WIDTH, heads=HEADS, pre_talking_heads=True, post_talking_heads=True)
    before, after = peer.attend.pre_softmax_talking_heads, peer.attend.post_softmax_talking_heads
    for mix in (before, after):
        nn.init.normal_(mix.weight, std=HEADS**-0.5)
    ours: Any = regard.create("talking_heads", dim=DIM, num_heads=HEADS, qkv_bias=False)
    copy_each(ours, q_proj=peer.to_q, k_proj=peer.to_k, v_proj=peer.to_v, out_proj=peer.to_out)
    ours.core.logit_mix.data.copy_(before.weight.detach().flatten(1).mT + torch.eye(HEADS))
    ours.core.weight_mix.data.copy_(after.weight.detach().flatten(1).mT)
    return Pair(peer, ours, COSTS["talking_heads"].cost(length), "pre_talking_heads, post_talking_heads")


PATTERNED: dict[str, Callable[[int], Pair]] = {
    "transformers Longformer": longformer,
    "transformers BigBird": bigbird,
    "local-attention": partial(local_attention, rotary=True),
    "local-attention, no positions": partial(local_attention, rotary=False),
    "axial-attention": axial_attention,
    "x-transformers talking heads": talking_heads,
}
