"""Stacks of Evoformer blocks: the trunk of AlphaFold 2, and the lighter one for thousands of further sequences.

Jumper et al. 2021, supplementary Algorithms 6 and 18; the block is :mod:`regard.mechanisms.pairs.alphafold2`. Masked
places are hidden once, at the door. From block to block they carry numbers, as in the authors' code: where a pair is
masked although both of its residues are real, its bias still counts.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from regard.mechanisms.pairs.alphafold2 import AlphaFold2, Drops
from regard.ops.alignment_door import admit_alignment, hide_pairs

__all__ = ["EvoformerStack"]


class EvoformerStack(nn.Module):
    """``num_blocks`` blocks, one after the other.

    Args:
        num_blocks: 48 in the paper; 4 for its extra MSA.
        dim, pair_dim: c_m and c_z.
        num_heads, head_dim, pair_heads, pair_head_dim: of each block.
        triangle_width, outer_width, factor, outer_first, msa_drop, pair_drop, drops, chunk_size: of each block.
        global_columns: of each block; True makes the stack of the extra MSA, whose alignment is thrown away in the end.
        checkpoint: keep what goes from block to block only, and compute each block again in the backward pass.

    Raises:
        ValueError: fewer than 1 block, or what a block refuses.

    Example:
        >>> stack = EvoformerStack(2, 16, 8, num_heads=2, head_dim=8, pair_heads=2, pair_head_dim=4)
        >>> msa, pair = stack(torch.randn(1, 5, 9, 16), torch.randn(1, 9, 9, 8))
        >>> msa.shape, pair.shape
        (torch.Size([1, 5, 9, 16]), torch.Size([1, 9, 9, 8]))
    """

    def __init__(
        self,
        num_blocks: int = 48,
        dim: int = 256,
        pair_dim: int = 128,
        num_heads: int = 8,
        head_dim: int = 32,
        *,
        pair_heads: int = 4,
        pair_head_dim: int = 32,
        triangle_width: int = 128,
        outer_width: int = 32,
        factor: int = 4,
        global_columns: bool = False,
        outer_first: bool = False,
        msa_drop: float = 0.15,
        pair_drop: float = 0.25,
        drops: Drops | None = None,
        chunk_size: int | None = None,
        checkpoint: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_blocks < 1:
            raise ValueError(f"num_blocks={num_blocks}: a stack has 1 block or more")
        options: dict[str, Any] = {
            "pair_heads": pair_heads,
            "pair_head_dim": pair_head_dim,
            "triangle_width": triangle_width,
            "outer_width": outer_width,
            "factor": factor,
            "global_columns": global_columns,
            "outer_first": outer_first,
            "msa_drop": msa_drop,
            "pair_drop": pair_drop,
            "drops": drops,
            "chunk_size": chunk_size,
            "device": device,
            "dtype": dtype,
        }
        self.dim, self.pair_dim, self.checkpoint = dim, pair_dim, checkpoint
        self.blocks = nn.ModuleList(
            AlphaFold2(dim, pair_dim, num_heads, head_dim, **options) for _ in range(num_blocks)
        )

    def reset_parameters(self) -> None:
        """Every block starts as the identity."""
        for block in cast(Sequence[AlphaFold2], self.blocks):
            block.reset_parameters()

    def forward(
        self,
        msa: Tensor,
        pair: Tensor,
        msa_mask: Tensor | None = None,
        pair_mask: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Update both; arguments as in :meth:`regard.mechanisms.pairs.alphafold2.AlphaFold2.forward`.

        Returns:
            m (B, S, R, c_m) and z (B, R, R, c_z), 0 where masked.

        Raises:
            ValueError, TypeError: shapes or masks that do not fit.
        """
        msa, pair = admit_alignment(msa, pair, msa_mask, pair_mask, self.dim, self.pair_dim)
        for block in cast(Sequence[AlphaFold2], self.blocks):
            update = seeded(block.update, generator if self.training else None)
            if self.checkpoint and torch.is_grad_enabled():
                msa, pair = cast(Any, recomputed(update, msa, pair, msa_mask, pair_mask, use_reentrant=False))
            else:
                msa, pair = update(msa, pair, msa_mask, pair_mask)
        return hide_pairs(msa, msa_mask), hide_pairs(pair, pair_mask)

    def extra_repr(self) -> str:
        return f"checkpoint={self.checkpoint}"


def seeded(update: Callable[..., Any], generator: Generator | None) -> Callable[..., Any]:
    """``update`` with a generator of its own, so that computing it again draws the same again."""
    if generator is None:
        return update
    seed = int(torch.randint(1 << 62, (), generator=generator, device=generator.device))
    return partial(_with_seed, update, seed, generator.device)


def _with_seed(update: Callable[..., Any], seed: int, device: torch.device, *arguments: Any) -> Any:
    return update(*arguments, generator=torch.Generator(device).manual_seed(seed))
