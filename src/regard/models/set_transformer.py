"""Set Transformer, the whole network: a set of points in, a few vectors out, in no order and of any size.

Lee et al. 2018, arXiv:1810.00825, as the authors' models.py has it::

    encoder: ISAB, ISAB                 (SAB with num_inducing=None)
    decoder: PMA of k seeds, SAB, SAB, one matrix

Their network for point clouds has no SAB behind the pooling (``decoder_depth=0``), and dropout on both sides of it; the
one for the maximum of a set has SABs in the encoder and none behind the pooling. The same decoder behind blocks of any
other mechanism: :class:`regard.models.TransformerPooler`.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.mechanisms.lowrank.set_transformer import ISAB, PMA, SAB, Scale
from regard.ops.masks import check_mask, check_tokens, hide


class SetDecoder(nn.Module):
    """Pools a set into k vectors, lets them see each other, and reads each of them out.

    Args:
        dim, num_heads: C and H.
        num_outputs, dim_output: k, and the features of each.
        depth: SABs between the pooling and the last matrix.
        dropout: before and behind the pooling.
        rff_in_pma: see :class:`regard.mechanisms.lowrank.set_transformer.PMA`.
        options: those of :class:`regard.mechanisms.lowrank.set_transformer.MAB`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_outputs: int,
        dim_output: int,
        depth: int,
        *,
        dropout: float = 0.0,
        rff_in_pma: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        factory = {key: options[key] for key in ("device", "dtype") if key in options}
        self.dropout = nn.Dropout(dropout)
        self.pool = PMA(dim, num_heads, num_outputs, rff_in_pma, **options)
        self.blocks = nn.ModuleList(SAB(dim, dim, num_heads, **options) for _ in range(depth))
        self.output = nn.Linear(dim, dim_output, **factory)

    def forward(
        self, z: Float[Tensor, "B N C"], key_mask: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B K Out"]:
        """Points, and which of them are real; what stands at the others must be a number and is not looked at."""
        z = self.dropout(self.pool(self.dropout(z), key_mask=key_mask))
        for block in self.blocks:
            z = block(z)
        return self.output(z)


class SetTransformer(nn.Module):
    """k vectors from a set of points, whatever their order and number.

    Args:
        dim_input: features of a point.
        num_outputs, dim_output: k, and the features of each.
        num_inducing: learned points of each block of the encoder; None: every point sees every other.
        dim, num_heads: C and H of all blocks.
        depth, decoder_depth: blocks before the pooling, and SABs behind it.
        scale, layer_norm: see :class:`regard.mechanisms.lowrank.set_transformer.MAB`.
        rff_in_pma: a row-wise matrix and a ReLU before the pooling, as in the paper's equation.
        dropout: before and behind the pooling.

    Raises:
        ValueError: sizes that do not fit.

    Example:
        >>> model = SetTransformer(2, num_outputs=4, dim_output=5, dim=16)
        >>> model(torch.randn(3, 50, 2)).shape
        torch.Size([3, 4, 5])
    """

    def __init__(
        self,
        dim_input: int,
        num_outputs: int,
        dim_output: int,
        num_inducing: int | None = 32,
        dim: int = 128,
        num_heads: int = 4,
        depth: int = 2,
        decoder_depth: int = 2,
        *,
        scale: Scale = "width",
        layer_norm: bool = False,
        rff_in_pma: bool = False,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if depth < 1 or decoder_depth < 0:
            raise ValueError(f"depth={depth}, decoder_depth={decoder_depth}: at least 1 and 0")
        options: dict[str, Any] = {"scale": scale, "layer_norm": layer_norm, "device": device, "dtype": dtype}
        self.dim_input = dim_input
        self.encoder = nn.ModuleList()
        for number in range(depth):
            sizes = (dim if number else dim_input, dim, num_heads)
            self.encoder.append(
                SAB(*sizes, **options) if num_inducing is None else ISAB(*sizes, num_inducing, **options)
            )
        self.decoder = SetDecoder(
            *(dim, num_heads, num_outputs, dim_output, decoder_depth), dropout=dropout, rff_in_pma=rff_in_pma, **options
        )

    def forward(
        self, x: Float[Tensor, "B N In"], *, key_mask: Bool[Tensor, "B N"] | None = None, return_aux: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Read a set out.

        Args:
            x: points.
            key_mask: True for real points: sets of unequal size share a batch.
            return_aux: also return what else there is to tell: nothing.

        Returns:
            (B, k, dim_output); with ``return_aux`` a pair of it and {}.

        Raises:
            ValueError, TypeError: shapes or masks that do not fit.
        """
        check_tokens(x, self.dim_input)
        check_mask(key_mask, x.shape[0], x.shape[1])
        x = hide(x, key_mask)
        for block in self.encoder:
            x = block(x, key_mask=key_mask)
        y = self.decoder(x, key_mask)
        return (y, {}) if return_aux else y
