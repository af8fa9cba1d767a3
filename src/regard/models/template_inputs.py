"""Known structures join a fold: an update of the pairs, and further rows of the alignment.

Jumper et al. 2021, supplement algorithm 2, lines 7 to 13::

    z_ij += attention to what the pair stack made of each template
    rows  = L(relu(L(letters and torsions)))    one a template, below the alignment
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from regard.models.residue_atoms import ResidueTables, residue_tables
from regard.models.template_features import (
    PAIR_FEATURES,
    ROW_FEATURES,
    Templates,
    template_features,
    template_row_features,
)
from regard.models.template_pairs import TemplateEmbedding, TemplatePairStack
from regard.ops.projection import Projection, reset_all

__all__ = ["TemplateInputs", "Templates"]


class TemplateInputs(nn.Module):
    """What AlphaFold makes of templates; see the head of this file.

    Args:
        msa_dim, pair_dim: c_m and c_z.
        depth: blocks on the pairs of each template.
        num_heads, head_dim: of all attention in here; the pairs of a template are as wide as all heads together (c_t).
        directions: see :func:`regard.models.template_features.template_features`.
        drop, checkpoint, chunk_size: of :class:`regard.models.template_pairs.TemplatePairStack`.

    Example:
        >>> known = torch.ones(1, 2, 4, 5, dtype=torch.bool)
        >>> templates = Templates(torch.zeros(1, 2, 4).long(), torch.randn(1, 2, 4, 5, 3), known, known[:, :, 0, 0])
        >>> module = TemplateInputs(12, 8, depth=1, num_heads=2, head_dim=4)
        >>> module(torch.randn(1, 4, 4, 8), templates).shape
        torch.Size([1, 4, 4, 8])
        >>> module.rows(templates, torch.arange(4)[None])[0].shape
        torch.Size([1, 2, 4, 12])
    """

    def __init__(
        self,
        msa_dim: int = 256,
        pair_dim: int = 128,
        depth: int = 2,
        num_heads: int = 4,
        head_dim: int = 16,
        *,
        directions: bool = False,
        drop: float = 0.25,
        checkpoint: bool = False,
        chunk_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        dim, self.directions = num_heads * head_dim, directions
        options: dict[str, Any] = {"drop": drop, "checkpoint": checkpoint, "chunk_size": chunk_size, **factory}
        stack = TemplatePairStack(depth, dim, num_heads, head_dim, triangle_width=dim, **options)
        self.pairs = TemplateEmbedding(PAIR_FEATURES, pair_dim, dim, stack, num_heads, head_dim, **factory)
        self.row = Projection(ROW_FEATURES, msa_dim, "relu", **factory)
        self.row_out = Projection(msa_dim, msa_dim, "relu", **factory)
        for name, table in residue_tables()._asdict().items():
            self.register_buffer(f"table_{name}", table.clone().to(device), persistent=False)

    def reset_parameters(self) -> None:
        """The update of the pairs starts at 0."""
        reset_all(self)

    def forward(
        self,
        pair: Float[Tensor, "B R R C"],
        templates: Templates,
        pair_mask: Bool[Tensor, "B R R"] | None = None,
        *,
        generator: Generator | None = None,
    ) -> Float[Tensor, "B R R C"]:
        """The update of the pairs; 0 for a protein without templates.

        Args:
            pair: z.
            templates: what is known; what stands at masked templates and atoms does not matter.
            pair_mask: True for pairs that take part, in all templates.
            generator: draws the dropout.
        """
        features = template_features(templates, directions=self.directions).to(self.row.weight.dtype)
        return self.pairs(pair, features, templates.mask, pair_mask, generator=generator)

    def rows(
        self, templates: Templates, residue_index: Int[Tensor, "B R"]
    ) -> tuple[Float[Tensor, "B T R C"], Bool[Tensor, "B T R"]]:
        """A row of the alignment for each template, and where it takes part.

        Args:
            templates: as for ``forward``.
            residue_index: places of the target in its chain.
        """
        tables = ResidueTables(*(getattr(self, f"table_{name}") for name in ResidueTables._fields))
        features, known = template_row_features(templates, residue_index, tables)
        return self.row_out(self.row(features.to(self.row.weight.dtype)).relu()), known
