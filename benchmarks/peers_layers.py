"""The pairs of ``peers.py``: a layer of a package and the same layer of ours, with the same weights."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import regard

DIM, HEADS, WIDTH = 512, 8, 64
ROUNDS = 8
"""Of hashing, as the paper of Reformer advises and reformer-pytorch does; Hugging Face's default is 1."""


@dataclass(frozen=True)
class Pair:
    """Two layers with the same weights.

    Attributes:
        peer: the package's layer, x (1, N, 512) -> y.
        ours: ours.
        products: floating-point operations of the matrix products that a forward pass of ours needs.
        setting: what both are set to.
        differs: why their outputs differ by more than rounding; empty where they do not.
    """

    peer: nn.Module
    ours: nn.Module
    products: float
    setting: str
    differs: str = ""


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
    # the global token's row needs no keys of its own: its queries are projected onto x, a query a head
    products = projections(length, 4) + pairs(length, 513 + 1 + HEADS)
    return Pair(peer, ours, products, "attention_window=512, 256 keys to each side; 1 global token")


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
    products = projections(length, 4) + pairs(length, min(8 * 64 + 2 * 64, length))
    peer = AllOf(attention, out, from_mask=rows, to_mask=columns, **masks)
    return Pair(peer, ours, products, "blocks of 64: 3 of the window, 2 global, 3 random; the same random ones")


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
    return Pair(AllOf(attention, out), ours, hashed(length, attention.num_buckets), setting)


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


def hashed(length: int, buckets: int | list[int]) -> float:
    """In every round all tokens are hashed, and each meets the 128 of its chunk and the one before."""
    columns = (buckets if isinstance(buckets, int) else sum(buckets)) / 2
    return projections(length, 3) + ROUNDS * (pairs(length, 128) + 2 * length * DIM * columns)


def local_attention(length: int, rotary: bool) -> Pair:
    """The package's layer."""
    from local_attention import LocalMHA

    peer = LocalMHA(dim=DIM, window_size=256, heads=HEADS, causal=True, use_rotary_pos_emb=rotary)
    options: dict[str, Any] = {"rotary": 10000.0 if rotary else None, "qkv_bias": False}
    ours: Any = regard.create("local", dim=DIM, num_heads=HEADS, causal=True, window=256, **options)
    copy_fused(ours, peer.to_qkv, peer.to_out)
    setting = f"causal, window_size=256, exact_windowsize, {'rotary (default)' if rotary else 'no positions'}"
    return Pair(peer, ours, projections(length, 4) + pairs(length, 257), setting)


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
    return Pair(peer, ours, projections(length, 4) + pairs(length, 2 * 266), setting, differs)


def linformer(length: int) -> Pair:
    """The package's layer."""
    from linformer import LinformerSelfAttention

    peer = LinformerSelfAttention(DIM, length, k=256, heads=HEADS)
    options: dict[str, Any] = {"max_length": length, "rank": 256, "share": "heads", "qkv_bias": False}
    ours: Any = regard.create("linformer", dim=DIM, num_heads=HEADS, **options)
    copy_each(ours, q_proj=peer.to_q, k_proj=peer.to_k, v_proj=peer.to_v, out_proj=peer.to_out)
    ours.core.e.data.copy_(peer.proj_k.T[None])
    ours.core.f.data.copy_(peer.proj_v.T[None])
    # 256 mixtures are projected, not N tokens
    products = projections(length, 2) + projections(256, 2) + 2 * pairs(length, 256)
    return Pair(peer, ours, products, "k=256 (default), seq_len=N, one table for all heads")


def nystrom(length: int) -> Pair:
    """The package's layer with its defaults."""
    from nystrom_attention import NystromAttention

    peer: Any = NystromAttention(DIM, heads=HEADS)
    options: dict[str, Any] = {"num_landmarks": 256, "iterations": 6, "conv_kernel": 33, "qkv_bias": False}
    ours: Any = regard.create("nystrom", dim=DIM, num_heads=HEADS, **options)
    copy_fused(ours, peer.to_qkv, peer.to_out[0])
    ours.core.conv.data.copy_(peer.res_conv.weight)
    # x = A A^T, five times x <- x p(x) of two products, and six p(x) y of three thin ones
    inverse = 2 * HEADS * (11 * 256**3 + 18 * 256**2 * WIDTH)
    products = projections(length, 4) + 2 * pairs(length, 256) + inverse
    differs = "its inverse starts from the largest norm of all heads"
    return Pair(peer, ours, products, "256 landmarks, 6 iterations, convolution of 33 (defaults)", differs)


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
    return Pair(FromSelf(layer, masks), ours, projections(length, 4) + pairs(length, WIDTH), setting)


class AllOf(nn.Module):
    """A self-attention of Hugging Face and the output projection that they keep in a module beside it.

    Args:
        attention: returns a tuple whose first entry is (B, N, C).
        out: the projection.
        arguments: further ones of ``attention``.
    """

    def __init__(self, attention: nn.Module, out: nn.Linear, **arguments: Any) -> None:
        super().__init__()
        self.attention, self.out, self.arguments = attention, out, arguments

    def forward(self, x: Tensor) -> Tensor:
        """The layer without residual and norm."""
        return self.out(self.attention(x, **self.arguments)[0])


class FromSelf(nn.Module):
    """A layer that wants queries, keys and values, given one sequence."""

    def __init__(self, layer: nn.Module, masks: tuple[Any, ...]) -> None:
        super().__init__()
        self.layer, self.masks = layer, masks

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return self.layer(x, x, x, *self.masks)


def copy_each(ours: nn.Module, **sources: nn.Linear) -> None:
    """Give projections of ours a peer's weights; a bias that the peer does not have is 0."""
    for name, source in sources.items():
        copy(ours.get_submodule(name), source.weight, source.bias)


def copy_fused(ours: nn.Module, qkv: nn.Linear, out: nn.Linear) -> None:
    """The same from one matrix for queries, keys and values."""
    for name, weight in zip(("q_proj", "k_proj", "v_proj"), qkv.weight.chunk(3), strict=True):
        copy(ours.get_submodule(name), weight, None)
    copy_each(ours, out_proj=out)


@torch.no_grad()
def copy(target: Any, weight: Tensor, bias: Tensor | None) -> None:
    """Overwrite one projection."""
    target.weight.copy_(weight)
    if target.bias is not None:
        _ = target.bias.zero_() if bias is None else target.bias.copy_(bias)


def projections(length: int, number: int) -> float:
    """Operations of so many square projections of all tokens."""
    return 2.0 * number * length * DIM**2


def pairs(queries: int, keys: int) -> float:
    """Operations of so many scores in all heads, and of the sums of values by them."""
    return 4.0 * queries * keys * DIM


PAIRS: dict[str, Callable[[int], Pair]] = {
    "transformers Longformer": longformer,
    "transformers BigBird": bigbird,
    "transformers Reformer": reformer,
    "reformer-pytorch": reformer_pytorch,
    "local-attention": partial(local_attention, rotary=True),
    "local-attention, no positions": partial(local_attention, rotary=False),
    "performer-pytorch": partial(performer, causal=False),
    "performer-pytorch, causal": partial(performer, causal=True),
    "linformer": linformer,
    "nystrom-attention": nystrom,
    "fast-transformers linear": partial(fast_transformers, causal=False),
    "fast-transformers linear, causal": partial(fast_transformers, causal=True),
}
