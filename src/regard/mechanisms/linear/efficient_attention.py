"""Efficient attention: keys and values are summed up into D descriptors first, of which every pixel takes a mixture.

Shen et al. 2018 (WACV 2021), arXiv:1812.01243, eqs. 4 to 7. For each head::

    E(Q, K, V) = rho_q(Q) (rho_k(K)^T V)

    "softmax"    rho_q: softmax over the D features of each pixel; rho_k: softmax of each feature over all pixels
    "scaling"    rho(Q) rho(K)^T = Q K^T / n for n pixels: the non-local block by dot products, and equal to it

With "softmax" the weights rho_q(Q) rho_k(K)^T of a pixel sum to 1, but they are not those of softmax attention. Nothing
is scaled by 1 / sqrt(D), and pixels have no positions. As in the authors' code (cmsflash/efficient-attention) queries,
keys, values and output have biases, and x is added to the output; that of the keys changes nothing under a softmax over
pixels, and has no gradient but rounding. Masked pixels leave the softmax, and n.

Time O((N + M) D Dv) a head, memory O((N + M) (D + Dv) + D Dv); faster than N M pairs where N > D Dv / (D + Dv).
"""

from typing import Any, get_args

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.map_layers import WeighingLayer
from regard.ops.descriptors import Normalisation, distribute, gather
from regard.ops.pixelwise import pixelwise
from regard.registry import Card, Sample, register


def efficient_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H M D"],
    v: Float[Tensor, "B H M Dv"],
    normalisation: Normalisation = "softmax",
    *,
    key_mask: Bool[Tensor, "B M"] | None = None,
) -> Float[Tensor, "B H N Dv"]:
    """rho_q(q) (rho_k(k)^T v); see the head of this file.

    Args:
        q, k, v: heads first.
        normalisation: "softmax" or "scaling".
        key_mask: True for keys that take part; without any the result is 0.

    Example:
        >>> q = k = v = torch.randn(1, 2, 5, 4)
        >>> efficient_attention(q, k, torch.ones_like(v)).allclose(torch.ones(1, 2, 5, 4))
        True
    """
    return distribute(q, gather(k, v, normalisation, key_mask), normalisation)


@register(
    "efficient_attention",
    samples=[
        Sample(dim=12, num_heads=3),
        Sample(dim=8, num_heads=2, key_dim=6, value_dim=10, normalisation="scaling", residual=False),
    ],
)
class EfficientAttention(WeighingLayer):
    """Efficient attention within a map, or from it to a context of any size; see the head of this file.

    Args:
        dim: C.
        num_heads: H; each has its share of the widths below.
        key_dim: the width of queries and keys, C by default.
        value_dim: the width of values, C by default.
        normalisation: "softmax" or "scaling".
        residual: add x to the output.

    Raises:
        ValueError: heads that do not divide the widths, or an unknown normalisation.
    """

    card = Card(
        title="Efficient attention",
        paper="arXiv:1812.01243",
        year=2018,
        family="linear",
        data="map",
        cross=True,
        smooth=True,
        refuses={"causal": "the softmax of a key's features runs over all pixels"},
        cost="N D",
        summary="Keys and values become a few descriptors before any query comes: global context for large maps.",
        formula="softmax_D(q) (softmax_N(k)^T v)",
    )
    num_axes = None

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        key_dim: int | None = None,
        value_dim: int | None = None,
        *,
        normalisation: Normalisation = "softmax",
        residual: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        key_dim, value_dim = dim if key_dim is None else key_dim, dim if value_dim is None else value_dim
        if min(dim, num_heads, key_dim, value_dim) < 1:
            raise ValueError(f"dim={dim}, {num_heads=}, {key_dim=}, {value_dim=}: sizes must be positive")
        if key_dim % num_heads or value_dim % num_heads:
            raise ValueError(f"{key_dim=} and {value_dim=} must be multiples of {num_heads=}")
        if normalisation not in get_args(Normalisation):
            raise ValueError(f'normalisation={normalisation!r} is neither "softmax" nor "scaling"')
        self.dim, self.num_heads, self.residual = dim, num_heads, residual
        self.normalisation: Normalisation = normalisation
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.q_proj, self.k_proj = (nn.Linear(dim, key_dim, **factory) for _ in range(2))
        self.v_proj = nn.Linear(dim, value_dim, **factory)
        self.out_proj = nn.Linear(value_dim, dim, **factory)

    def reset_parameters(self) -> None:
        """As torch draws them."""
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            linear.reset_parameters()

    def respond(
        self,
        x: Tensor,
        source: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """Attend; see :class:`regard.map_layers.MapLayer`."""
        out = self._attend(x, source, key_mask).mT.flatten(1, 2)
        y = pixelwise(self.out_proj, out).unflatten(-1, x.shape[2:])
        return x + y if self.residual else y

    def mix(
        self,
        x: Tensor,
        source: Tensor,
        values: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """What the same weights make of other values, before the output projection and the residual."""
        return self._attend(x, source, key_mask, values)

    def _attend(self, x: Tensor, source: Tensor, key_mask: Tensor | None, values: Tensor | None = None) -> Tensor:
        asked = source.flatten(2)
        q, k = self._heads(self.q_proj, x.flatten(2)), self._heads(self.k_proj, asked)
        v = self._heads(self.v_proj, asked) if values is None else values
        mask = None if key_mask is None else key_mask.flatten(1)
        return efficient_attention(q, k, v, self.normalisation, key_mask=mask)

    def _heads(self, linear: nn.Linear, x: Tensor) -> Tensor:
        """(B, H, N, D), the pixels of each feature side by side."""
        return pixelwise(linear, x).unflatten(1, (self.num_heads, -1)).mT

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}, normalisation={self.normalisation!r}"
