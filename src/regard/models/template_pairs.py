"""Known structures of related proteins as pairs: their own stack, and the attention that reads them.

Jumper et al. 2021, supplementary Algorithm 2 lines 9-13, Algorithms 16 and 17. With features f of T templates::

    t = LN(pair stack(L(f)))                 per template, (R, R, c_t)
    z_ij += attention of z_ij to t_1ij ... t_Tij

The features of a pair (distances in bins, letters, directions) are made elsewhere.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from regard.models.evoformer import seeded
from regard.ops.alignment_door import hide_pairs
from regard.ops.dropout import drop_shared
from regard.ops.gated_attention import GatedAttention
from regard.ops.projection import Projection, reset_all
from regard.ops.transition import Transition
from regard.ops.triangle_attention import TriangleAttention
from regard.ops.triangle_multiplication import TriangleMultiplication

__all__ = ["TemplateAttention", "TemplateEmbedding", "TemplatePairBlock", "TemplatePairStack"]


class TemplatePairBlock(nn.Module):
    """Triangle attention, then triangle multiplication, then a transition; options as in :class:`TemplatePairStack`.

    Example:
        >>> TemplatePairBlock(8, 2, 4, triangle_width=8).update(torch.randn(1, 5, 5, 8), None).shape
        torch.Size([1, 5, 5, 8])
    """

    def __init__(
        self,
        dim: int = 64,
        num_heads: int = 4,
        head_dim: int = 16,
        *,
        triangle_width: int = 64,
        factor: int = 2,
        drop: float = 0.25,
        chunk_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= drop < 1:
            raise ValueError(f"drop={drop}: rates of dropout lie in [0, 1)")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.drop, self.chunk_size = drop, chunk_size
        self.starting = TriangleAttention(dim, num_heads, head_dim, **factory)
        self.ending = TriangleAttention(dim, num_heads, head_dim, ending=True, **factory)
        self.outgoing = TriangleMultiplication(dim, triangle_width, **factory)
        self.incoming = TriangleMultiplication(dim, triangle_width, incoming=True, **factory)
        self.transition = Transition(dim, factor, **factory)

    def update(
        self,
        pair: Float[Tensor, "B R R C"],
        pair_mask: Bool[Tensor, "B R R"] | None,
        generator: Generator | None = None,
    ) -> Float[Tensor, "B R R C"]:
        """The pairs after the block."""
        rate, size = self.drop * self.training, self.chunk_size
        pair = pair + drop_shared(self.starting(pair, pair_mask, chunk_size=size), rate, 1, generator)
        pair = pair + drop_shared(self.ending(pair, pair_mask, chunk_size=size), rate, 2, generator)
        pair = pair + drop_shared(self.outgoing(pair, pair_mask), rate, 1, generator)
        pair = pair + drop_shared(self.incoming(pair, pair_mask), rate, 1, generator)
        return pair + self.transition(pair, chunk_size=size)


class TemplatePairStack(nn.Module):
    """Blocks on the pairs of each template (Algorithm 16).

    Args:
        num_blocks: how many.
        dim: c_t.
        num_heads, head_dim: of triangle attention.
        triangle_width: of triangle multiplication.
        factor: of the transition.
        drop: dropout on triangle updates, one draw for all rows, at the ending node for all columns.
        chunk_size: rows at a time in attention and transition.
        checkpoint: compute each block again in the backward pass.

    Raises:
        ValueError: sizes below 1, or a rate outside of [0, 1).

    Example:
        >>> TemplatePairStack(1, 8, 2, 4, triangle_width=8)(torch.randn(1, 5, 5, 8)).shape
        torch.Size([1, 5, 5, 8])
    """

    def __init__(
        self,
        num_blocks: int = 2,
        dim: int = 64,
        num_heads: int = 4,
        head_dim: int = 16,
        *,
        triangle_width: int = 64,
        factor: int = 2,
        drop: float = 0.25,
        chunk_size: int | None = None,
        checkpoint: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_blocks < 1:
            raise ValueError(f"num_blocks={num_blocks}: a stack has 1 block or more")
        options: dict[str, Any] = {"triangle_width": triangle_width, "factor": factor, "drop": drop}
        options |= {"chunk_size": chunk_size, "device": device, "dtype": dtype}
        self.checkpoint = checkpoint
        self.blocks = nn.ModuleList(TemplatePairBlock(dim, num_heads, head_dim, **options) for _ in range(num_blocks))

    def reset_parameters(self) -> None:
        """Every block starts as the identity."""
        reset_all(self)

    def forward(
        self,
        pair: Float[Tensor, "B R R C"],
        pair_mask: Bool[Tensor, "B R R"] | None = None,
        *,
        generator: Generator | None = None,
    ) -> Float[Tensor, "B R R C"]:
        """The pairs after all blocks, 0 where masked; several templates of a protein stand side by side in B."""
        pair = hide_pairs(pair, pair_mask)
        for block in cast(Sequence[TemplatePairBlock], self.blocks):
            update = seeded(block.update, generator if self.training else None)
            if self.checkpoint and torch.is_grad_enabled():
                pair = cast(Tensor, recomputed(update, pair, pair_mask, use_reentrant=False))
            else:
                pair = update(pair, pair_mask)
        return hide_pairs(pair, pair_mask)


class TemplateAttention(nn.Module):
    """Every pair attends over the same pair of all templates (Algorithm 17); 0 where there is no template.

    Args:
        dim, template_dim: c_z and c_t.
        num_heads, head_dim: of the attention, which has no gate.

    Example:
        >>> attention = TemplateAttention(12, 8, num_heads=2, head_dim=4)
        >>> attention(torch.randn(1, 5, 5, 12), torch.randn(1, 3, 5, 5, 8)).shape
        torch.Size([1, 5, 5, 12])
    """

    def __init__(
        self,
        dim: int = 128,
        template_dim: int = 64,
        num_heads: int = 4,
        head_dim: int = 16,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.attention = GatedAttention(dim, num_heads, head_dim, context_dim=template_dim, gated=False, **factory)

    def reset_parameters(self) -> None:
        """The update starts at 0."""
        reset_all(self)

    def forward(
        self,
        pair: Float[Tensor, "B R R C"],
        templates: Float[Tensor, "B T R R E"],
        template_mask: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B R R C"]:
        """The update of the pairs.

        Args:
            pair: z.
            templates: what the stack made of each template.
            template_mask: True for templates that exist.
        """
        keys, mask = templates.permute(0, 2, 3, 1, 4), template_mask
        if mask is None:
            return self.attention(pair[..., None, :], keys).squeeze(-2)
        keys = keys.masked_fill(~mask[:, None, None, :, None], 0.0)
        mask = mask[:, None, None].expand(keys.shape[:-1])
        update = self.attention(pair[..., None, :], keys, key_mask=mask).squeeze(-2)
        return hide_pairs(update, mask.any(-1))


class TemplateEmbedding(nn.Module):
    """From features of templates to an update of the pairs; see the head of this file.

    Args:
        features: of a pair in a template; 88 in the paper.
        dim, template_dim: c_z and c_t.
        stack: on the pairs of a template; the paper's by default.
        num_heads, head_dim: of :class:`TemplateAttention`.

    Example:
        >>> embedding = TemplateEmbedding(9, 12, 8, TemplatePairStack(1, 8, 2, 4, triangle_width=8))
        >>> embedding(torch.randn(1, 5, 5, 12), torch.randn(1, 3, 5, 5, 9)).shape
        torch.Size([1, 5, 5, 12])
    """

    def __init__(
        self,
        features: int = 88,
        dim: int = 128,
        template_dim: int = 64,
        stack: TemplatePairStack | None = None,
        num_heads: int = 4,
        head_dim: int = 16,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embed = Projection(features, template_dim, "relu", **factory)
        self.stack = stack or TemplatePairStack(dim=template_dim, **factory)
        self.norm = nn.LayerNorm(template_dim, **factory)
        self.attend = TemplateAttention(dim, template_dim, num_heads, head_dim, **factory)

    def reset_parameters(self) -> None:
        """The update starts at 0."""
        reset_all(self)

    def forward(
        self,
        pair: Float[Tensor, "B R R C"],
        features: Float[Tensor, "B T R R F"],
        template_mask: Bool[Tensor, "B T"] | None = None,
        pair_mask: Bool[Tensor, "B R R"] | None = None,
        *,
        generator: Generator | None = None,
    ) -> Float[Tensor, "B R R C"]:
        """The update of the pairs.

        Args:
            pair: z.
            features: of each pair in each template.
            template_mask: True for templates that exist.
            pair_mask: True for pairs that take part, in all templates.
            generator: draws the dropout.
        """
        batch, templates = features.shape[:2]
        mask = None if pair_mask is None else pair_mask[:, None].expand(-1, templates, -1, -1).flatten(0, 1)
        embedded = self.stack(self.embed(hide_pairs(features.flatten(0, 1), mask)), mask, generator=generator)
        found = self.norm(embedded).unflatten(0, (batch, templates))
        return self.attend(pair, found, template_mask)
