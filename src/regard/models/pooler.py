"""Sets to a few vectors over any mechanism by name: the body in which mechanisms on sets are compared.

Each point is projected to C features, without positions, since a set has no order, and passes the blocks of
:mod:`regard.models.transformer`. Set Transformer's decoder (Lee et al. 2018, arXiv:1810.00825) then pools the points.
The order of the points means nothing where it means nothing to the mechanism.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.factory import create
from regard.models.set_transformer import SetDecoder
from regard.models.transformer import Block
from regard.ops.masks import check_mask, check_tokens, hide


class TransformerPooler(nn.Module):
    """k vectors from a set of points.

    Args:
        dim_input: features of a point.
        num_outputs, dim_output: k, and the features of each.
        dim, depth, num_heads: of the encoder.
        max_length: the largest set, for mechanisms whose parameters depend on it.
        mechanism: the registry name of the attention, which sees all points.
        decoder_depth: blocks between the pooling and the last matrix, in which the k vectors see each other.
        mlp_ratio: the hidden width of the MLPs, in multiples of ``dim``.
        dropout: on both branches of each block, and around the pooling.
        mechanism_options: what else :func:`regard.create` shall pass on.

    Raises:
        UnsupportedError: something that the mechanism cannot do.

    Example:
        >>> model = TransformerPooler(2, 4, 5, 16, 2, 2, 100, "linear_transformer")
        >>> model(torch.randn(3, 50, 2)).shape
        torch.Size([3, 4, 5])
    """

    def __init__(
        self,
        dim_input: int,
        num_outputs: int,
        dim_output: int,
        dim: int,
        depth: int,
        num_heads: int,
        max_length: int,
        mechanism: str = "set_transformer",
        *,
        decoder_depth: int = 1,
        mlp_ratio: float = 4,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **mechanism_options: Any,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        options: dict[str, Any] = {"max_length": max_length, "causal": False, **factory, **mechanism_options}
        self.dim_input, self.max_length = dim_input, max_length
        self.embedding = nn.Linear(dim_input, dim, **factory)
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            attention = create(mechanism, dim=dim, num_heads=num_heads, **options)
            self.blocks.append(Block(attention, dim, mlp_ratio=mlp_ratio, dropout=dropout, **factory))
        self.norm = nn.LayerNorm(dim, **factory)
        self.decoder = SetDecoder(dim, num_heads, num_outputs, dim_output, decoder_depth, dropout=dropout, **factory)

    def forward(
        self,
        x: Float[Tensor, "B N In"],
        *,
        key_mask: Bool[Tensor, "B N"] | None = None,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Read a set out.

        Args:
            x: points, at most ``max_length`` of them.
            key_mask: True for real points: sets of unequal size share a batch.
            generator: the source of everything random in the attention.
            return_aux: also return what the layers have to tell, as "loss/blocks.0.attention/..." and so on.

        Returns:
            (B, k, dim_output); with ``return_aux`` a pair of it and a dict of tensors.

        Raises:
            ValueError, TypeError: shapes or masks that do not fit.
        """
        check_tokens(x, self.dim_input)
        check_mask(key_mask, x.shape[0], x.shape[1])
        if x.shape[1] > self.max_length:
            raise ValueError(f"{x.shape[1]} points, but this model was built with max_length={self.max_length}")
        y = self.embedding(hide(x, key_mask))
        aux: dict[str, Tensor] = {}
        for number, block in enumerate(self.blocks):
            y, told = block(y, key_mask=key_mask, generator=generator)
            for name, value in told.items():
                kind, _, rest = name.partition("/")
                aux[f"{kind}/blocks.{number}.attention/{rest}"] = value
        out = self.decoder(self.norm(y), key_mask)
        return (out, aux) if return_aux else out
