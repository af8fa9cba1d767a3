"""Deep Sets: the same MLP for every point, their mean, sum or maximum, and another MLP; no point sees another.

Zaheer et al. 2017, arXiv:1703.06114; the baseline of Set Transformer (Lee et al. 2018, arXiv:1810.00825, section 5).
"""

from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.ops.masks import check_mask, check_tokens, hide

Pool = Literal["mean", "sum", "max"]


class DeepSets(nn.Module):
    """k vectors from a set of points, each of which is looked at alone.

    Args:
        dim_input: features of a point.
        num_outputs, dim_output: k, and the features of each.
        dim: the width of both MLPs.
        pool: "mean", "sum" or "max" over the points; an empty set pools to 0.
        depth, decoder_depth: matrices in the MLP of the points and in that behind the pooling.

    Raises:
        ValueError: an unknown pooling, or an MLP without a matrix.

    Example:
        >>> DeepSets(2, num_outputs=4, dim_output=5, dim=16)(torch.randn(3, 50, 2)).shape
        torch.Size([3, 4, 5])
    """

    def __init__(
        self,
        dim_input: int,
        num_outputs: int,
        dim_output: int,
        dim: int = 128,
        pool: Pool = "mean",
        depth: int = 4,
        decoder_depth: int = 4,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if pool not in ("mean", "sum", "max"):
            raise ValueError(f'pool={pool!r} is none of "mean", "sum" and "max"')
        if min(depth, decoder_depth) < 1:
            raise ValueError(f"depth={depth}, decoder_depth={decoder_depth}: an MLP has 1 matrix or more")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.dim_input, self.num_outputs = dim_input, num_outputs
        self.pool: Pool = pool
        self.encoder = _mlp([dim_input] + [dim] * depth, factory)
        self.decoder = _mlp([dim] * decoder_depth + [num_outputs * dim_output], factory)

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
        y = self.encoder(hide(x, key_mask))
        if self.pool == "max":
            y = y if key_mask is None else y.masked_fill(~key_mask[..., None], -torch.inf)
            y = y.amax(1)
            y = y.masked_fill(y == -torch.inf, 0.0)
        else:
            y = hide(y, key_mask).sum(1)
            if self.pool == "mean":
                y = y / (x.shape[1] if key_mask is None else key_mask.sum(1, keepdim=True).clamp(min=1))
        out = self.decoder(y).unflatten(-1, (self.num_outputs, -1))
        return (out, {}) if return_aux else out


def _mlp(widths: list[int], factory: dict[str, Any]) -> nn.Sequential:
    """Matrices with a ReLU between each two."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, **factory), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
