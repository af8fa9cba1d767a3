"""Pairs for ``peers.py``: segments with a memory. The states of one are what the next remembers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import regard
from costs import COSTS, DIM, HEADS, WIDTH, pairs, products, projections
from peers_pair import Pair, copy_each
from regard import authors
from regard.ops.relative_attention import distance_sinusoids

SEGMENT, SLOTS = 512, 128


class Compressing(nn.Module):
    """The package's attention from segment to segment; its table of distances is a parameter beside it."""

    def __init__(self, attention: nn.Module, distances: Tensor) -> None:
        super().__init__()
        self.attention, self.distances = attention, nn.Parameter(distances)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        memories, outs = None, list[Tensor]()
        for segment in x.split(SEGMENT, 1):
            out, memories, _ = self.attention(segment, memories, self.distances)
            memories = [memory.detach() for memory in memories]
            outs.append(out)
        return torch.cat(outs, 1)


class Remembering(nn.Module):
    """An attention that takes the states of the segment before as ``mem``."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        segments = x.split(SEGMENT, 1)
        before = (None, *(segment.detach() for segment in segments[:-1]))
        return torch.cat([self.attention(s, mem=m) for s, m in zip(segments, before, strict=True)], 1)


def compressive(length: int) -> Pair:
    """The package's layer with our rows for its distances; it has no biases u and w, ours are 0."""
    from compressive_transformer_pytorch.compressive_transformer_pytorch import SelfAttention

    attention: Any = SelfAttention(DIM, SEGMENT, SEGMENT, SLOTS, heads=HEADS)
    options: dict[str, Any] = {"segment_length": SEGMENT, "compressed_length": SLOTS}
    ours: Any = regard.create("compressive", dim=DIM, num_heads=HEADS, **options)
    nn.init.zeros_(attention.to_out.bias)
    copy_each(ours, q_proj=attention.to_q, out_proj=attention.to_out)
    with torch.no_grad():
        for target, source in zip((ours.k_proj, ours.v_proj), attention.to_kv.weight.chunk(2), strict=True):
            target.weight.copy_(source)
        for bias in (ours.content_bias, ours.position_bias):
            bias.zero_()
        ours.compression.conv.load_state_dict(attention.compress_mem_fn.conv.state_dict())
        rows = ours.r_proj(distance_sinusoids(2 * SEGMENT + SLOTS, DIM, ours.r_proj.weight))
    peer = Compressing(attention, rows.unflatten(-1, (HEADS, WIDTH)).transpose(0, 1).contiguous())
    setting = "seq_len=512, mem_len=512, cmem_len=128, ratio 4 (default)"
    return Pair(peer, ours, COSTS["compressive"].cost(length), setting)


def transformer_xl(length: int) -> Pair:
    """x-transformers' attention with the segment before as its memory, and ours with distances of no effect."""
    from x_transformers.x_transformers import Attention

    attention = Attention(DIM, dim_head=WIDTH, heads=HEADS, causal=True, flash=True)
    options: dict[str, Any] = {"segment_length": SEGMENT, "compressed_length": 0}
    ours: Any = regard.create("compressive", dim=DIM, num_heads=HEADS, **options)
    copy_each(ours, q_proj=attention.to_q, k_proj=attention.to_k, v_proj=attention.to_v, out_proj=attention.to_out)
    for weight in (ours.content_bias, ours.position_bias, ours.r_proj.weight):
        nn.init.zeros_(weight)
    setting = "segments of 512 after 512 states, flash=True; theirs knows no distances, ours has them with weights of 0"
    return Pair(Remembering(attention), ours, COSTS["compressive, Transformer-XL"].cost(length), setting)


class Given(nn.Module):
    """Stands for an embedding: what it was given, whatever the tokens."""

    x: Tensor

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N) -> (B, N, C)."""
        return self.x


Step = Callable[[Tensor, Any], Any]


class Encoding(nn.Module):
    """A Memformer that reads segments of 128 embedded tokens, one after the other.

    Args:
        model: whose encoder it is.
        encoder, embedding: the encoder, and the name of its embedding, which is replaced.
        start: memories of the first segment.
        step: tokens and memories -> the encoded segment and the next memories.
    """

    def __init__(self, model: nn.Module, encoder: nn.Module, embedding: str, start: Tensor, step: Step) -> None:
        super().__init__()
        self.model, self.given, self.start, self.step = model, Given(), start, step
        setattr(encoder, embedding, self.given)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        memories, outs = self.start[None], list[Tensor]()
        for self.given.x in x.split(128, 1):
            out, memories, *_ = self.step(torch.zeros(1, 128, dtype=torch.long), memories)
            outs.append(out)
        return torch.cat(outs, 1)


def memformer(length: int) -> Pair:
    """The package's encoder of one layer, with its feed-forward network, and the model of ours that has its form."""
    from memformer import Memformer

    config: dict[str, Any] = {"dim": DIM, "enc_num_tokens": 1, "enc_max_seq_len": 128, "enc_depth": 1}
    config |= {"enc_heads": HEADS, "num_memory_slots": 32, "encoder_only": True}
    peer: Any = Memformer(**config)
    ours: Any = authors.load(
        "memformer", "lucidrains/memformer:memformer/memformer.py:Memformer", config, peer.state_dict()
    )

    def step(tokens: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        encoded = ours.encoder(tokens, slots)
        return encoded, ours.slots(slots, encoded)

    theirs = Encoding(peer, peer.encoder, "token_emb", peer.memory_slots, lambda tokens, m: peer(tokens, mems=m))
    mine = Encoding(ours, ours.encoder, "embedding", ours.slots.start, step)
    # a token: 6 projections of attention, 8 of feed-forward, 2 to be written; of a segment's 32 slots 20 in all
    cost = projections(length, 16) + projections(length / 4, 20) + pairs(length, 128) + pairs(length, 32)
    setting = "enc_depth=1 with feed-forward, 32 slots, segments of 128"
    return Pair(theirs, mine, cost + products(length, 2 * 32), setting)


MEMORY: dict[str, Callable[[int], Pair]] = {
    "compressive-transformer-pytorch": compressive,
    "x-transformers Transformer-XL": transformer_xl,
    "memformer": memformer,
}
